"""What the machine is and has, for the Node object."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

JSON = dict[str, Any]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_RESERVED_MEMORY = 100 * 1024 * 1024
KUBELET_VERSION = "v1.36.0+kernelet.0.1.0"


def architecture() -> str:
    """The machine's architecture in Go's words, as Kubernetes labels nodes."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_count() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def capacity(state: Path, max_pods: int) -> JSON:
    """Amounts of resources: all there is."""
    disk = shutil.disk_usage(state).total // 1024
    return {
        "cpu": str(cpu_count()),
        "memory": f"{memory_bytes() // 1024}Ki",
        "ephemeral-storage": f"{disk}Ki",
        "pods": str(max_pods),
    }


def allocatable(whole: JSON) -> JSON:
    """What pods may ask for: all but some memory for the node itself."""
    memory = int(whole["memory"].removesuffix("Ki")) - _RESERVED_MEMORY // 1024
    return whole | {"memory": f"{max(memory, 0)}Ki"}


def node_info(runtime_version: str) -> JSON:
    """status.nodeInfo."""
    return {
        "architecture": architecture(),
        "bootID": _read("/proc/sys/kernel/random/boot_id"),
        "containerRuntimeVersion": f"docker://{runtime_version}",
        "kernelVersion": platform.release(),
        "kubeProxyVersion": KUBELET_VERSION,
        "kubeletVersion": KUBELET_VERSION,
        "machineID": _read("/etc/machine-id"),
        "operatingSystem": "linux",
        "osImage": _os_name(),
        "systemUUID": _read("/sys/class/dmi/id/product_uuid") or _read("/etc/machine-id"),
    }


def _os_name() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Linux"


def _read(path: str) -> str:
    """The text of a file; "" where it is absent or not for us to read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
