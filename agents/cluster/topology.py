"""Nodes as network namespaces: one namespace a node, one for the control plane, joined by a bridge inside the latter.

Nothing is made in the host's own namespace, so clusters neither meet each other nor the host's addresses, and each may
use the same subnet.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

SUBNET = "172.30.0"
GATEWAY = f"{SUBNET}.1"
"""The control plane's address: the API server as nodes see it, and their default route."""
PREFIX_LENGTH = 24
BRIDGE = "klsw0"
NETNS_ROOT = Path("/run/netns")
FIRST_NODE = 11


class TopologyError(Exception):
    """iproute2 refused; the message holds its words."""


def control_netns(cluster: str) -> str:
    return f"kl-{cluster}"


def node_netns(cluster: str, node: str) -> str:
    return f"kl-{cluster}-{node}"


def netns_path(name: str) -> str:
    return str(NETNS_ROOT / name)


def node_address(number: int) -> str:
    """Of the number-th node, counted from 1."""
    return f"{SUBNET}.{FIRST_NODE - 1 + number}"


def create_control(cluster: str) -> None:
    """The control plane's namespace with its bridge; what exists is kept."""
    name = control_netns(cluster)
    if not (NETNS_ROOT / name).exists():
        _ip("netns", "add", name)
    _batch(
        name,
        [
            "link set lo up",
            # A bridge without an address of its own takes the lowest of its ports', which changes as nodes come and go.
            *([] if _has_link(name, BRIDGE) else [f"link add {BRIDGE} address {mac(GATEWAY)} type bridge"]),
            f"addr replace {GATEWAY}/{PREFIX_LENGTH} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ],
    )


def create_node(cluster: str, node: str, address: str) -> None:
    """A node's namespace with eth0 on the cluster's bridge; what exists is kept."""
    name, control = node_netns(cluster, node), control_netns(cluster)
    port = port_name(address)
    if not (NETNS_ROOT / name).exists():
        _ip("netns", "add", name)
    if not _has_link(name, "eth0"):
        _batch(control, [f"link add {port} type veth peer name eth0 address {mac(address)} netns {name}"])
    _batch(control, [f"link set {port} master {BRIDGE} up"])
    _batch(
        name,
        [
            "link set lo up",
            f"addr replace {address}/{PREFIX_LENGTH} dev eth0",
            "link set eth0 up",
            f"route replace default via {GATEWAY}",
        ],
    )


def delete_node(cluster: str, node: str) -> None:
    """Takes the node off the network, with all its kernel state, as losing its power would."""
    delete_namespace(node_netns(cluster, node))


def delete_all(cluster: str) -> list[str]:
    """Removes every namespace of the cluster; returns their names."""
    mine = control_netns(cluster)
    found = [name for name in namespaces() if name == mine or name.startswith(f"{mine}-")]
    for name in found:
        delete_namespace(name)
    return found


def namespaces() -> list[str]:
    """Names of all of Kernelet's network namespaces on this host."""
    return sorted(path.name for path in NETNS_ROOT.glob("kl-*")) if NETNS_ROOT.exists() else []


def mac(address: str) -> str:
    """Locally administered, and the same for the same address: a node that was off comes back with its own."""
    return "02:4b:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def port_name(address: str) -> str:
    """The bridge port of the node with this address."""
    return f"klp{address.rpartition('.')[2]}"


def delete_namespace(name: str) -> None:
    """Removes a namespace with its links; no error when it is gone already."""
    if not (NETNS_ROOT / name).exists():
        return
    # A deleted namespace lives on while a process is inside, so its links are taken down first.
    for link in _links(name):
        if link != "lo":
            _ip("-n", name, "link", "del", link, check=False)
    _ip("netns", "del", name)


def _links(netns: str) -> list[str]:
    output = _ip("-n", netns, "-o", "link", "show", check=False)
    return [line.split(": ")[1].split("@")[0] for line in output.splitlines() if ": " in line]


def _has_link(netns: str, link: str) -> bool:
    return link in _links(netns)


def _ip(*words: str, check: bool = True, text: str = "") -> str:
    result = subprocess.run(["ip", *words], input=text, capture_output=True, text=True, timeout=30, check=False)
    if check and result.returncode:
        raise TopologyError(f"ip {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


def _batch(netns: str, commands: Sequence[str]) -> None:
    _ip("-n", netns, "-batch", "-", text="\n".join(commands) + "\n")
