/* The maps. Sizes are the smallest that are made; the agent makes larger ones and switches the programs over. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>

#include "structs.h"

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct service_key);
    __type(value, struct service);
} services SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4096);
    __type(key, struct backend_key);
    __type(value, struct endpoint);
} backends SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct member_key);
    __type(value, __u32);
} members SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, struct affinity_key);
    __type(value, struct affinity);
} affinity SEC(".maps");

/* Whom sockets believe they talk to. The oldest go first: after tens of thousands of newer ones a reply, or
 * getpeername(2), shows the backend's address. Socket storage would not forget, but making and freeing it costs more
 * than the rest of a TCP connection's programs together. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 65536);
    __type(key, struct flow_key);
    __type(value, struct endpoint);
} flows SEC(".maps");

/* What one UDP socket was told, kept by the kernel as long as the socket. One that has met no service has none. */
struct socket_state {
    struct bpf_spin_lock lock;
    __u32 sent_set;
    struct service_key sent_to;   /* of an unconnected socket: the last service ... */
    struct endpoint sent_backend; /* ... and the backend it got */
};

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct socket_state);
} sockets SEC(".maps");

/* As many as services; each of them knows its place. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, struct counter);
} counters SEC(".maps");

/* Cookies of pods' network namespaces: a socket in one of them that was made outside the pods' cgroup, by whoever
 * entered the namespace, is served as well. Cookies are never used again, so those of pods that are gone just age. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 8192);
    __type(key, __u64);
    __type(value, __u32);
} namespaces SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct config);
} config SEC(".maps");
