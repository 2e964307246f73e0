/* What the maps hold. Addresses have 16 bytes in network order, IPv4 ones mapped (::ffff:0:0/96), so that both families
 * share every line of code. Every struct is without holes: keys are compared byte by byte. */
#pragma once

#include <linux/types.h>

struct service_key {
    __be32 address[4];
    __be16 port;
    __u8 protocol;
    __u8 scope;
};

/* A service's backends switch as one: a new set is written beside the old, then `set` and `count` change together.
 * Numbers of sets are never used again. */
struct service {
    __u32 set;
    __u32 count;            /* slots */
    __u32 affinity_seconds; /* 0: none */
    __u32 flags;
    __u32 counter; /* its place in the map counters */
    __u32 zero;
};

struct backend_key {
    __u32 set;
    __u32 slot; /* 0 .. count - 1 */
};

struct endpoint {
    __be32 address[4];
    __be16 port;
    __u16 zero;
};

/* Which endpoints are in a set; kept for services with affinity only. */
struct member_key {
    __u32 set;
    struct endpoint endpoint;
};

struct affinity_key {
    __u64 client; /* cookie of its network namespace: one per pod, so the same as its address */
    struct service_key service;
    __u32 zero;
};

struct affinity {
    __u64 seen; /* CLOCK_MONOTONIC, ns */
    struct endpoint backend;
    __u32 zero;
};

/* A socket and whom it talks to. */
struct flow_key {
    __u64 cookie;
    struct endpoint backend;
    __u32 zero;
};

struct counter {
    __u64 connections;
    __u64 refusals;
};

struct config {
    __u64 node_netns; /* cookie of the node's own network namespace */
};
