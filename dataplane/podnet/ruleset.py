"""The pod network's own nftables table: masquerade for what leaves the cluster.

One small table, replaced as a whole in one transaction: it has no state worth keeping.
"""

from __future__ import annotations

from ipaddress import IPv4Network

import nftables

TABLE = "kernelet_podnet"


def ruleset(pod_cidr: IPv4Network, cluster_cidr: IPv4Network) -> str:
    """nft text that declares the table, empties it and fills it: the same whether it stood before or not."""
    return f"""
table ip {TABLE} {{ }}
flush table ip {TABLE}
table ip {TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat + 10; policy accept;
        ip saddr {pod_cidr} ip daddr != {{ {cluster_cidr}, 224.0.0.0/4 }} fib daddr type != local masquerade
    }}
}}
"""


def apply(text: str) -> None:
    """Runs nft text in this process's network namespace, as one transaction. Raises RuntimeError with nft's words."""
    nft = nftables.Nftables()
    code, _, error = nft.cmd(text)
    if code:
        raise RuntimeError(f"nftables: {error.strip()}")


def remove() -> None:
    """Removes the table; no error when there is none (add, then delete: nft before 1.0.7 has no destroy)."""
    apply(f"table ip {TABLE} {{ }}\ndelete table ip {TABLE}\n")
