"""Services, EndpointSlices and Nodes in; versions and deltas of the route table out. Pure: no I/O, no clock.

Work is proportional to the change: an input marks the services it touches as dirty, and only those are compiled again.
Whatever has no order in the API (addresses, ranges, ports, backends, nodes, zones) is sorted, so that equal inputs
compile to equal messages (`messages.py` makes them) and a mere reordering is no version. A version is encoded once,
when it is made: every node's stream sends the same bytes. What is kept for nodes that resume is bounded in number and
in bytes; a node that is farther behind gets a snapshot, which is encoded once a version as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from lightkube.models.core_v1 import Node, Service
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice

from kernelet.proto import routes_pb2 as pb

from .messages import compile_peer, compile_service

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
GIVEN_UP = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
"""Taints by which, with effect NoExecute, the node lifecycle controller gives a node up."""
KEPT_DELTAS = 2048
"""How far back a node may resume without a snapshot."""
KEPT_BYTES = 16 << 20
"""Of all kept deltas together."""
_STANDING = pb.BACKEND_READY | pb.BACKEND_TERMINATING


@dataclass(slots=True)
class _Inputs:
    """What is known of one service."""

    service: Service | None = None
    slices: dict[str, EndpointSlice] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One feed message as it goes over the wire, shared by all streams."""

    generation: str
    base_version: int
    version: int
    data: bytes

    @classmethod
    def of(cls, message: pb.FeedMessage) -> Encoded:
        return cls(message.generation, message.base_version, message.version, message.SerializeToString())


def service_key(namespace: str | None, name: str | None) -> str:
    return f"{namespace}/{name}"


class Compiler:
    """The route table of one generation (the tenure of one leader)."""

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self.version = 0
        self._inputs: dict[str, _Inputs] = {}
        self._nodes: dict[str, Node] = {}
        self._services: dict[str, pb.Service] = {}
        self._peers: dict[str, pb.Peer] = {}
        self._dirty_services: set[str] = set()
        self._dirty_peers: set[str] = set()
        self._services_of_node = _Index()
        self._ready_in = _Index()  # pod uid -> services that route new connections to it
        self._deltas: deque[Encoded] = deque()  # without gaps, up to the newest version
        self._delta_bytes = 0
        self._snapshot: Encoded | None = None  # of the newest version, once somebody wanted it

    # Inputs

    def set_service(self, key: str, service: Service | None) -> None:
        self._inputs.setdefault(key, _Inputs()).service = service
        self._dirty_services.add(key)

    def set_slice(self, key: str, name: str, endpoint_slice: EndpointSlice | None) -> None:
        """`key` is the service's, from the slice's label kubernetes.io/service-name."""
        inputs = self._inputs.setdefault(key, _Inputs())
        if endpoint_slice is None:
            inputs.slices.pop(name, None)
        else:
            inputs.slices[name] = endpoint_slice
        self._dirty_services.add(key)

    def set_node(self, name: str, node: Node | None) -> None:
        """A node that is given up has its endpoints routed no more."""
        was_given_up = self.is_given_up(name)
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        self._dirty_peers.add(name)
        if was_given_up != self.is_given_up(name):
            self._dirty_services |= self._services_of_node[name]

    # What is known

    def is_live(self, name: str) -> bool:
        """Whether a node is Ready, so that it is waited for."""
        node = self._nodes.get(name)
        conditions = node.status.conditions if node and node.status else None
        return any(c.type == "Ready" and c.status == "True" for c in conditions or [])

    def is_given_up(self, name: str) -> bool:
        """Whether the pods of a node are routed to no more, since it is gone or the node lifecycle controller says so.

        Not merely not Ready: where all nodes fall silent at once it is not they who failed, and nobody is given up.
        """
        node = self._nodes.get(name)
        if node is None:
            return True
        taints = (node.spec.taints if node.spec else None) or []
        return any(taint.effect == "NoExecute" and taint.key in GIVEN_UP for taint in taints)

    def is_member(self, name: str) -> bool:
        """Whether there is such a node, live or not."""
        return name in self._nodes

    def live_nodes(self) -> list[str]:
        return [name for name in self._nodes if self.is_live(name)]

    def ready_services(self, uid: str) -> frozenset[str]:
        """The services that route new connections to this pod, in the newest version, until it is to end."""
        return self._ready_in[uid]

    # Outputs

    def flush(self) -> pb.FeedMessage | None:
        """Compiles what is dirty into the next version; None where nothing that nodes see has changed."""
        delta = pb.FeedMessage(generation=self.generation, base_version=self.version)
        for key in self._dirty_services:
            self._flush_service(key, delta)
        for name in self._dirty_peers:
            self._flush_peer(name, delta)
        self._dirty_services.clear()
        self._dirty_peers.clear()
        changed = delta.services or delta.removed_services or delta.peers or delta.removed_peers
        if not changed and self.version:
            return None
        # The first version exists even when it is empty: base 0 means a snapshot.
        self.version += 1
        delta.version = self.version
        self._keep(Encoded.of(delta))
        return delta

    def _keep(self, delta: Encoded) -> None:
        self._snapshot = None
        if not delta.base_version:
            return  # Whoever holds nothing gets the newest snapshot, not the first.
        self._deltas.append(delta)
        self._delta_bytes += len(delta.data)
        while self._deltas and (len(self._deltas) > KEPT_DELTAS or self._delta_bytes > KEPT_BYTES):
            self._delta_bytes -= len(self._deltas.popleft().data)

    def snapshot(self) -> pb.FeedMessage:
        return pb.FeedMessage(
            generation=self.generation,
            version=self.version,
            services=self._services.values(),
            peers=self._peers.values(),
        )

    def since(self, generation: str, version: int) -> list[Encoded]:
        """What a node that holds `version` needs: deltas in order, or one snapshot where they are gone."""
        missing = self.version - version
        if generation != self.generation or version <= 0 or missing < 0 or missing > len(self._deltas):
            if self._snapshot is None:
                self._snapshot = Encoded.of(self.snapshot())
            return [self._snapshot]
        found = list(islice(reversed(self._deltas), missing))
        found.reverse()
        return found

    def _flush_service(self, key: str, delta: pb.FeedMessage) -> None:
        inputs = self._inputs.get(key, _Inputs())
        compiled = None
        if inputs.service is not None:
            compiled = compile_service(key, inputs.service, inputs.slices.values(), self._flags)
        elif not inputs.slices:
            self._inputs.pop(key, None)
        self._index(key, inputs, compiled)
        before = self._services.get(key)
        if compiled is None:
            if before is not None:
                del self._services[key]
                delta.removed_services.append(key)
        elif compiled != before:
            self._services[key] = compiled
            delta.services.append(compiled)

    def _index(self, key: str, inputs: _Inputs, compiled: pb.Service | None) -> None:
        """Notes which nodes and which pods this service depends on.

        A pod that is ready while it terminates is so by the service's wish (publishNotReadyAddresses) until it is gone:
        nobody need wait for its withdrawal.
        """
        endpoints = [e for endpoint_slice in inputs.slices.values() for e in endpoint_slice.endpoints or []]
        self._services_of_node.set(key, {endpoint.nodeName for endpoint in endpoints if endpoint.nodeName})
        ready: set[str] = set()
        if compiled is not None:
            ready = {
                endpoint.targetRef.uid
                for endpoint in endpoints
                if endpoint.targetRef
                and endpoint.targetRef.uid
                and self._flags(endpoint) & _STANDING == pb.BACKEND_READY
            }
        self._ready_in.set(key, ready)

    def _flush_peer(self, name: str, delta: pb.FeedMessage) -> None:
        node = self._nodes.get(name)
        compiled = compile_peer(node) if node is not None else None
        before = self._peers.get(name)
        if compiled is None:
            if before is not None:
                del self._peers[name]
                delta.removed_peers.append(name)
        elif compiled != before:
            self._peers[name] = compiled
            delta.peers.append(compiled)

    def _flags(self, endpoint: Endpoint) -> int:
        if endpoint.nodeName and self.is_given_up(endpoint.nodeName):
            # They take nothing, whatever their last report said.
            return pb.BACKEND_NONE
        conditions = endpoint.conditions
        ready = conditions is None or conditions.ready is None or conditions.ready
        serving = ready if conditions is None or conditions.serving is None else conditions.serving
        terminating = bool(conditions and conditions.terminating)
        flags = pb.BACKEND_READY if ready else 0
        return flags | (pb.BACKEND_SERVING if serving else 0) | (pb.BACKEND_TERMINATING if terminating else 0)


class _Index:
    """Which services a node, or a pod, is part of. Holds nothing for those that are part of none."""

    def __init__(self) -> None:
        self._services: dict[str, set[str]] = {}
        self._members: dict[str, frozenset[str]] = {}

    def __getitem__(self, member: str) -> frozenset[str]:
        return frozenset(self._services.get(member, ()))

    def __len__(self) -> int:
        return len(self._services) + len(self._members)

    def set(self, service: str, members: Iterable[str]) -> None:
        now = frozenset(members)
        for member in self._members.pop(service, frozenset()) - now:
            services = self._services[member]
            services.discard(service)
            if not services:
                del self._services[member]
        for member in now:
            self._services.setdefault(member, set()).add(service)
        if now:
            self._members[service] = now
