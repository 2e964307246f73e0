/* One choice of a backend, asked for from userspace with BPF_PROG_TEST_RUN: what the socket programs would do, without
 * a socket. The kernel runs programs of their own type only for sockets. */

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "balance.h"

char LICENSE[] SEC("license") = "GPL";

struct question {
    struct service_key service;
    __u32 set; /* out */
    __u64 client;
    struct endpoint backend; /* out */
    __u32 zero;
};

SEC("syscall")
int choose_backend(struct question *question) {
    struct service_key key = question->service;
    struct endpoint backend = {};
    __u32 set = 0, counter = 0;
    int verdict = choose(&key, question->client, &backend, &set, &counter);

    question->set = set;
    question->backend = backend;
    return verdict;
}
