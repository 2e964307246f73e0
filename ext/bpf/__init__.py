"""BPF programs, and the layouts of what they share with userspace.

Promises: `CONNECT` is the compiled object of the socket programs, and each `struct.Struct` in here packs and unpacks
exactly the C struct of the same name in structs.h (tests compare them with the object's BTF). `CHOOSE` asks the same
maps for a backend without a socket. Depends on nothing; the objects are built with clang when Kernelet is installed.
Never loads or attaches anything.

Addresses have 16 bytes, IPv4 ones mapped into IPv6 (RFC 4291, section 2.5.5.2), so that nothing is written twice.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Final

__all__ = [
    "AFFINITY_KEY",
    "AFFINITY",
    "BACKEND_KEY",
    "CHOOSE",
    "CHOSEN",
    "CONFIG",
    "CONNECT",
    "COUNTER",
    "ENDPOINT",
    "FLAG_CONSISTENT",
    "FLAG_GONE",
    "FLAG_PACKETS",
    "FLOW_KEY",
    "HOOKS",
    "LAYOUTS",
    "MEMBER_KEY",
    "NO_SERVICE",
    "QUESTION",
    "REFUSED",
    "SCOPE_ADDRESS",
    "SCOPE_NODE_PORT",
    "SERVICE",
    "SERVICE_KEY",
]

CONNECT: Final = Path(__file__).with_name("connect.bpf.o")
CHOOSE: Final = Path(__file__).with_name("choose.bpf.o")

SERVICE_KEY: Final = Struct("=16s2sBB")
"""Address, port in network order, protocol, scope."""
SERVICE: Final = Struct("=IIIIII")
"""Set, number of its slots, seconds of affinity, flags, place in the map counters, nothing."""
BACKEND_KEY: Final = Struct("=II")
"""Set, slot."""
ENDPOINT: Final = Struct("=16s2sH")
"""Address, port in network order, nothing."""
MEMBER_KEY: Final = Struct("=I16s2sH")
"""Set, then an endpoint."""
AFFINITY_KEY: Final = Struct("=Q16s2sBBI")
"""Client, then a service key, nothing."""
AFFINITY: Final = Struct("=Q16s2sHI")
"""Nanoseconds since boot when last used, then an endpoint, nothing."""
FLOW_KEY: Final = Struct("=Q16s2sHI")
"""Socket cookie, then the endpoint that it talks to, nothing."""
COUNTER: Final = Struct("=QQ")
"""Connections, refusals."""
CONFIG: Final = Struct("=Q")
"""Cookie of the node's network namespace."""
QUESTION: Final = Struct("=16s2sBBIQ16s2sHI")
"""Of `CHOOSE`: a service key, the set (out), the client, the backend (out), nothing. It returns a verdict."""

LAYOUTS: Final = {
    "service_key": SERVICE_KEY,
    "service": SERVICE,
    "backend_key": BACKEND_KEY,
    "endpoint": ENDPOINT,
    "member_key": MEMBER_KEY,
    "affinity_key": AFFINITY_KEY,
    "affinity": AFFINITY,
    "flow_key": FLOW_KEY,
    "counter": COUNTER,
    "config": CONFIG,
}
"""The C struct's name -> its layout, for the structs that cross into userspace."""

# consts.h
SCOPE_ADDRESS: Final = 0
SCOPE_NODE_PORT: Final = 1
FLAG_GONE: Final = 1
FLAG_CONSISTENT: Final = 2
FLAG_PACKETS: Final = 4

# enum verdict (balance.h)
NO_SERVICE: Final = 0
CHOSEN: Final = 1
REFUSED: Final = 2

HOOKS: Final = (
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
)
"""Cgroup hooks; `CONNECT` has two programs for each, `pod_<hook>` and `host_<hook>`."""
