"""libbpf: loading BPF objects, reading and writing maps, attaching programs to cgroups.

Promises: `Object`, `Map` and `Link` own their descriptors, may be used as context managers, and refuse with `BpfError`,
an OSError that says what was refused, why, and what to do about it; where libbpf or the verifier said something, the
message ends with it. Buffers are plain bytes, as the BPF program lays them out. Calls release the interpreter lock.
Depends on libbpf >= 1.1 and nothing of Kernelet. Never decides what to load or where.
"""

from ._errors import BpfError
from ._filesystem import mount_bpffs, require_bpffs
from ._links import Link, LinkInfo
from ._maps import Map, MapInfo, possible_cpus
from ._objects import Object, Program

__all__ = [
    "BpfError",
    "Link",
    "LinkInfo",
    "Map",
    "MapInfo",
    "Object",
    "Program",
    "mount_bpffs",
    "possible_cpus",
    "require_bpffs",
]
