"""`kernelet preflight`: what this machine lacks, one line each, with the fix."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

OLDEST_KERNEL = (5, 10)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    detail: str
    """What was found, or what is wrong and the fix."""
    fatal: bool = True
    """Whether Kernelet cannot run without it."""


def _root() -> Finding:
    ok = os.geteuid() == 0
    return Finding("root", ok, "running as root" if ok else "network namespaces and containers need it; run with sudo")


def _kernel() -> Finding:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    wanted = ".".join(map(str, OLDEST_KERNEL))
    ok = version >= OLDEST_KERNEL
    return Finding("kernel", ok, release if ok else f"{release} is too old; boot Linux {wanted} or newer")


def _dockerd() -> Finding:
    path = shutil.which("dockerd")
    return Finding("dockerd", path is not None, path or "the program is missing; apt-get install docker.io")


def _program(name: str, package: str) -> Callable[[], Finding]:
    def look() -> Finding:
        path = shutil.which(name)
        return Finding(name, path is not None, path or f"the program is missing; apt-get install {package}")

    return look


def _nftables() -> Finding:
    if os.geteuid() != 0:
        return Finding("nftables", False, "cannot be looked at without root; run with sudo", fatal=False)
    try:
        import nftables
    except ImportError:
        return Finding("nftables", False, "the Python module is missing; apt-get install python3-nftables")
    code, _, error = nftables.Nftables().cmd("list tables")
    fix = f"the kernel refuses it ({error.strip()}); load the module nf_tables or build it in"
    return Finding("nftables", code == 0, "works" if code == 0 else fix)


def _bpf() -> Finding:
    ok = Path("/sys/kernel/btf/vmlinux").exists()
    why = "no BTF of the kernel; build it with CONFIG_DEBUG_INFO_BTF (the nftables engine works without)"
    return Finding("BPF", ok, "type information present" if ok else why, fatal=False)


def _vxlan() -> Finding:
    if os.geteuid() != 0:
        return Finding("VXLAN", False, "cannot be looked at without root; run with sudo", fatal=False)
    # In a namespace of its own, which goes with the process: nothing is left behind.
    script = "ip link add klprobe type vxlan id 1 dstport 8472"
    result = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    ok = result.returncode == 0
    return Finding("VXLAN", ok, "works" if ok else f"{result.stderr.strip()}; load the module vxlan or build it in")


def _cgroups() -> Finding:
    ok = Path("/sys/fs/cgroup/cgroup.controllers").exists() or Path("/sys/fs/cgroup/memory").exists()
    return Finding("cgroups", ok, "mounted" if ok else "not mounted; mount -t cgroup2 none /sys/fs/cgroup")


def _forward_policy() -> Finding:
    """A dockerd with its default settings drops what is forwarded, which no accept elsewhere can override."""
    result = None
    if shutil.which("nft") and os.geteuid() == 0:
        command = ["nft", "list", "chain", "ip", "filter", "FORWARD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    dropped = result is not None and "policy drop" in result.stdout
    fix = (
        "policy drop in table ip filter: pods of `kernelet up` would reach nothing; start dockerd with --iptables=false"
    )
    return Finding("forwarding", not dropped, fix if dropped else "not dropped by another table", fatal=False)


CHECKS: tuple[Callable[[], Finding], ...] = (
    _root,
    _kernel,
    _dockerd,
    _program("nft", "nftables"),
    _program("ip", "iproute2"),
    _program("nsenter", "util-linux"),
    _nftables,
    _vxlan,
    _bpf,
    _cgroups,
    _forward_policy,
)


def look() -> list[Finding]:
    """Every check, in order."""
    return [check() for check in CHECKS]


@click.command("preflight")
def command() -> None:
    """Say what this machine lacks, one line each with the fix; exit status 1 where Kernelet cannot run."""
    findings = look()
    for finding in findings:
        mark = "ok" if finding.ok else ("MISSING" if finding.fatal else "warning")
        click.echo(f"{mark:<8} {finding.what:<11} {finding.detail}")
    if any(finding.fatal and not finding.ok for finding in findings):
        raise SystemExit(1)
