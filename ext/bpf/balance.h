/* From a service's key to one of its backends.
 *
 * An element that is deleted or replaced may be reused by the kernel for another key while a program still reads it
 * (map elements are recycled without waiting for readers). So whatever was read counts only if the service still has
 * the same set afterwards: sets are deleted after every service has left them, and their numbers are never used again.
 */
#pragma once

#include "consts.h"
#include "maps.h"

enum verdict {
    NO_SERVICE,
    CHOSEN,
    REFUSED,
};

static __always_inline bool same_endpoint(const struct endpoint *a, const struct endpoint *b) {
    return a->port == b->port && a->address[3] == b->address[3] && a->address[2] == b->address[2] &&
           a->address[1] == b->address[1] && a->address[0] == b->address[0];
}

static __always_inline bool same_service(const struct service_key *a, const struct service_key *b) {
    return a->port == b->port && a->protocol == b->protocol && a->scope == b->scope && a->address[3] == b->address[3] &&
           a->address[2] == b->address[2] && a->address[1] == b->address[1] && a->address[0] == b->address[0];
}

/* The service as it is now; false when there is none. */
static __always_inline bool find_service(const struct service_key *key, struct service *found) {
    struct service *held = bpf_map_lookup_elem(&services, key);
    if (!held)
        return false;
    *found = *held;
    return !(found->flags & FLAG_GONE);
}

static __always_inline void count(const struct service_key *key, bool refused) {
    struct counter *held = bpf_map_lookup_elem(&counters, key);
    if (!held) {
        struct counter none = {};
        bpf_map_update_elem(&counters, key, &none, BPF_NOEXIST);
        held = bpf_map_lookup_elem(&counters, key);
        if (!held)
            return;
    }
    if (refused)
        held->refusals++;
    else
        held->connections++;
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

/* One backend of the service in `key`, and the set that it is from. */
static __always_inline enum verdict choose(const struct service_key *key, __u64 client, struct endpoint *backend,
                                           __u32 *set) {
    struct affinity_key who = {.client = client, .service = *key};
    for (int i = 0; i < TRIES; i++) {
        struct service service, again;
        if (!find_service(key, &service))
            return NO_SERVICE;
        if (!service.count)
            return REFUSED;
        if (!service.affinity_seconds || !recall(&who, &service, backend)) {
            struct backend_key place = {.set = service.set, .slot = bpf_get_prandom_u32() % service.count};
            struct endpoint *held = bpf_map_lookup_elem(&backends, &place);
            if (!held)
                continue;
            *backend = *held;
        }
        if (!find_service(key, &again) || again.set != service.set)
            continue;
        if (service.affinity_seconds)
            remember(&who, backend);
        *set = service.set;
        return CHOSEN;
    }
    return REFUSED;
}
