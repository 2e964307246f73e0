/* Service addresses become backend addresses where a socket names its peer, so no packet is ever translated.
 *
 * connect(2) and sendto(2) go to a backend; recvfrom(2) and getpeername(2) tell the service's address again. What has
 * no endpoints is refused at once. One code path serves both families: the programs differ in which fields of the
 * context they may touch, and in nothing else. */

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balance.h"

char LICENSE[] SEC("license") = "GPL"; /* bpf_sk_storage_get, bpf_ktime_get_ns */

#define MAPPED bpf_htonl(0xffff)
#define REFUSE_ERRNO (-111) /* ECONNREFUSED */

static __always_inline void read_peer(struct bpf_sock_addr *ctx, bool six, struct endpoint *peer) {
    if (six) {
        peer->address[0] = ctx->user_ip6[0];
        peer->address[1] = ctx->user_ip6[1];
        peer->address[2] = ctx->user_ip6[2];
        peer->address[3] = ctx->user_ip6[3];
    } else {
        peer->address[0] = peer->address[1] = 0;
        peer->address[2] = MAPPED;
        peer->address[3] = ctx->user_ip4;
    }
    peer->port = ctx->user_port;
    peer->zero = 0;
}

static __always_inline void write_peer(struct bpf_sock_addr *ctx, bool six, const struct endpoint *peer) {
    if (six) {
        ctx->user_ip6[0] = peer->address[0];
        ctx->user_ip6[1] = peer->address[1];
        ctx->user_ip6[2] = peer->address[2];
        ctx->user_ip6[3] = peer->address[3];
    } else {
        ctx->user_ip4 = peer->address[3];
    }
    ctx->user_port = peer->port;
}

static __always_inline bool is_loopback(const struct endpoint *peer) {
    if (peer->address[0] || peer->address[1])
        return false;
    if (peer->address[2] == MAPPED)
        return (bpf_ntohl(peer->address[3]) >> 24) == 127;
    return !peer->address[2] && peer->address[3] == bpf_htonl(1);
}

/* The key under which a service at this address would be found. A pod's loopback is its own; the node's leads to node
 * ports: an IPv4 one has the mapped form of 0.0.0.0, an IPv6 one is ::. */
static __always_inline void key_of(struct bpf_sock_addr *ctx, const struct endpoint *peer, bool of_node,
                                   struct service_key *key) {
    key->address[0] = peer->address[0];
    key->address[1] = peer->address[1];
    key->address[2] = peer->address[2];
    key->address[3] = peer->address[3];
    key->port = peer->port;
    key->protocol = ctx->protocol;
    key->scope = SCOPE_ADDRESS;
    if (of_node && is_loopback(peer)) {
        key->address[3] = 0;
        key->scope = SCOPE_NODE_PORT;
    }
}

/* Programs on the host's cgroup serve the node's own namespace and those that are known to be its pods'; programs on
 * the pods' cgroup all others that they meet. So a socket is served once, although the programs of a cgroup and of
 * those above it all run, and several nodes may be namespaces of one host. */
static __always_inline bool serves(bool on_host, __u64 netns, bool *of_node) {
    __u32 zero = 0;
    struct config *node = bpf_map_lookup_elem(&config, &zero);

    *of_node = node && node->node_netns == netns;
    return (*of_node || bpf_map_lookup_elem(&namespaces, &netns)) == on_host;
}

/* Makes the system call fail at once: with ECONNREFUSED, or before Linux 5.18 with EPERM. */
static __always_inline int refuse(__u32 counter) {
    count(counter, true);
    if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
        bpf_set_retval(REFUSE_ERRNO);
    return 0;
}

static __always_inline struct flow_key flow_of(struct bpf_sock_addr *ctx, const struct endpoint *backend) {
    struct flow_key flow = {.cookie = bpf_get_socket_cookie(ctx), .backend = *backend};

    return flow;
}

static __always_inline void note_flow(struct bpf_sock_addr *ctx, const struct endpoint *backend,
                                      const struct endpoint *peer) {
    struct flow_key flow = flow_of(ctx, backend);

    bpf_map_update_elem(&flows, &flow, peer, BPF_ANY);
}

/* A UDP socket, which may connect again and again, now means the backend itself. */
static __always_inline void forget_flow(struct bpf_sock_addr *ctx, const struct endpoint *backend) {
    struct flow_key flow;

    if (ctx->protocol != IPPROTO_UDP || !bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0))
        return;
    flow = flow_of(ctx, backend);
    bpf_map_delete_elem(&flows, &flow);
}

static __always_inline int do_connect(struct bpf_sock_addr *ctx, bool on_host, bool six) {
    struct endpoint peer, backend = {};
    struct service_key key;
    __u32 set = 0, counter = 0;
    __u64 netns = bpf_get_netns_cookie(ctx);
    bool of_node;

    if (!serves(on_host, netns, &of_node))
        return 1;
    read_peer(ctx, six, &peer);
    key_of(ctx, &peer, of_node, &key);
    switch (choose(&key, netns, &backend, &set, &counter)) {
    case NO_SERVICE:
        forget_flow(ctx, &peer);
        return 1;
    case REFUSED:
        return refuse(counter);
    case CHOSEN:
        break;
    }
    count(counter, false);
    if (ctx->protocol == IPPROTO_UDP)
        bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    note_flow(ctx, &backend, &peer);
    write_peer(ctx, six, &backend);
    return 1;
}

/* Whether the socket sent to this service last and may go on with the same backend: its set has not changed since. */
static __always_inline bool resume(struct socket_state *state, const struct service_key *key,
                                   struct endpoint *backend) {
    struct service *service;
    __u32 set;
    bool same;

    bpf_spin_lock(&state->lock);
    same = same_service(&state->sent_to, key);
    set = state->sent_set;
    *backend = state->sent_backend;
    bpf_spin_unlock(&state->lock);
    if (!same || !set)
        return false;
    service = bpf_map_lookup_elem(&services, key);
    return service && set_now(service) == set;
}

static __always_inline int do_sendmsg(struct bpf_sock_addr *ctx, bool on_host, bool six) {
    struct endpoint peer, backend = {};
    struct service_key key;
    struct socket_state *state;
    __u32 set = 0, counter = 0;
    __u64 netns = bpf_get_netns_cookie(ctx);
    bool of_node;

    if (!serves(on_host, netns, &of_node))
        return 1;
    read_peer(ctx, six, &peer);
    key_of(ctx, &peer, of_node, &key);
    state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
    if (state && resume(state, &key, &backend)) {
        write_peer(ctx, six, &backend);
        return 1;
    }
    switch (choose(&key, netns, &backend, &set, &counter)) {
    case NO_SERVICE:
        return 1;
    case REFUSED:
        return refuse(counter);
    case CHOSEN:
        break;
    }
    count(counter, false);
    if (!state)
        state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (state) {
        bpf_spin_lock(&state->lock);
        state->sent_to = key;
        state->sent_set = set;
        state->sent_backend = backend;
        bpf_spin_unlock(&state->lock);
    }
    note_flow(ctx, &backend, &peer);
    write_peer(ctx, six, &backend);
    return 1;
}

/* The service's address in place of the backend's, for a socket that was told so. */
static __always_inline int tell_service(struct bpf_sock_addr *ctx, bool on_host, bool six) {
    struct endpoint backend, *peer;
    struct flow_key flow;
    bool of_node;

    if (!serves(on_host, bpf_get_netns_cookie(ctx), &of_node))
        return 1;
    if (ctx->protocol == IPPROTO_UDP && !bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0))
        return 1;
    read_peer(ctx, six, &backend);
    flow = flow_of(ctx, &backend);
    peer = bpf_map_lookup_elem(&flows, &flow);
    if (peer)
        write_peer(ctx, six, peer);
    return 1;
}

/* Each hook has a program for the pods' cgroup and one for the host's. */
#define HOOK(hook, body, six)                                                                                          \
    SEC("cgroup/" #hook)                                                                                               \
    int pod_##hook(struct bpf_sock_addr *ctx) { return body(ctx, false, six); }                                        \
    SEC("cgroup/" #hook)                                                                                               \
    int host_##hook(struct bpf_sock_addr *ctx) { return body(ctx, true, six); }

HOOK(connect4, do_connect, false)
HOOK(connect6, do_connect, true)
HOOK(sendmsg4, do_sendmsg, false)
HOOK(sendmsg6, do_sendmsg, true)
HOOK(recvmsg4, tell_service, false)
HOOK(recvmsg6, tell_service, true)
HOOK(getpeername4, tell_service, false)
HOOK(getpeername6, tell_service, true)
