"""Makes what a cluster needs before its first process starts: certificates, kubeconfigs, the list of units.

All of it is made up front, so that every process can start at once and simply tries again until its peers answer.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from kernelet.core.security.kubeconfig import write_kubeconfig
from kernelet.core.security.pki import Pki

from .paths import ClusterPaths
from .spec import Unit

REST_PORT, GRPC_PORT, TOKEN_PORT, ROUTES_PORT, KUBELET_PORT = 6443, 6444, 6445, 6446, 10250

ETCD_CLIENT, ETCD_PEER = "127.0.0.1:2379", "127.0.0.1:2380"


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """How a cluster's control plane is reached."""

    paths: ClusterPaths
    address: str
    """As nodes see it."""
    public_url: str
    """The REST face as kubectl on this host sees it."""
    store: str = ""
    """Store URL; "" for sqlite beside the cluster's state, "etcd" for an etcd of the cluster's own."""
    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    dns_address: str = "10.96.0.10"
    toleration_seconds: int = 30


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """One node and how it reaches its control plane."""

    paths: ClusterPaths
    node: str
    address: str
    docker_socket: str
    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    dns_address: str = "10.96.0.10"
    engine: str = "auto"


def kernelet_command() -> list[str]:
    """How this installation's `kernelet` is started again."""
    beside = Path(sys.executable).parent / "kernelet"
    found = str(beside) if beside.exists() else shutil.which("kernelet")
    return [found] if found else [sys.executable, "-m", "kernelet.core.cli.main"]


def prepare_control_plane(plane: ControlPlane) -> Pki:
    """The CA and the control plane's kubeconfigs. Raises PkiError, KubeconfigError."""
    paths = plane.paths
    pki = Pki.ensure(paths.pki)
    admin = pki.issue("admin", "kubernetes-admin", ["system:masters"], server=False, client=True).read()
    controllers = pki.issue(
        "controllers",
        "system:kernelet-control-plane",
        ["system:masters"],
        sans=["kernelet-routes", "localhost", "127.0.0.1", plane.address],
        server=True,
        client=True,
    ).read()
    socket = f"unix://{paths.registry_socket}"
    write_kubeconfig(paths.admin_kubeconfig, plane.public_url, pki.ca_pem, *admin, paths.name, socket)
    write_kubeconfig(
        paths.controllers_kubeconfig, plane.public_url, pki.ca_pem, *controllers, paths.name, socket, user="controllers"
    )
    return pki


def prepare_node(pki: Pki, node: NodeIdentity, plane_address: str) -> None:
    """A node's certificate, which serves its HTTPS endpoint as well, and its kubeconfig."""
    cert, key = pki.issue(
        f"node-{node.node}",
        f"system:node:{node.node}",
        ["system:nodes"],
        sans=[node.node, node.address],
        server=True,
        client=True,
    ).read()
    write_node_files(node, plane_address, pki.ca_pem, cert, key)


def write_node_files(node: NodeIdentity, plane_address: str, ca: bytes, cert: bytes, key: bytes) -> None:
    """What the node's process reads: kubeconfig, certificate and key of its HTTPS endpoint, CA."""
    folder = node.paths.node(node.node)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_kubeconfig(
        folder / "kubeconfig",
        f"https://{plane_address}:{REST_PORT}",
        ca,
        cert,
        key,
        node.paths.name,
        f"{plane_address}:{GRPC_PORT}",
        user=f"system:node:{node.node}",
    )
    for name, data in (("kubelet.crt", cert), ("kubelet.key", key), ("ca.crt", ca)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)


def control_plane_units(plane: ControlPlane, netns: str = "", listen: str = "") -> list[Unit]:
    """The API server and the controllers, in `netns` if given; `listen` is the REST face's address outside of it."""
    paths = plane.paths
    kernelet = kernelet_command()
    own_etcd = plane.store == "etcd"
    store = f"etcd://{ETCD_CLIENT}" if own_etcd else plane.store or f"sqlite://{paths.state / 'store.db'}"
    apiserver = [
        *kernelet, "apiserver",
        "--store", store,
        "--data-dir", str(paths.state),
        "--advertise-address", plane.address,
        "--public-url", plane.public_url,
        "--unix-socket", str(paths.registry_socket),
        "--service-cidr", plane.service_cidr,
        "--default-toleration-seconds", str(plane.toleration_seconds),
    ]  # fmt: skip
    controllers = [
        *kernelet, "controllers",
        "--kubeconfig", str(paths.controllers_kubeconfig),
        "--cluster-cidr", plane.cluster_cidr,
        "--bind", "0.0.0.0",
        "--routes-port", str(ROUTES_PORT),
        "--advertise-address", plane.address,
        "--routes-socket", str(paths.run / "routes.sock"),
    ]  # fmt: skip
    units = [Unit("apiserver", tuple(apiserver), netns, listen), Unit("controllers", tuple(controllers), netns)]
    return [_etcd_unit(paths, netns), *units] if own_etcd else units


def _etcd_unit(paths: ClusterPaths, netns: str) -> Unit:
    """Debian's etcd, for this cluster alone, on loopback."""
    argv = [
        "etcd",
        "--name", paths.name,
        "--data-dir", str(paths.state / "etcd"),
        "--listen-client-urls", f"http://{ETCD_CLIENT}",
        "--advertise-client-urls", f"http://{ETCD_CLIENT}",
        "--listen-peer-urls", f"http://{ETCD_PEER}",
        "--initial-advertise-peer-urls", f"http://{ETCD_PEER}",
        "--initial-cluster", f"{paths.name}=http://{ETCD_PEER}",
        "--logger", "zap",
    ]  # fmt: skip
    return Unit("etcd", tuple(argv), netns)


def node_unit(node: NodeIdentity, netns: str = "") -> Unit:
    """All agents of one node in one process."""
    folder = node.paths.node(node.node)
    argv = [
        *kernelet_command(), "node",
        "--name", node.node,
        "--cluster", node.paths.name,
        "--kubeconfig", str(folder / "kubeconfig"),
        "--node-ip", node.address,
        "--data-dir", str(folder),
        "--docker-socket", node.docker_socket,
        "--cluster-cidr", node.cluster_cidr,
        "--service-cidr", node.service_cidr,
        "--dns-address", node.dns_address,
        "--engine", node.engine,
    ]  # fmt: skip
    return Unit(node.node, tuple(argv), netns)
