"""Pod-to-pod traffic that needs no translation goes around connection tracking, which short connections pay most for.

A chain of priority raw tells such packets by their addresses: one comparison lets packets to service addresses and to
the outside go on. Of packets between pods it still tracks

* those to the node's own addresses in the pods' networks (a VTEP, a gateway): replies to what was masqueraded, and
  node ports;
* what a service may have translated. A pod's connection through a service keeps the pod's address, so its replies go
  from pod to pod, and are known by their port alone: `backend_ports` holds each port that some service leads to. Ports
  are only added, and taken over from the kernel at start, since one that goes could break established connections,
  while one too many costs nothing but speed. Beside socket-level translation there are no such replies: what is
  translated is masqueraded as well.

A connection whose port becomes a service's midway is tracked from then on, as one that conntrack picks up in the
middle. `untracked` holds the protocols that this is for. It is filled in the same transaction as the ports, so that
no rule is obeyed before the ports are known: an empty table after `nft flush ruleset` tracks everything. Beside
socket-level translation there is nothing to know first, and the protocols are in the rules, which is a lookup less.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...routes import Protocol

BACKEND_PORTS, UNTRACKED = "backend_ports", "untracked"
PROTOCOLS = tuple(bytes((protocol,)) for protocol in (Protocol.TCP, Protocol.UDP))
"""The elements of `untracked`."""


def raw_chain(ip: str, cluster: str, own: Sequence[str], *, masqueraded: bool) -> str:
    """The chain; `cluster` are all pods' networks as an nft expression, "" for none: then everything is tracked.

    `own`: the node's addresses among them. They are compared one by one, since this is what every packet pays for:
    `fib daddr type local` would know them by itself, and took a twentieth of the requests.

    `masqueraded`: nothing between pods is translated without being masqueraded.
    """
    if not cluster:
        return ""
    if masqueraded:
        rest = "".join(f"    meta l4proto {int.from_bytes(protocol)} notrack accept\n" for protocol in PROTOCOLS)
    else:
        rest = (
            f"    meta l4proto != @{UNTRACKED} accept\n"
            f"    meta l4proto . th sport @{BACKEND_PORTS} accept\n"
            f"    meta l4proto . th dport @{BACKEND_PORTS} accept\n"
            "    notrack\n"
        )
    mine = "".join(f"    {ip} daddr {address} accept\n" for address in own)
    return f"""
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    {ip} daddr != {cluster} accept
    {ip} saddr != {cluster} accept
{mine}{rest}  }}
"""


def networks(texts: Sequence[str]) -> str:
    """Networks as an nft expression; one alone is compared without a set. "" for none."""
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}" if texts else ""
