"""Connected UDP sockets whose backend has left their service.

Nothing tells them: what they send is lost, and no hook sees it, since a connected socket names no peer. They are found
with sock_diag(7) in the node's network namespace and in those of the processes in the pods' cgroups, and disconnected
(SOCK_DESTROY): whoever waits for an answer sees ECONNABORTED, whoever sends EDESTADDRREQ, and both connect again. Map
`flows` says which sockets owe their peer to a service; those that connected to the backend themselves are left alone.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from kernelet.ext.bpf import ENDPOINT, FLOW_KEY, SCOPE_ADDRESS
from kernelet.ext.libbpf import Map
from kernelet.ext.netns import open_of_pid, run_in

from ...routes import Protocol
from ..engine import EngineConfig
from .kernel import netns_cookie
from .ledger import Held, Transition
from .plan import Key, distinct

_log = logging.getLogger(__name__)
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED: Final = 1 << 1
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48s")
"""inet_diag_req_v2: family, protocol, extensions, padding, states, inet_diag_sockid."""
_ID: Final = slice(4, 52)
"""Where inet_diag_msg has its inet_diag_sockid."""
_MAPPED: Final = bytes(10) + b"\xff\xff"
_BUFFER: Final = 1 << 16

StaleSockets = dict[bytes, set[Key]]
"""Endpoint -> the services that it has left."""


def stale(transition: Transition, held: Mapping[Key, Held]) -> StaleSockets:
    """The UDP endpoints that a transition takes from services; `held` is what was held before."""
    found: StaleSockets = {}
    for key, item in transition.held.items():
        before = held.get(key)
        if key[-2] != Protocol.UDP or key[-1] != SCOPE_ADDRESS or before is None:
            continue
        left = distinct(before.target.pool).difference(distinct(item.target.pool) if item else ())
        for endpoint in left:
            found.setdefault(endpoint, set()).add(key)
    return found


def release(stale_sockets: StaleSockets, flows: Map, config: EngineConfig) -> int:
    """Disconnects the sockets that still send to these endpoints; how many. To be called in the node's namespace."""
    count = 0
    for namespace in _namespaces(config):
        try:
            with run_in(namespace, _diag_socket) as diag:
                for family in (socket.AF_INET, socket.AF_INET6):
                    for identity in _stuck(diag, family, stale_sockets, flows):
                        count += _destroy(diag, family, identity)
        except OSError as error:
            _log.warning("UDP sockets may be stuck on backends that are gone: %s", error)
        finally:
            os.close(namespace)
    return count


def present_namespaces(config: EngineConfig) -> set[bytes]:
    """Cookies of the network namespaces of pods that run already: processes in the pods' cgroups are in them.

    A container's first process is in its cgroup for a moment before it leaves the namespace of whoever starts it, so
    only namespaces with an address in this node's pod subnets count.
    """
    found = set()
    for namespace in _namespaces(replace(config, host_cgroup=None)):
        try:
            if run_in(namespace, lambda: _is_pods(config)):
                found.add(run_in(namespace, netns_cookie))
        finally:
            os.close(namespace)
    return found


def _is_pods(config: EngineConfig) -> bool:
    """Whether the thread's network namespace would send to other pods from a pod's address."""
    for network in config.cluster_cidrs:
        with socket.socket(socket.AF_INET if network.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((str(network[1]), 9))  # sends nothing
            except OSError:
                continue  # no way there
            own = ip_address(probe.getsockname()[0])
            if any(own in subnet for subnet in config.pod_cidrs):
                return True
    return False


def _diag_socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    made.settimeout(5)
    return made


def _namespaces(config: EngineConfig) -> Iterator[int]:
    """A descriptor of each network namespace that is served; the caller closes it."""
    seen = set()
    for descriptor in _all_namespaces(config):
        number = os.fstat(descriptor).st_ino
        if number in seen:
            os.close(descriptor)
        else:
            seen.add(number)
            yield descriptor


def _all_namespaces(config: EngineConfig) -> Iterator[int]:
    """The same, with as many for one namespace as processes are in it."""
    if config.host_cgroup is not None:
        yield os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    for cgroup in config.cgroups:
        for file in cgroup.rglob("cgroup.procs"):
            for pid in _pids(file):
                with suppress(FileNotFoundError):  # it has ended
                    yield open_of_pid(pid)


def _pids(file: Path) -> list[int]:
    try:
        return [pid for text in file.read_text().split() if (pid := int(text))]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []  # the cgroup is gone, or is a threaded one, whose processes its parent lists
        raise


def _stuck(diag: socket.socket, family: int, stale_sockets: StaleSockets, flows: Map) -> list[bytes]:
    """Identities (inet_diag_sockid) of the sockets to disconnect."""
    found = []
    for message in _dump(diag, family):
        identity = message[_ID]
        address = identity[20:36] if family == socket.AF_INET6 else _MAPPED + identity[20:24]
        endpoint = address + identity[2:4] + b"\0\0"
        services = stale_sockets.get(endpoint)
        if services is None:
            continue
        (cookie,) = struct.unpack("=Q", identity[40:48])
        told = flows.lookup(FLOW_KEY.pack(cookie, *ENDPOINT.unpack(endpoint), 0))
        if told is not None and any(told[:18] == key[:18] for key in services):
            found.append(identity)
    return found


def _dump(diag: socket.socket, family: int) -> Iterator[bytes]:
    """inet_diag_msg of each connected UDP socket. Raises OSError."""
    body = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, 0, _ESTABLISHED, bytes(48))
    diag.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0) + body)
    while True:
        data = diag.recv(_BUFFER)
        while data:
            size, kind, *_ = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise _refusal(data, "list UDP sockets with sock_diag")
            yield data[_HEADER.size : size]
            data = data[(size + 3) & ~3 :]


def _destroy(diag: socket.socket, family: int, identity: bytes) -> bool:
    """False where the socket is gone already. Raises OSError."""
    body = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, 0, _ESTABLISHED, identity)
    diag.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DESTROY, _NLM_F_REQUEST | _NLM_F_ACK, 0, 0) + body)
    error = _refusal(diag.recv(_BUFFER), "disconnect a UDP socket with sock_diag (it needs CONFIG_INET_DIAG_DESTROY)")
    if error.errno == errno.ENOENT:
        return False
    if error.errno:
        raise error
    return True


def _refusal(data: bytes, deed: str) -> OSError:
    (code,) = struct.unpack_from("=i", data, _HEADER.size)
    return OSError(-code, f"cannot {deed}: {os.strerror(-code)}")
