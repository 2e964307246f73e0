/* From a service's key to one of its backends.
 *
 * An element that is deleted or replaced may be reused by the kernel for another key while a program still reads it
 * (map elements are recycled without waiting for readers). So whatever was read counts only if the service's element
 * still names the same set afterwards: sets are deleted after every service has left them, and their numbers are never
 * used again. An element that was recycled for another service names another set, unless both have the same, which then
 * still exists.
 */
#pragma once

#include "consts.h"
#include "maps.h"

enum verdict {
    NO_SERVICE,
    CHOSEN,
    REFUSED,
};

static __always_inline bool same_service(const struct service_key *a, const struct service_key *b) {
    return a->port == b->port && a->protocol == b->protocol && a->scope == b->scope && a->address[3] == b->address[3] &&
           a->address[2] == b->address[2] && a->address[1] == b->address[1] && a->address[0] == b->address[0];
}

static __always_inline void count(__u32 place, bool refused) {
    struct counter *held = bpf_map_lookup_elem(&counters, &place);

    if (!held)
        return;
    if (refused)
        held->refusals++;
    else
        held->connections++;
}

/* Which set a service's element names at this moment. */
static __always_inline __u32 set_now(const struct service *held) { return *(const volatile __u32 *)&held->set; }

/* The element as it is; false where it was recycled meanwhile. The set is read first and written first. */
static __always_inline bool read_service(const struct service *held, struct service *service) {
    __u32 set = set_now(held);

    asm volatile("" ::: "memory");
    *service = *held;
    service->set = set;
    asm volatile("" ::: "memory");
    return set_now(held) == set;
}

/* The slot of a client whose backend follows from who it is (Fibonacci hashing), or of one that has none. */
static __always_inline __u32 slot_of(const struct service *service, __u64 client) {
    __u32 number = service->flags & FLAG_CONSISTENT ? (client * 0x9e3779b97f4a7c15ULL) >> 32 : bpf_get_prandom_u32();

    return number % service->count;
}

/* The backend that the client had last, if that is recent and still in the set. */
static __always_inline bool recall(const struct affinity_key *who, const struct service *service,
                                   struct endpoint *backend) {
    struct affinity *held = bpf_map_lookup_elem(&affinity, who);
    if (!held)
        return false;
    struct affinity last = *held;
    if (bpf_ktime_get_ns() - last.seen > service->affinity_seconds * 1000000000ULL)
        return false;
    struct member_key member = {.set = service->set, .endpoint = last.backend};
    if (!bpf_map_lookup_elem(&members, &member))
        return false;
    *backend = last.backend;
    return true;
}

static __always_inline void remember(const struct affinity_key *who, const struct endpoint *backend) {
    struct affinity now = {.seen = bpf_ktime_get_ns(), .backend = *backend};
    bpf_map_update_elem(&affinity, who, &now, BPF_ANY);
}

/* One backend of the service in `key`, the set that it is from, and where the service is counted. */
static __always_inline enum verdict choose(const struct service_key *key, __u64 client, struct endpoint *backend,
                                           __u32 *set, __u32 *counter) {
    for (int i = 0; i < TRIES; i++) {
        struct affinity_key who = {.client = client, .service = *key};
        struct service *held = bpf_map_lookup_elem(&services, key);
        struct service service;

        if (!held)
            return NO_SERVICE;
        if (!read_service(held, &service))
            continue;
        *counter = service.counter;
        if (service.flags & (FLAG_GONE | FLAG_PACKETS))
            return NO_SERVICE;
        if (!service.count)
            return REFUSED;
        if (!service.affinity_seconds || !recall(&who, &service, backend)) {
            struct backend_key place = {.set = service.set, .slot = slot_of(&service, client)};
            struct endpoint *found = bpf_map_lookup_elem(&backends, &place);

            if (!found)
                continue;
            *backend = *found;
        }
        if (set_now(held) != service.set)
            continue;
        if (service.affinity_seconds)
            remember(&who, backend);
        *set = service.set;
        return CHOSEN;
    }
    return REFUSED;
}
