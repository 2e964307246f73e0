"""Builds ext/netns/_netns: what Python 3.11's os module lacks of network namespaces (setns(2))."""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("int kl_enter_netns(int fd);")
ffibuilder.set_source(
    "kernelet.ext.netns._netns",
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <sched.h>

    /* 0, or the errno of setns(2). Moves the calling thread only. */
    static int kl_enter_netns(int fd) {
        return setns(fd, CLONE_NEWNET) == 0 ? 0 : errno;
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
