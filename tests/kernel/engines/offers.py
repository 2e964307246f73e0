"""What a Service promises, row by row, and which engine cannot keep a promise by its nature.

docs/services.md holds the same table.
A test says which row it stands for, and runs for every engine that offers it.
"""

from __future__ import annotations

from typing import Final

import pytest

ENGINES: Final = ("nftables", "ebpf", "userspace")

_LISTENERS = "the listeners speak TCP and UDP"
_TWO_CONNECTIONS = "a backend's connection is the proxy's own, from the node's address"
_CARRIER = "connections end with the process that carries them"
_OUTSIDERS = "sockets are translated where the client is; a router's client has none here"

ROWS: Final[dict[str, dict[str, str]]] = {
    "ClusterIP: TCP": {},
    "ClusterIP: UDP": {},
    "ClusterIP: SCTP": {"userspace": _LISTENERS},
    "ClusterIP: IPv6 and dual-stack": {},
    "ClusterIP: from pods and from the node": {},
    "ClusterIP: from outside the cluster, where routes lead to the node": {"ebpf": _OUTSIDERS},
    "several ports, named target ports": {},
    "NodePort: every address of the node": {},
    "NodePort: 127.0.0.1": {},
    "externalIPs": {},
    "load-balancer ingress addresses": {},
    "loadBalancerSourceRanges": {},
    "sessionAffinity: ClientIP": {},
    "internalTrafficPolicy: Local": {},
    "externalTrafficPolicy: Local": {},
    "publishNotReadyAddresses": {},
    "serving endpoints that terminate, as the last resort": {},
    "topology hints": {},
    "weights": {},
    "no endpoints: refused at once": {},
    "a pod reaches itself through its service": {},
    "a UDP client whose backend goes reaches another": {},
    "a pod's address is kept, pod to pod": {"userspace": _TWO_CONNECTIONS},
    "a client's address is kept under externalTrafficPolicy: Local": {"userspace": _TWO_CONNECTIONS},
    "a connection outlives changes of its service": {},
    "connections outlive the engine, and new ones are made without it": {"userspace": _CARRIER},
    "a version is applied whole or not at all, also under kill -9": {"userspace": _CARRIER},
    "connections are counted": {},
    "one address, two services: the first by name has it": {},
    "what others change is repaired within a second": {},
    "after any changes the kernel equals the table": {},
}
"""Row -> the engines that do not offer it, and why."""


def row(name: str) -> pytest.MarkDecorator:
    """The test stands for this row; it runs for all engines that offer it."""
    offering = [engine for engine in ENGINES if engine not in ROWS[name]]
    return pytest.mark.parametrize("proxy", offering, indirect=True, scope="module")
