"""Builds ext/libbpf/_libbpf: libbpf's calls, and those of shim.c, which is compiled in."""

from pathlib import Path

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("""
    struct bpf_object;
    struct kl_map_info { uint32_t id, type, key_size, value_size, max_entries, flags; };
    struct kl_link_info { uint32_t id, program_id, type, attach_type; uint64_t cgroup_id; };

    void kl_init(void);
    const char *kl_log(void);
    int kl_open(const char *path, struct bpf_object **object);
    int kl_load(struct bpf_object *object);
    int kl_resize(struct bpf_object *object, const char *map, uint32_t max_entries);
    int kl_reuse(struct bpf_object *object, const char *map, int fd);
    int kl_map_fd(struct bpf_object *object, const char *map);
    int kl_map_declared(struct bpf_object *object, const char *map, struct kl_map_info *info);
    int kl_program_fd(struct bpf_object *object, const char *program);
    int kl_attach_type(struct bpf_object *object, const char *program);
    int kl_map_info(int fd, struct kl_map_info *info);
    int kl_link_info(int fd, struct kl_link_info *info);
    int kl_program_maps(uint32_t program_id, uint32_t *ids, uint32_t room);
    int kl_map_by_id(uint32_t id, char *name);
    int kl_run(int fd, void *context, uint32_t size, uint32_t *result);
    int kl_is_bpffs(const char *path);
    int kl_mount_bpffs(const char *path);

    void bpf_object__close(struct bpf_object *object);
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
    int bpf_map_lookup_elem(int fd, const void *key, void *value);
    int bpf_map_delete_elem(int fd, const void *key);
    int bpf_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count, void *);
    int bpf_map_delete_batch(int fd, const void *keys, uint32_t *count, void *);
    int bpf_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, uint32_t *count, void *);
    int bpf_obj_pin(int fd, const char *path);
    int bpf_obj_get(const char *path);
    int bpf_link_create(int program, int target, int attach_type, void *);
    int bpf_link_update(int link, int program, void *);
    int bpf_link_detach(int link);
    int libbpf_num_possible_cpus(void);
""")
ffibuilder.set_source(
    "kernelet.ext.libbpf._libbpf",
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include "shim.c"
    """,
    include_dirs=[str(Path(__file__).resolve().parent)],
    libraries=["bpf"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
