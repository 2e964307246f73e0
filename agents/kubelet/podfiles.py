"""The files every container of a pod gets: /etc/hosts and /etc/resolv.conf, as Kubernetes writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightkube.models.core_v1 import Pod

from . import pods

_MAX_SEARCHES = 32
_HOSTS = """\
# Managed by Kernelet: written once, when the pod starts.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """The cluster's names."""

    server: str = "10.96.0.10"
    domain: str = "cluster.local"
    host_file: Path = Path("/etc/resolv.conf")
    """What pods with dnsPolicy Default get."""


def hostname(pod: Pod) -> str:
    """spec.hostname, or the pod's name; at most 63 bytes (RFC 1123)."""
    return (pods.spec(pod).hostname or pods.name(pod))[:63].rstrip("-.")


def hosts_file(pod: Pod, addresses: tuple[str, ...], domain: str) -> str:
    spec = pods.spec(pod)
    if spec.hostNetwork:
        text = Path("/etc/hosts").read_text()
    else:
        own = hostname(pod)
        names = own
        if spec.subdomain:
            names = f"{own}.{spec.subdomain}.{pods.namespace(pod)}.svc.{domain}\t{own}"
        text = _HOSTS + "".join(f"{address}\t{names}\n" for address in addresses)
    if spec.hostAliases:
        text += "\n# From the pod's hostAliases.\n"
        text += "".join(f"{alias.ip}\t" + "\t".join(alias.hostnames or []) + "\n" for alias in spec.hostAliases)
    return text


def resolv_conf(pod: Pod, dns: DnsConfig) -> str:
    """The resolver's configuration by dnsPolicy and dnsConfig (resolv.conf(5))."""
    spec = pods.spec(pod)
    policy = spec.dnsPolicy or "ClusterFirst"
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    if policy == "Default" or (policy == "ClusterFirst" and spec.hostNetwork):
        servers, searches, options = parse_resolv_conf(dns.host_file.read_text())
    elif policy != "None":
        servers, options = [dns.server], {"ndots": "5"}
        searches = [f"{pods.namespace(pod)}.svc.{dns.domain}", f"svc.{dns.domain}", dns.domain]
    if spec.dnsConfig:
        servers += spec.dnsConfig.nameservers or []
        searches += spec.dnsConfig.searches or []
        options |= {option.name or "": option.value or "" for option in spec.dnsConfig.options or []}
    lines = [f"nameserver {server}" for server in dict.fromkeys(servers)]
    if searches:
        lines.insert(0, "search " + " ".join(list(dict.fromkeys(searches))[:_MAX_SEARCHES]))
    if options:
        lines.append("options " + " ".join(f"{name}:{value}" if value else name for name, value in options.items()))
    return "\n".join(lines) + "\n"


def parse_resolv_conf(text: str) -> tuple[list[str], list[str], dict[str, str]]:
    """Name servers, search domains and options of a resolv.conf."""
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = words[1:]
        elif words[0] == "options":
            options |= {name: value for name, _, value in (word.partition(":") for word in words[1:])}
    return servers, searches, options
