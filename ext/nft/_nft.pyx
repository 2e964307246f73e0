# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Raw NETLINK_NETFILTER for nftables elements: build, commit, dump, listen. See _nft.pyi for the public face.

Message layouts: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h. Netlink headers are in host
byte order, nftables' attribute values in network byte order.
"""

import errno as errnos
import os
import select
import socket as sockets
import struct
from collections import namedtuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

AF_INET = 2
AF_INET6 = 10

cdef enum:
    NLM_F_REQUEST = 0x1
    NLM_F_ACK = 0x4
    NLM_F_DUMP_INTR = 0x10
    NLM_F_ACK_TLVS = 0x200
    NLM_F_DUMP = 0x300
    NLM_F_CREATE = 0x400
    NLM_F_APPEND = 0x800
    NLMSG_ERROR = 2
    NLMSG_DONE = 3
    NLA_TYPE = 0x3FFF
    NLA_NESTED = 0x8000
    BATCH_BEGIN = 0x10
    BATCH_END = 0x11
    SUBSYSTEM = 10 << 8
    NEWRULE = 6
    GETRULE = 7
    NEWSET = 9
    NEWSETELEM = 12
    GETSETELEM = 13
    DELSETELEM = 14
    NEWGEN = 15
    GETGEN = 16
    SET_INTERVAL = 4
    SET_MAP = 8
    SET_TIMEOUT = 0x10
    SET_EVAL = 0x20
    SET_CONCAT = 0x80
    DATA_VERDICT = 0xFFFFFF00
    HEADER = 20  # nlmsghdr and nfgenmsg
    LIST_ROOM = 65000  # an attribute's length has 16 bits; an element takes up to about 400 bytes
    ELEMENT_ROOM = 512
    RECEIVE = 1 << 17

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_DROP_MEMBERSHIP = 2
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_ATTACH_FILTER = 26
_NFNLGRP_NFTABLES = 7
_DUMP_TRIES = 20

_VERDICTS = {"drop": 0, "accept": 1, "return": -5}
_VERDICT_NAMES = {0: "drop", 1: "accept", -5: "return", -3: "jump ", -4: "goto "}
_KINDS = {0: "table", 2: "table", 3: "chain", 5: "chain", 6: "rule", 8: "rule", 9: "set", 11: "set", 12: "element",
          14: "element", 18: "object", 20: "object", 22: "flowtable", 24: "flowtable"}
_REMOVALS = frozenset((2, 5, 8, 11, 14, 20, 24))

ElementError = namedtuple("ElementError", "errno message operation family table set_name key data")
Change = namedtuple("Change", "kind removed family table name portid")
Generation = namedtuple("Generation", "generation pid process portid")


class NetlinkError(OSError):
    """The kernel answered with an error."""


class Overrun(NetlinkError):
    """Messages were lost (ENOBUFS)."""


class BatchError(NetlinkError):
    """The transaction was refused as a whole."""

    def __init__(self, failures):
        self.failures = tuple(failures)
        first = self.failures[0]
        what = first.message or os.strerror(first.errno)
        if not first.set_name:
            place = "the transaction"
        else:
            element = "an element" if first.key is None else f"element {first.key.hex()}"
            place = f"the {first.operation} of {element} in {first.table} {first.set_name}"
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        super().__init__(first.errno, f"nftables refused {place}: {what}{more}")


def pad(bytes field):
    """The field padded with zeros to a multiple of four bytes."""
    cdef Py_ssize_t missing = -len(field) & 3
    return field + b"\0" * missing if missing else field


include "_batch.pxi"
include "_parse.pxi"


cdef bytes _name_attribute(int kind, str text):
    cdef bytes value = text.encode() + b"\0"
    return struct.pack("HH", 4 + len(value), kind) + pad(value)


def _open():
    """A non-blocking netlink socket with large buffers, extended acks, and acks that do not repeat the request."""
    try:
        handle = sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW | sockets.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise NetlinkError(error.errno, f"cannot open a netfilter netlink socket: {error.strerror}") from error
    try:
        handle.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            handle.setsockopt(_SOL_NETLINK, option, 1)
        _buffer_size(handle, _SO_RCVBUFFORCE, sockets.SO_RCVBUF, 8 << 20)
        handle.setblocking(False)
    except OSError:
        handle.close()
        raise
    return handle


def _buffer_size(handle, forced, plain, size):
    """Sets a socket buffer beyond the sysctl limit where allowed, up to the limit otherwise."""
    try:
        handle.setsockopt(sockets.SOL_SOCKET, forced, size)
    except PermissionError:
        handle.setsockopt(sockets.SOL_SOCKET, plain, size)


def _unsteady():
    return NetlinkError(errnos.EINTR, f"the ruleset changed during each of {_DUMP_TRIES} dumps; retry later")


class Socket:
    """A netlink socket in the network namespace the calling thread is in when it is made."""

    def __init__(self, timeout=10.0):
        self._socket = _open()
        self._timeout = timeout
        self._sequence = 0
        self._send_room = 0
        self._buffer = bytearray(RECEIVE)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    @property
    def portid(self):
        return self._socket.getsockname()[0]

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def commit(self, Batch batch not None):
        cdef _Buffer out = batch.buffer
        cdef size_t start, last, kept = out.used
        cdef uint32_t count = <uint32_t>len(batch.messages)
        if not count:
            return
        last = batch.messages[count - 1][0]
        (<uint16_t*>(out.data + last + 6))[0] |= NLM_F_ACK
        start = out.message(BATCH_END, NLM_F_REQUEST, count + 1, 0, be16_subsystem())
        out.finish(start)
        try:
            self._drain()
            self._send(<const uint8_t[:out.used]>(<uint8_t*>out.data))
        finally:
            out.used = kept
        self._answers(batch, count)

    def _drain(self):
        """Drops answers of an earlier request that was given up, which would be taken for this one's."""
        while True:
            try:
                self._socket.recv(RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errnos.ENOBUFS:
                    raise

    def _send(self, data):
        size = len(data)
        if size > self._send_room:
            _buffer_size(self._socket, _SO_SNDBUFFORCE, sockets.SO_SNDBUF, max(2 * size, 1 << 20))
            self._send_room = size
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            if error.errno == errnos.ENOBUFS:
                raise Overrun(error.errno, "netlink answers were lost: read back before retrying") from error
            raise NetlinkError(error.errno, f"cannot send {size} bytes to nftables: {error.strerror}") from error

    def _receive(self):
        """One datagram's messages as (type, flags, sequence, body); waits for it up to the timeout."""
        while True:
            found = self._received()
            if found is not None:
                return found
            if not self._poll.poll(self._timeout * 1000):
                raise TimeoutError(errnos.ETIMEDOUT, f"nftables did not answer within {self._timeout} s")

    def _received(self):
        """As `_receive`, but None where nothing has arrived."""
        try:
            size = self._socket.recv_into(self._buffer, RECEIVE)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errnos.ENOBUFS:
                raise Overrun(error.errno, "netlink answers were lost: read back before retrying") from error
            raise
        return _messages(self._buffer, size)

    def _answers(self, Batch batch, uint32_t count):
        """Reads acks until the last message's, or until the errors of a refused batch are all read."""
        failures = []
        acknowledged = False
        while True:
            answers = self._received()
            if answers is None:
                if failures:
                    raise BatchError(failures)
                if acknowledged:
                    return
                answers = self._receive()
            for kind, answer_flags, sequence, body in answers:
                if kind != NLMSG_ERROR:
                    continue
                number, message, offset = _error(answer_flags, body)
                if number:
                    failures.append(batch._failure(sequence, number, message, offset))
                elif sequence == count:
                    acknowledged = True

    def dump(self, int message, int family, bytes payload):
        for _ in range(_DUMP_TRIES):
            answers = self._dump_once(message, family, payload)
            if answers is not None:
                return answers
        raise _unsteady()

    def _dump_once(self, message, family, payload):
        """The answers of one dump, or None when a concurrent change made it inconsistent."""
        sequence = self._ask(message, NLM_F_REQUEST | NLM_F_DUMP, family, payload)
        answers = []
        interrupted = False
        while True:
            for kind, flags, answered, body in self._receive():
                if answered != sequence:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    number, text, _ = _error(flags, body)
                    if number == errnos.EINTR:
                        return None
                    raise NetlinkError(number, text or os.strerror(number))
                if kind == NLMSG_DONE:
                    return None if interrupted else answers
                answers.append(body)

    def _ask(self, message, flags, family, payload):
        self._drain()
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        head = struct.pack("=IHHIIBBH", HEADER + len(payload), message, flags, self._sequence, 0, family, 0, 0)
        self._send(head + payload)
        return self._sequence

    def request(self, int message, int flags, int family, bytes payload):
        sequence = self._ask(message, flags | NLM_F_REQUEST | NLM_F_ACK, family, payload)
        while True:
            for kind, answer_flags, answered, body in self._receive():
                if kind == NLMSG_ERROR and answered == sequence:
                    number, text, _ = _error(answer_flags, body)
                    if number:
                        raise NetlinkError(number, text or os.strerror(number))
                    return

    def _listed(self, table, family, set_name, counters):
        """The set's elements, each once. A hash table that the kernel is resizing lists some twice and others not."""
        payload = _name_attribute(1, table) + _name_attribute(2, set_name)
        for _ in range(_DUMP_TRIES):
            found, count = {}, 0
            for body in self.dump(SUBSYSTEM | GETSETELEM, family, payload):
                count += _collect(<bytes>body, found, counters)
            if len(found) == count:
                return found
        raise _unsteady()

    def elements(self, str table, int family, str set_name):
        return self._listed(table, family, set_name, False)

    def counters(self, str table, int family, str set_name):
        found = self._listed(table, family, set_name, True)
        return [(key, *_counter(counter)) for key, counter in found.items() if counter is not None]

    def rules(self, str table, int family):
        found = []
        for body in self.dump(SUBSYSTEM | GETRULE, family, _name_attribute(1, table)):
            values = _attributes(body[4:])
            if values[1].rstrip(b"\0").decode() == table:
                found.append((values[2].rstrip(b"\0").decode(), struct.unpack(">Q", values[3])[0], body[4:]))
        return found

    def generation(self):
        sequence = self._ask(SUBSYSTEM | GETGEN, NLM_F_REQUEST, 0, b"")
        while True:
            for kind, flags, answered, body in self._receive():
                if answered != sequence:
                    continue
                if kind == NLMSG_ERROR:
                    number, text, _ = _error(flags, body)
                    raise NetlinkError(number, text or os.strerror(number))
                return struct.unpack(">I", _attributes(body[4:])[1])[0]


class Events:
    """A subscription to nftables' change notifications in the current network namespace."""

    def __init__(self, ignore=None):
        self._socket = _open()
        self._buffer = bytearray(RECEIVE)
        try:
            if ignore is not None:
                _attach_filter(self._socket, ignore.portid)
            self.resume()
        except OSError:
            self._socket.close()
            raise

    def pause(self):
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def resume(self):
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def fileno(self):
        return self._socket.fileno()

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def read(self):
        found = []
        while True:
            try:
                size = self._socket.recv_into(self._buffer, RECEIVE)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errnos.ENOBUFS:
                    raise Overrun(error.errno, "nftables notifications were lost: read the ruleset back") from error
                raise
            _parse_events(self._buffer, size, found)


def _attach_filter(handle, portid):
    """A classic BPF program that drops notifications whose nlmsg_pid, at offset 12, is `portid`."""
    # Loads are big-endian while the header is in host order, so the constant is what such a load sees.
    seen = struct.unpack(">I", struct.pack("=I", portid))[0]
    program = b"".join(
        struct.pack("HBBI", *step) for step in ((0x20, 0, 0, 12), (0x15, 0, 1, seen), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF))
    )
    _attach(handle.fileno(), program)


cdef extern from "sys/socket.h":
    int setsockopt(int fd, int level, int option, const void* value, unsigned int length)


cdef extern from "linux/filter.h":
    struct sock_filter:
        pass
    struct sock_fprog:
        unsigned short len
        sock_filter* filter


cdef int _attach(int fd, bytes program) except -1:
    cdef sock_fprog fprog
    fprog.len = <unsigned short>(len(program) // 8)
    fprog.filter = <sock_filter*><char*>program
    if setsockopt(fd, sockets.SOL_SOCKET, _SO_ATTACH_FILTER, &fprog, sizeof(fprog)):
        raise NetlinkError(errnos.EINVAL, "cannot filter nftables notifications by their sender")
    return 0
