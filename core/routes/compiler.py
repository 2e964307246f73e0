"""Services, EndpointSlices and Nodes in; versions and deltas of the route table out. Pure: no I/O, no clock.

Work is proportional to the change: an input marks the services it touches as dirty, and only those are compiled again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from lightkube.models.core_v1 import Node, Service
from lightkube.models.core_v1 import ServicePort as ModelPort
from lightkube.models.discovery_v1 import Endpoint, EndpointSlice

from kernelet.proto import routes_pb2 as pb

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
VTEP_MAC_ANNOTATION = "kernelet.dev/vtep-mac"
KEPT_DELTAS = 2048
"""How far back a node may resume without a snapshot."""

_PROTOCOLS = {"TCP": pb.TCP, "UDP": pb.UDP, "SCTP": pb.SCTP}
_FAMILIES = {"IPv4": 4, "IPv6": 16}


@dataclass(slots=True)
class _Inputs:
    """What is known of one service."""

    service: Service | None = None
    slices: dict[str, EndpointSlice] = field(default_factory=dict)


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
        self._services_of_node: dict[str, set[str]] = {}
        self._ready_in: dict[str, set[str]] = {}  # pod uid -> services that route new connections to it
        self._ready_of: dict[str, frozenset[str]] = {}  # service -> pod uids
        self._deltas: deque[pb.FeedMessage] = deque(maxlen=KEPT_DELTAS)

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
        """A node's readiness decides whether its endpoints are routed at all."""
        was_ready = self.is_live(name)
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        self._dirty_peers.add(name)
        if was_ready != self.is_live(name):
            self._dirty_services |= self._services_of_node.get(name, set())

    # What is known

    def is_live(self, name: str) -> bool:
        """Whether a node is Ready, so that it is waited for and its pods are routed to."""
        node = self._nodes.get(name)
        conditions = node.status.conditions if node and node.status else None
        return any(c.type == "Ready" and c.status == "True" for c in conditions or [])

    def live_nodes(self) -> list[str]:
        return [name for name in self._nodes if self.is_live(name)]

    def ready_services(self, uid: str) -> frozenset[str]:
        """The services that route new connections to this pod, in the newest version."""
        return frozenset(self._ready_in.get(uid, ()))

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
        self._deltas.append(delta)
        return delta

    def snapshot(self) -> pb.FeedMessage:
        return pb.FeedMessage(
            generation=self.generation,
            version=self.version,
            services=self._services.values(),
            peers=self._peers.values(),
        )

    def since(self, generation: str, version: int) -> list[pb.FeedMessage]:
        """What a node that holds `version` needs: deltas in order, or one snapshot where they are gone."""
        if generation != self.generation or version <= 0 or version > self.version:
            return [self.snapshot()]
        missing = [delta for delta in self._deltas if delta.version > version]
        if len(missing) != self.version - version:
            return [self.snapshot()]
        return missing

    def _flush_service(self, key: str, delta: pb.FeedMessage) -> None:
        inputs = self._inputs.get(key, _Inputs())
        compiled = None
        if inputs.service is not None:
            compiled = self._compile(key, inputs.service, inputs.slices.values())
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
        """Notes which nodes and which pods this service depends on."""
        nodes = {e.nodeName for s in inputs.slices.values() for e in s.endpoints or [] if e.nodeName}
        for name in nodes:
            self._services_of_node.setdefault(name, set()).add(key)
        ready: frozenset[str] = frozenset()
        if compiled is not None:
            ready = frozenset(
                endpoint.targetRef.uid
                for endpoint_slice in inputs.slices.values()
                for endpoint in endpoint_slice.endpoints or []
                if endpoint.targetRef and endpoint.targetRef.uid and self._flags(endpoint) & pb.BACKEND_READY
            )
        for uid in self._ready_of.pop(key, frozenset()) - ready:
            services = self._ready_in[uid]
            services.discard(key)
            if not services:
                del self._ready_in[uid]
        for uid in ready:
            self._ready_in.setdefault(uid, set()).add(key)
        if ready:
            self._ready_of[key] = ready

    def _flush_peer(self, name: str, delta: pb.FeedMessage) -> None:
        node = self._nodes.get(name)
        compiled = _compile_peer(node) if node is not None else None
        before = self._peers.get(name)
        if compiled is None:
            if before is not None:
                del self._peers[name]
                delta.removed_peers.append(name)
        elif compiled != before:
            self._peers[name] = compiled
            delta.peers.append(compiled)

    def _flags(self, endpoint: Endpoint) -> int:
        if endpoint.nodeName and endpoint.nodeName in self._nodes and not self.is_live(endpoint.nodeName):
            return pb.BACKEND_NONE  # A silent node's pods take nothing, whatever their last report said.
        conditions = endpoint.conditions
        ready = conditions is None or conditions.ready is None or conditions.ready
        serving = ready if conditions is None or conditions.serving is None else conditions.serving
        terminating = bool(conditions and conditions.terminating)
        flags = pb.BACKEND_READY if ready else 0
        return flags | (pb.BACKEND_SERVING if serving else 0) | (pb.BACKEND_TERMINATING if terminating else 0)

    def _compile(self, key: str, service: Service, slices: Iterable[EndpointSlice]) -> pb.Service | None:
        spec = service.spec
        if spec is None or spec.type == "ExternalName" or spec.clusterIP in (None, "", "None"):
            return None
        compiled = pb.Service(
            id=key,
            cluster_ips=[ip_address(text).packed for text in spec.clusterIPs or [spec.clusterIP]],
            external_local=spec.externalTrafficPolicy == "Local",
            internal_local=spec.internalTrafficPolicy == "Local",
            affinity_seconds=_affinity(service),
            external_ips=sorted(ip_address(text).packed for text in _external(service)),
        )
        node_numbers: dict[str, int] = {}
        ordered = sorted(slices, key=lambda s: (s.metadata.name if s.metadata else None) or "")
        for port in spec.ports or []:
            compiled.ports.append(self._compile_port(port, ordered, node_numbers))
        compiled.nodes.extend(node_numbers)
        return compiled

    def _compile_port(
        self, port: ModelPort, slices: Iterable[EndpointSlice], node_numbers: dict[str, int]
    ) -> pb.ServicePort:
        packed: dict[int, set[bytes]] = {4: set(), 16: set()}
        for endpoint_slice in slices:
            size = _FAMILIES.get(endpoint_slice.addressType)
            target = _target_port(endpoint_slice, port)
            if size is None or target is None:
                continue
            for endpoint in endpoint_slice.endpoints or []:
                flags = self._flags(endpoint)
                if not flags:
                    continue
                number = node_numbers.setdefault(endpoint.nodeName, len(node_numbers) + 1) if endpoint.nodeName else 0
                tail = target.to_bytes(2, "big") + bytes([flags]) + number.to_bytes(2, "big")
                packed[size].update(ip_address(text).packed + tail for text in endpoint.addresses)
        return pb.ServicePort(
            name=port.name or "",
            protocol=_PROTOCOLS.get(port.protocol or "TCP", pb.PROTOCOL_UNSPECIFIED),
            port=port.port,
            node_port=port.nodePort or 0,
            backends4=b"".join(sorted(packed[4])),
            backends6=b"".join(sorted(packed[16])),
        )


def _target_port(endpoint_slice: EndpointSlice, port: ModelPort) -> int | None:
    """A slice's port is matched by name and protocol, as its own numbers may differ from slice to slice."""
    for candidate in endpoint_slice.ports or []:
        same_name = (candidate.name or "") == (port.name or "")
        if same_name and (candidate.protocol or "TCP") == (port.protocol or "TCP"):
            return candidate.port
    return None


def _affinity(service: Service) -> int:
    spec = service.spec
    if spec is None or spec.sessionAffinity != "ClientIP":
        return 0
    config = spec.sessionAffinityConfig
    client_ip = config.clientIP if config else None
    return (client_ip.timeoutSeconds if client_ip else None) or 10800


def _external(service: Service) -> set[str]:
    found = set((service.spec.externalIPs if service.spec else None) or [])
    balancer = service.status.loadBalancer if service.status else None
    found |= {entry.ip for entry in (balancer.ingress if balancer else None) or [] if entry.ip}
    return found


def _compile_peer(node: Node) -> pb.Peer | None:
    """None until the node has a pod subnet and an address."""
    spec, status = node.spec, node.status
    cidrs = (spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])) if spec else []
    addresses = [a.address for a in (status.addresses if status else None) or [] if a.type == "InternalIP"]
    if not cidrs or not addresses or node.metadata is None:
        return None
    mac = (node.metadata.annotations or {}).get(VTEP_MAC_ANNOTATION, "")
    return pb.Peer(node=node.metadata.name or "", pod_cidrs=cidrs, address=addresses[0], vtep_mac=mac)
