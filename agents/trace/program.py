"""The programs in the kernel: C for bcc, and what they include in place of kernel headers.

Two raw tracepoints, which need neither kprobes nor a mounted tracefs:

* `inet_sock_set_state` (since 4.16): a socket that goes to SYN_SENT begins an attempt, one that leaves it ends it. Only
  the side that connects does so, so a connection is seen once even where both its ends are on this machine.
* `kfree_skb` (with a reason since 5.17): a packet dropped, by whom and why. The packet's headers are read where it
  dies, so translated packets show their translated addresses.

Struct members are read at offsets from BTF, given as macros; so the program is the same text for every kernel, and what
bcc wants of kernel headers shrinks to a dozen lines, in place of a package that must fit the running kernel.
"""

from __future__ import annotations

from pathlib import Path

from .btf import Btf

TRACEPOINTS = ("inet_sock_set_state", "kfree_skb")
ESTABLISHED, FAILED, DROPPED = 1, 2, 3
REASONS = "skb_drop_reason"
PREFIX = "SKB_DROP_REASON_"
OFFSETS = {
    "SK_FAMILY": "sock.__sk_common.skc_family",
    "SK_DPORT": "sock.__sk_common.skc_dport",
    "SK_DADDR": "sock.__sk_common.skc_daddr",
    "SK_SADDR": "sock.__sk_common.skc_rcv_saddr",
    "SK_DADDR6": "sock.__sk_common.skc_v6_daddr",
    "SK_SADDR6": "sock.__sk_common.skc_v6_rcv_saddr",
    "SK_NET": "sock.__sk_common.skc_net.net",
    "SK_ERR": "sock.sk_err",
    "SK_PROTOCOL": "sock.sk_protocol",
    "INET_SPORT": "inet_sock.inet_sport",
    "NET_INUM": "net.ns.inum",
    "DEV_NET": "net_device.nd_net.net",
    "SKB_DEV": "sk_buff.dev",
    "SKB_SK": "sk_buff.sk",
    "SKB_HEAD": "sk_buff.head",
    "SKB_NETWORK": "sk_buff.network_header",
    "SKB_PROTOCOL": "sk_buff.protocol",
}

TEXT = r"""
#define AF_INET6 10
#define MAPPED 0xffff0000u /* the third word of ::ffff:0:0/96 in network order */
#define ESTABLISHED 1
#define SYN_SENT 2
#define CLOSE 7
#define FIRST_REASON 2 /* SKB_DROP_REASON_NOT_SPECIFIED; before it, packets that were not dropped */

struct endpoint {
    u32 address[4]; /* in network order, IPv4 mapped */
    u16 port;
    u8 protocol;
    u8 zero;
};

struct attempt {
    u64 began;
    struct endpoint peer;
};

struct event {
    u64 nanoseconds; /* from SYN to ESTABLISHED */
    u64 location;    /* of a drop */
    struct endpoint source;
    struct endpoint destination;
    u32 netns;
    u32 kind;
    u32 reason; /* of a drop; an errno of a failure */
    u32 zero;
};

BPF_HASH(watched, struct endpoint, u8, WATCHED);
BPF_TABLE("lru_hash", u64, struct attempt, attempts, 65536);
BPF_ARRAY(lost, u64, 1);
BPF_RINGBUF_OUTPUT(events, 256);

#define READ(to, from, offset) bpf_probe_read_kernel(&(to), sizeof(to), (void *)((u64)(from) + (offset)))

static inline void emit(struct event *event) {
    int zero = 0;
    u64 *count;

    if (!events.ringbuf_output(event, sizeof(*event), 0))
        return;
    count = lost.lookup(&zero);
    if (count)
        __sync_fetch_and_add(count, 1);
}

static inline u32 netns_of(u64 owner, int offset) {
    u64 net = 0;
    u32 inum = 0;

    READ(net, owner, offset);
    READ(inum, net, NET_INUM);
    return inum;
}

static inline void socket_end(u64 sk, int four, int six, struct endpoint *end) {
    u16 family = 0, protocol = 0;

    READ(family, sk, SK_FAMILY);
    READ(protocol, sk, SK_PROTOCOL);
    if (family == AF_INET6) {
        READ(end->address, sk, six);
    } else {
        end->address[2] = MAPPED;
        READ(end->address[3], sk, four);
    }
    end->protocol = protocol;
}

static inline void begin(u64 sk) {
    struct attempt attempt = {};

    socket_end(sk, SK_DADDR, SK_DADDR6, &attempt.peer);
    READ(attempt.peer.port, sk, SK_DPORT);
    if (!watched.lookup(&attempt.peer))
        return;
    attempt.began = bpf_ktime_get_ns();
    attempts.update(&sk, &attempt);
}

static inline void end(u64 sk, bool established) {
    struct attempt *attempt = attempts.lookup(&sk);
    struct event event = {};

    if (!attempt)
        return;
    event.nanoseconds = bpf_ktime_get_ns() - attempt->began;
    event.destination = attempt->peer;
    event.kind = established ? 1 : 2;
    socket_end(sk, SK_SADDR, SK_SADDR6, &event.source);
    READ(event.source.port, sk, INET_SPORT);
    event.netns = netns_of(sk, SK_NET);
    if (!established)
        READ(event.reason, sk, SK_ERR);
    attempts.delete(&sk);
    emit(&event);
}

RAW_TRACEPOINT_PROBE(inet_sock_set_state) {
    u64 sk = ctx->args[0];
    int before = ctx->args[1], after = ctx->args[2];

    if (after == SYN_SENT)
        begin(sk);
    else if (before == SYN_SENT)
        end(sk, after == ESTABLISHED);
    return 0;
}

/* Fills both ends from a packet's headers; false for what is neither TCP nor UDP, or a later fragment. */
static inline bool packet_ends(u64 skb, struct event *event) {
    struct endpoint *source = &event->source, *destination = &event->destination;
    u64 head = 0, at;
    u16 network = 0, protocol = 0, fragment = 0;
    u8 first = 0, transport = 0;

    READ(head, skb, SKB_HEAD);
    READ(network, skb, SKB_NETWORK);
    READ(protocol, skb, SKB_PROTOCOL);
    if (!head || network == 0xffff)
        return false;
    at = head + network;
    READ(first, at, 0);
    if (protocol == bpf_htons(0x0800) && first >> 4 == 4) {
        READ(fragment, at, 6);
        if (fragment & bpf_htons(0x1fff))
            return false;
        READ(transport, at, 9);
        source->address[2] = destination->address[2] = MAPPED;
        READ(source->address[3], at, 12);
        READ(destination->address[3], at, 16);
        at += (first & 15) * 4;
    } else if (protocol == bpf_htons(0x86dd) && first >> 4 == 6) {
        READ(transport, at, 6);
        READ(source->address, at, 8);
        READ(destination->address, at, 24);
        at += 40;
    } else {
        return false;
    }
    if (transport != 6 && transport != 17)
        return false;
    source->protocol = destination->protocol = transport;
    READ(source->port, at, 0);
    READ(destination->port, at, 2);
    return true;
}

RAW_TRACEPOINT_PROBE(kfree_skb) {
    u64 skb = ctx->args[0], device = 0, sk = 0;
    struct event event = {};

    event.reason = ctx->args[2];
    if (event.reason < FIRST_REASON || event.reason == QUEUE_PURGE || !packet_ends(skb, &event))
        return 0;
    if (!watched.lookup(&event.destination) && !watched.lookup(&event.source))
        return 0;
    event.kind = 3;
    event.location = ctx->args[1];
    READ(device, skb, SKB_DEV);
    READ(sk, skb, SKB_SK);
    if (device)
        event.netns = netns_of(device, DEV_NET);
    else if (sk)
        event.netns = netns_of(sk, SK_NET);
    emit(&event);
    return 0;
}
"""

# What bcc's own helpers.h and bpf.h include. The `-include` of kconfig.h and the search paths are fixed in bcc.
_TYPES = """
#pragma once
typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __le16;
typedef __u32 __le32;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef __u64 __aligned_u64 __attribute__((aligned(8)));
typedef unsigned long size_t;
typedef long ssize_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;
enum { false, true };
#define NULL ((void *)0)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htons(x) __builtin_bswap16(x)
#else
#define bpf_htons(x) (x)
#endif
"""
_HEADERS = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "linux/types.h": _TYPES,
    "linux/version.h": "#define LINUX_VERSION_CODE 0x051100\n"
    "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n",
    "asm/page.h": "#define PAGE_SIZE 4096\n",
    "linux/bpf_common.h": "",
    "linux/log2.h": "",
    "uapi/linux/bpf.h": "",
    "uapi/linux/if_ether.h": "",
    "uapi/linux/if_packet.h": "",
    "uapi/linux/ptrace.h": "",
}


def write_headers(folder: Path) -> None:
    """Makes the folder what bcc takes for the kernel's source."""
    for name, text in _HEADERS.items():
        path = folder / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def macros(types: Btf, watched: int) -> list[str]:
    """Compiler flags for this kernel; `watched` is how many addresses there is room for. Raises TraceError."""
    values = {name: types.offset(path) for name, path in OFFSETS.items()}
    # Packets that had arrived: their socket was closed with them unread, as at the end of many connections.
    purge = next((number for number, name in types.enum(REASONS).items() if name == f"{PREFIX}QUEUE_PURGE"), 0)
    values |= {"WATCHED": watched, "QUEUE_PURGE": purge}
    return [f"-D{name}={value}" for name, value in values.items()]
