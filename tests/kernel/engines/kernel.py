"""What a proxy has left in the kernel, as the kernel itself tells it."""

from __future__ import annotations

import json

from kernelet.ext.libbpf import Map

from .proxy import Proxy

_FOLLOWS_FROM_ROUTES = ("services", "backends", "members")
_STAY = ("_chains", "backend_ports", "untracked")
"""Ends of the names of sets that are no service's: numbers of backends and ports that were ever needed, protocols."""


def leftovers(proxy: Proxy) -> dict[str, int]:
    """How much each set, BPF map or process of an engine without routes still has, where it is not nothing."""
    found = {**_elements(proxy), **_listeners(proxy)}
    if proxy.name == "ebpf":
        found |= _map_entries(proxy)
    return {name: count for name, count in found.items() if count}


def _elements(proxy: Proxy) -> dict[str, int]:
    listed = json.loads(proxy.site.topology.node.run("nft", "-j", "list", "ruleset"))["nftables"]
    sets = [item[kind] for item in listed for kind in ("set", "map") if kind in item]
    return {
        f"{item['family']} {item['name']}": len(item.get("elem", ()))
        for item in sets
        if item["table"] == "kernelet" and not item["name"].endswith(_STAY)
    }


def _listeners(proxy: Proxy) -> dict[str, int]:
    """TCP and UDP sockets on the node that are not connected to anybody; its own clients have none."""
    lines = proxy.site.topology.node.run("ss", "-Hlntu").splitlines()
    return {"listeners": len(lines)}


def _map_entries(proxy: Proxy) -> dict[str, int]:
    assert proxy.site.config.pins is not None
    found = {}
    for name in _FOLLOWS_FROM_ROUTES:
        with Map.open(proxy.site.config.pins / "maps" / name) as item:
            found[name] = len(item.items())
    with Map.open(proxy.site.config.pins / "maps" / "counters") as counters:
        found["counters"] = sum(any(value) for _, value in counters.items())  # An array, whose places are given back.
    return found
