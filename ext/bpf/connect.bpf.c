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
static __always_inline void key_of(struct bpf_sock_addr *ctx, const struct endpoint *peer, __u64 netns,
                                   struct service_key *key) {
    __u32 zero = 0;
    struct config *node;

    key->address[0] = peer->address[0];
    key->address[1] = peer->address[1];
    key->address[2] = peer->address[2];
    key->address[3] = peer->address[3];
    key->port = peer->port;
    key->protocol = ctx->protocol;
    key->scope = SCOPE_ADDRESS;
    if (!is_loopback(peer))
        return;
    node = bpf_map_lookup_elem(&config, &zero);
    if (node && node->node_netns == netns) {
        key->address[3] = 0;
        key->scope = SCOPE_NODE_PORT;
    }
}

/* Makes the system call fail at once: with ECONNREFUSED, or before Linux 5.18 with EPERM. */
static __always_inline int refuse(const struct service_key *key) {
    count(key, true);
    if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
        bpf_set_retval(REFUSE_ERRNO);
    return 0;
}

static __always_inline void forget_peer(struct bpf_sock_addr *ctx) {
    struct socket_state *state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
    if (!state)
        return;
    bpf_spin_lock(&state->lock);
    state->peer_backend.port = 0;
    bpf_spin_unlock(&state->lock);
}

static __always_inline void note_flow(struct bpf_sock_addr *ctx, const struct endpoint *backend,
                                      const struct endpoint *peer) {
    struct flow_key flow = {.cookie = bpf_get_socket_cookie(ctx), .backend = *backend};
    bpf_map_update_elem(&flows, &flow, peer, BPF_ANY);
}

static __always_inline int do_connect(struct bpf_sock_addr *ctx, bool six) {
    struct endpoint peer, backend = {};
    struct service_key key;
    struct socket_state *state;
    __u32 set = 0;
    __u64 netns = bpf_get_netns_cookie(ctx);

    read_peer(ctx, six, &peer);
    key_of(ctx, &peer, netns, &key);
    switch (choose(&key, netns, &backend, &set)) {
    case NO_SERVICE:
        forget_peer(ctx);
        return 1;
    case REFUSED:
        return refuse(&key);
    case CHOSEN:
        break;
    }
    count(&key, false);
    state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (state) {
        bpf_spin_lock(&state->lock);
        state->peer = peer;
        state->peer_backend = backend;
        bpf_spin_unlock(&state->lock);
    }
    if (ctx->protocol == IPPROTO_UDP) /* by this the agent finds sockets that are stuck on a backend */
        note_flow(ctx, &backend, &peer);
    write_peer(ctx, six, &backend);
    return 1;
}

/* Whether the socket sent to this service last and may go on with the same backend: its set has not changed since. */
static __always_inline bool resume(struct socket_state *state, const struct service_key *key,
                                   struct endpoint *backend) {
    struct service service;
    __u32 set;
    bool same;

    bpf_spin_lock(&state->lock);
    same = same_service(&state->sent_to, key);
    set = state->sent_set;
    *backend = state->sent_backend;
    bpf_spin_unlock(&state->lock);
    return same && set && find_service(key, &service) && service.set == set;
}

static __always_inline int do_sendmsg(struct bpf_sock_addr *ctx, bool six) {
    struct endpoint peer, backend = {};
    struct service_key key;
    struct socket_state *state;
    __u32 set = 0;
    __u64 netns = bpf_get_netns_cookie(ctx);

    read_peer(ctx, six, &peer);
    key_of(ctx, &peer, netns, &key);
    state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
    if (state && resume(state, &key, &backend)) {
        write_peer(ctx, six, &backend);
        return 1;
    }
    switch (choose(&key, netns, &backend, &set)) {
    case NO_SERVICE:
        return 1;
    case REFUSED:
        return refuse(&key);
    case CHOSEN:
        break;
    }
    count(&key, false);
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
static __always_inline int tell_service(struct bpf_sock_addr *ctx, bool six, bool connected_only) {
    struct endpoint backend, peer = {};
    struct socket_state *state;
    bool known = false;

    state = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
    if (!state)
        return 1; /* has never met a service */
    read_peer(ctx, six, &backend);
    bpf_spin_lock(&state->lock);
    if (same_endpoint(&state->peer_backend, &backend)) {
        peer = state->peer;
        known = true;
    }
    bpf_spin_unlock(&state->lock);
    if (!known && !connected_only) {
        struct flow_key flow = {.cookie = bpf_get_socket_cookie(ctx), .backend = backend};
        struct endpoint *held = bpf_map_lookup_elem(&flows, &flow);
        if (held) {
            peer = *held;
            known = true;
        }
    }
    if (known)
        write_peer(ctx, six, &peer);
    return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx) { return do_connect(ctx, false); }

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx) { return do_connect(ctx, true); }

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx) { return do_sendmsg(ctx, false); }

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx) { return do_sendmsg(ctx, true); }

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx) { return tell_service(ctx, false, false); }

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx) { return tell_service(ctx, true, false); }

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx) { return tell_service(ctx, false, true); }

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx) { return tell_service(ctx, true, true); }
