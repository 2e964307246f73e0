/* What is easier said in C than through cffi: the log of libbpf kept for error messages, objects addressed by name, and
 * the kernel's info structs reduced to what is asked of them. Every function returns 0 or more, or -errno. */

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#define KL_LOG 65536
#define KL_BPFFS_MAGIC 0xcafe4a11

struct kl_map_info {
    uint32_t id, type, key_size, value_size, max_entries, flags;
};

struct kl_link_info {
    uint32_t id, program_id, type, attach_type;
    uint64_t cgroup_id; /* 0: the link is detached */
};

static __thread char kl_log_text[KL_LOG];
static __thread size_t kl_log_length;

static int kl_print(enum libbpf_print_level level, const char *format, va_list arguments) {
    size_t room = KL_LOG - kl_log_length;
    int wrote;

    if (level > LIBBPF_WARN || room <= 1)
        return 0;
    wrote = vsnprintf(kl_log_text + kl_log_length, room, format, arguments);
    if (wrote > 0)
        kl_log_length += (size_t)wrote < room ? (size_t)wrote : room - 1;
    return wrote;
}

static void kl_init(void) { libbpf_set_print(kl_print); }

/* What libbpf said in this thread since the last call that begins a message. */
static const char *kl_log(void) { return kl_log_text; }

static void kl_log_begin(void) { kl_log_length = 0, kl_log_text[0] = 0; }

static int kl_open(const char *path, struct bpf_object **object) {
    kl_log_begin();
    *object = bpf_object__open_file(path, NULL);
    return *object ? 0 : -errno;
}

static int kl_load(struct bpf_object *object) {
    kl_log_begin();
    return bpf_object__load(object);
}

static int kl_resize(struct bpf_object *object, const char *map, uint32_t max_entries) {
    struct bpf_map *found = bpf_object__find_map_by_name(object, map);

    return found ? bpf_map__set_max_entries(found, max_entries) : -ENOENT;
}

/* The object takes a copy of the descriptor. */
static int kl_reuse(struct bpf_object *object, const char *map, int fd) {
    struct bpf_map *found = bpf_object__find_map_by_name(object, map);

    return found ? bpf_map__reuse_fd(found, fd) : -ENOENT;
}

static int kl_map_fd(struct bpf_object *object, const char *map) {
    struct bpf_map *found = bpf_object__find_map_by_name(object, map);

    return found ? bpf_map__fd(found) : -ENOENT;
}

static int kl_map_declared(struct bpf_object *object, const char *map, struct kl_map_info *info) {
    struct bpf_map *found = bpf_object__find_map_by_name(object, map);

    if (!found)
        return -ENOENT;
    info->id = 0;
    info->type = bpf_map__type(found);
    info->key_size = bpf_map__key_size(found);
    info->value_size = bpf_map__value_size(found);
    info->max_entries = bpf_map__max_entries(found);
    info->flags = bpf_map__map_flags(found);
    return 0;
}

static int kl_program_fd(struct bpf_object *object, const char *program) {
    struct bpf_program *found = bpf_object__find_program_by_name(object, program);

    return found ? bpf_program__fd(found) : -ENOENT;
}

static int kl_attach_type(struct bpf_object *object, const char *program) {
    struct bpf_program *found = bpf_object__find_program_by_name(object, program);

    return found ? (int)bpf_program__expected_attach_type(found) : -ENOENT;
}

static int kl_map_info(int fd, struct kl_map_info *info) {
    struct bpf_map_info raw;
    uint32_t size = sizeof(raw);
    int error;

    memset(&raw, 0, sizeof(raw));
    error = bpf_obj_get_info_by_fd(fd, &raw, &size);
    if (error)
        return error;
    info->id = raw.id;
    info->type = raw.type;
    info->key_size = raw.key_size;
    info->value_size = raw.value_size;
    info->max_entries = raw.max_entries;
    info->flags = raw.map_flags;
    return 0;
}

static int kl_link_info(int fd, struct kl_link_info *info) {
    struct bpf_link_info raw;
    uint32_t size = sizeof(raw);
    int error;

    memset(&raw, 0, sizeof(raw));
    error = bpf_obj_get_info_by_fd(fd, &raw, &size);
    if (error)
        return error;
    info->id = raw.id;
    info->program_id = raw.prog_id;
    info->type = raw.type;
    info->attach_type = raw.type == BPF_LINK_TYPE_CGROUP ? raw.cgroup.attach_type : 0;
    info->cgroup_id = raw.type == BPF_LINK_TYPE_CGROUP ? raw.cgroup.cgroup_id : 0;
    return 0;
}

/* Ids of the maps that a program uses; how many there are. */
static int kl_program_maps(uint32_t program_id, uint32_t *ids, uint32_t room) {
    struct bpf_prog_info raw;
    uint32_t size = sizeof(raw);
    int error, fd = bpf_prog_get_fd_by_id(program_id);

    if (fd < 0)
        return fd;
    memset(&raw, 0, sizeof(raw));
    raw.map_ids = (uint64_t)(uintptr_t)ids;
    raw.nr_map_ids = room;
    error = bpf_obj_get_info_by_fd(fd, &raw, &size);
    close(fd);
    return error ? error : (int)raw.nr_map_ids;
}

/* The name that a map was given, up to 15 characters; the descriptor, or an error. */
static int kl_map_by_id(uint32_t id, char name[16]) {
    struct bpf_map_info raw;
    uint32_t size = sizeof(raw);
    int error, fd = bpf_map_get_fd_by_id(id);

    if (fd < 0)
        return fd;
    memset(&raw, 0, sizeof(raw));
    error = bpf_obj_get_info_by_fd(fd, &raw, &size);
    if (error) {
        close(fd);
        return error;
    }
    memcpy(name, raw.name, 15);
    name[15] = 0;
    return fd;
}

/* One run of a program whose context is `context`, which holds what the program left in it afterwards. */
static int kl_run(int fd, void *context, uint32_t size, uint32_t *result) {
    LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = context, .ctx_size_in = size);
    int error = bpf_prog_test_run_opts(fd, &options);

    *result = options.retval;
    return error;
}

static int kl_is_bpffs(const char *path) {
    struct statfs raw;

    if (statfs(path, &raw))
        return -errno;
    return (uint32_t)raw.f_type == KL_BPFFS_MAGIC;
}

static int kl_mount_bpffs(const char *path) { return mount("bpf", path, "bpf", 0, "mode=0700") ? -errno : 0; }
