"""Which container, on which kubelet: read from the Pod and its Node."""

from __future__ import annotations

from ..api import codec
from ..api.errors import JSON, BadRequest, NotFound, ServiceUnavailable
from ..api.kinds import KINDS
from ..security.users import SERVER, User
from .nodeproxy import ContainerTarget, NodeTarget
from .registry import Registry
from .requests import Ref

KUBELET_PORT = 10250
_LISTS = ("containers", "initContainers", "ephemeralContainers")
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


async def locate(registry: Registry, user: User, ref: Ref, container: str, verb: str) -> ContainerTarget:
    """The container that `ref` (a pod's `log`, `exec` or `attach`) is about; `container` "" means the default one.

    Raises Forbidden; NotFound without such a pod; BadRequest where the container is unknown or must be named, or the
    pod has no node yet; ServiceUnavailable where the node is gone or has no address.
    """
    registry.authorizer.check(user, verb, "", "pods", ref.namespace, ref.name, ref.subresource)
    pod = codec.decode(await registry.get(SERVER, Ref(ref.kind, ref.namespace, ref.name)))
    chosen = choose_container(pod, container)
    node = (pod.get("spec") or {}).get("nodeName") or ""
    if not node:
        raise BadRequest(f"pod {ref.name} does not have a host assigned: wait until it is scheduled", name=ref.name)
    host, port = await _kubelet(registry, node)
    return ContainerTarget(node, host, port, ref.namespace, ref.name, chosen)


async def locate_node(registry: Registry, user: User, name: str) -> NodeTarget:
    """The kubelet of a node, for whoever may read nodes/proxy.

    Raises Forbidden; NotFound without such a node; ServiceUnavailable where it has no address.
    """
    registry.authorizer.check(user, "get", "", "nodes", "", name, "proxy")
    await registry.get(SERVER, Ref(KINDS.by_kind("v1", "Node"), "", name))
    return NodeTarget(name, *await _kubelet(registry, name))


def choose_container(pod: JSON, wanted: str) -> str:
    """`wanted`, or the pod's only or default container. Raises BadRequest in Kubernetes' words."""
    meta, spec = pod["metadata"], pod.get("spec") or {}
    names = [one["name"] for field in _LISTS for one in spec.get(field) or []]
    mains = [one["name"] for one in spec.get("containers") or []]
    chosen = wanted or (meta.get("annotations") or {}).get(_DEFAULT_CONTAINER) or (mains[0] if len(mains) == 1 else "")
    if not chosen:
        choices = " ".join(mains)
        raise BadRequest(f"a container name must be specified for pod {meta['name']}, choose one of: [{choices}]")
    if chosen not in names:
        raise BadRequest(f"container {chosen} is not valid for pod {meta['name']}, choose one of: [{' '.join(names)}]")
    return str(chosen)


async def _kubelet(registry: Registry, node: str) -> tuple[str, int]:
    try:
        wire = await registry.get(SERVER, Ref(KINDS.by_kind("v1", "Node"), "", node))
    except NotFound as error:
        raise ServiceUnavailable(f"node {node} is gone: its pods cannot be reached", name=node) from error
    status = codec.decode(wire).get("status") or {}
    addresses = {entry.get("type"): entry.get("address") for entry in status.get("addresses") or []}
    host = addresses.get("InternalIP") or addresses.get("ExternalIP")
    if not host:
        raise ServiceUnavailable(f"node {node} has no address in its status: is its kubelet running?", name=node)
    endpoint = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
    return str(host), int(endpoint.get("Port") or KUBELET_PORT)
