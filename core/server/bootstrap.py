"""The objects every cluster has from its first start: namespaces, the API server's service, the DNS service."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from ..api.errors import JSON, AlreadyExists, NotFound
from ..api.kinds import KINDS
from ..security.users import SERVER
from .requests import Ref, WriteOptions

if TYPE_CHECKING:
    from .registry import Registry, RegistryConfig

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_OPTIONS = WriteOptions(field_manager="kernelet-apiserver", field_validation="Ignore")


async def ensure(registry: Registry, config: RegistryConfig) -> None:
    """Creates what is missing and leaves what is there; only the API server's own endpoint is kept current."""
    for name in NAMESPACES:
        await _create(registry, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
    await _create(registry, _kubernetes(config))
    await _create(registry, _dns(config))
    # Kubernetes forbids loopback endpoints: they would mean the pod itself.
    if config.advertise_host and not ipaddress.ip_address(config.advertise_host).is_loopback:
        for obj in _endpoints(config):
            await _keep(registry, obj)


def _ref(obj: JSON) -> Ref:
    return Ref(KINDS.of(obj), obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


async def _create(registry: Registry, obj: JSON) -> None:
    ref = _ref(obj)
    try:
        await registry.get(SERVER, ref)
    except NotFound:
        try:
            await registry.create(SERVER, Ref(ref.kind, ref.namespace), obj, _OPTIONS)
        except AlreadyExists:
            return  # another API server was faster


async def _keep(registry: Registry, obj: JSON) -> None:
    await _create(registry, obj)
    await registry.update(SERVER, _ref(obj), obj, _OPTIONS)


def _kubernetes(config: RegistryConfig) -> JSON:
    labels = {"component": "apiserver", "provider": "kubernetes"}
    ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}]
    spec = {"type": "ClusterIP", "clusterIP": config.kubernetes_service_ip, "ports": ports}
    return _service("default", "kubernetes", labels, spec)


def _dns(config: RegistryConfig) -> JSON:
    labels = {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
    ]
    # Local: every node has a DNS server of its own, which its pods reach by this one address.
    spec = {"type": "ClusterIP", "clusterIP": config.dns_service_ip, "ports": ports, "internalTrafficPolicy": "Local"}
    return _service("kube-system", "kube-dns", labels, spec)


def _service(namespace: str, name: str, labels: dict[str, str], spec: JSON) -> JSON:
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"kind": "Service", "apiVersion": "v1", "metadata": meta, "spec": spec}


def _endpoints(config: RegistryConfig) -> list[JSON]:
    host, port = config.advertise_host, {"name": "https", "port": config.advertise_port, "protocol": "TCP"}
    family = f"IPv{ipaddress.ip_address(host).version}"
    meta = {"name": "kubernetes", "namespace": "default"}
    slice_meta = meta | {"labels": {"kubernetes.io/service-name": "kubernetes"}}
    endpoint = {"addresses": [host], "conditions": {"ready": True}}
    return [
        {
            "kind": "Endpoints", "apiVersion": "v1",
            "metadata": meta | {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": host}], "ports": [port]}],
        },
        {
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": slice_meta,
            "addressType": family, "endpoints": [endpoint], "ports": [port],
        },
    ]  # fmt: skip
