"""The socket programs in the kernel: maps and links that are pinned, so that they outlive the process.

Under the folder of pins::

    maps/<name>              the maps of connect.bpf.c
    links/<program>-<cgroup> one link per program and cgroup, the latter as a digest of its path

The attached programs are the record: after a restart it is their maps that are taken over, and pins that differ or are
missing are put right. Upgrade and growth are the same: the object is loaded anew with the maps that may stay and new
ones in place of those that are too small or of another layout, the new ones are filled, then each link's program is
replaced, which is atomic and leaves no moment without one. While links are being replaced both programs lead to the
same backends, since both sets of maps hold the same.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kernelet.ext import netns
from kernelet.ext.bpf import CONFIG, CONNECT, HOOKS
from kernelet.ext.libbpf import BpfError, Link, Map, MapInfo, Object, mount_bpffs, require_bpffs

from ..engine import EngineConfig, EngineError
from .maps import BACKENDS, COUNTERS, MEMBERS, SERVICES

_log = logging.getLogger(__name__)
ROUTE_MAPS: Final = (SERVICES, BACKENDS, MEMBERS)
REMEMBERED: Final = ("affinity", "flows")
"""Maps that forget the oldest where they are full."""
NAMESPACES: Final = "namespaces"
MAPS: Final = (*ROUTE_MAPS, COUNTERS, *REMEMBERED, NAMESPACES, "sockets", "config")
BPFFS: Final = Path("/sys/fs/bpf")
PINS: Final = BPFFS / "kernelet"
_SO_NETNS_COOKIE: Final = 71
_COOKIE_BYTES: Final = 8
_LEAST: Final = 1024
"""Elements that a map has room for at least."""
SERVED: Final = bytes(4)
"""What stands behind a namespace's cookie."""
POD, HOST = "pod", "host"
_LinkId = tuple[Path, str]
"""A cgroup, and the program that is attached to it."""


def pins_of(config: EngineConfig) -> Path:
    return config.pins or PINS / pin_name(config.node)


def pins_here() -> Path | None:
    """The pins of the node whose network namespace the calling thread is in; None where it is no node's."""
    here = CONFIG.pack(int.from_bytes(netns_cookie(), sys.byteorder))
    for path in PINS.iterdir() if PINS.is_dir() else ():
        config = path / "maps" / "config"
        if config.exists():
            with Map.open(config) as found:
                if found.lookup(bytes(4)) == here:
                    return path
    return None


def pin_name(*names: str) -> str:
    """A folder's name for a node, which may be preceded by its cluster's.

    A bpf filesystem takes no name with a dot; names in Kubernetes have no underscores.
    """
    return "_".join(names).replace(".", "_")


def cgroup_root() -> Path:
    """Where the cgroup2 hierarchy is mounted, on hosts with cgroup v1 as well. Raises EngineError where it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(folder)
    raise EngineError(
        "the ebpf engine needs the cgroup2 hierarchy, which is not mounted: "
        "mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
    )


def cgroup_path(parent: str) -> Path:
    """Where a container runtime's cgroup parent is below the hierarchy's root: a folder's path, or a slice's name.

    A dash in a slice's name stands for a slice around it (systemd.slice(5)).
    """
    if not parent.endswith(".slice"):
        return Path(parent.strip("/"))
    parts = parent.removesuffix(".slice").split("-")
    return Path(*(f"{'-'.join(parts[: index + 1])}.slice" for index in range(len(parts))))


def obstacle(cgroup: Path) -> str:
    """Why this host cannot run the socket programs; "" where it can.

    Loads them and attaches one for a moment, which takes 0.1 s: its maps are empty, so it changes nothing.
    """
    try:
        cgroup_root()
        mount_bpffs(BPFFS)
        with Object(CONNECT) as probe:
            probe.load()
            Link.attach(probe.program(programs(HOST)[0]), cgroup).close()
    except (EngineError, OSError) as error:
        return error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return ""


def programs(role: str) -> tuple[str, ...]:
    """Names of the programs for the pods' cgroups, or for the host's."""
    return tuple(f"{role}_{hook}" for hook in HOOKS)


def netns_cookie() -> bytes:
    """Of the network namespace that the thread is in."""
    with socket.socket() as probe:
        return probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)


def serve_namespace(pins: Path, pid: int) -> None:
    """Tells the socket programs pinned there, if any, that a process' network namespace is a pod's.

    The pods' own sockets are known by their cgroup. This is for sockets of whoever enters the namespace (nsenter(1)).
    Raises BpfError, and FileNotFoundError where the process has ended.
    """
    path = pins / "maps" / NAMESPACES
    if not path.exists():
        return
    namespace = netns.open_of_pid(pid)
    try:
        cookie = netns.run_in(namespace, netns_cookie)
    finally:
        os.close(namespace)
    with Map.open(path) as served:
        served.update(cookie, SERVED)


def remove_pins(pins: Path) -> None:
    """Detaches the programs that are pinned there and removes all pins; what is not there is taken for removed."""
    for folder in (pins / "links", pins / "maps"):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if folder.name == "links":
                with Link.open(path) as link:
                    link.detach()
            path.unlink()
        folder.rmdir()
    for folder in (pins, *pins.parents):
        if folder == BPFFS or not folder.exists():
            break
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                _log.warning("cannot remove the folder of pins %s: %s", folder, error.strerror)
            break


class Kernel:
    """Maps, programs and links of one node. Methods raise BpfError and EngineError."""

    def __init__(self, config: EngineConfig) -> None:
        self.pins = pins_of(config)
        self._places: list[_LinkId] = [(cgroup, name) for cgroup in config.cgroups for name in programs(POD)]
        if config.host_cgroup is not None:
            self._places += [(config.host_cgroup, name) for name in programs(HOST)]
        self._limit = config.max_map_entries
        self._remembered = config.max_remembered
        self._object: Object | None = None
        self._links: dict[_LinkId, Link] = {}
        self._netns = 0
        self.maps: dict[str, Map] = {}
        """Empty before the first routes where there was nothing in the kernel: they are made as large as is needed."""
        self.started = False
        self.waiting = False
        """The programs are not attached: the maps are not filled, since there were none, or of another layout."""

    def start(self) -> None:
        """Loads the programs over the maps that are there, and attaches them."""
        if not self._places:
            raise EngineError("the ebpf engine has no cgroup to attach to: name the node's pod cgroup in its settings")
        if BPFFS in self.pins.parents:
            mount_bpffs(BPFFS)
        for folder in (self.pins / "maps", self.pins / "links"):
            folder.mkdir(parents=True, exist_ok=True)
        require_bpffs(self.pins)
        self._netns = int.from_bytes(netns_cookie(), sys.byteorder)
        self._remove_strange_pins()
        self.started = True
        existing, attached = self._existing_maps()
        if not existing:
            self.waiting = True
            return
        try:
            fresh = self._load(existing, {})
        finally:
            for item in existing.values():
                item.close()
        self.waiting = attached and not fresh.isdisjoint(ROUTE_MAPS)
        if self.waiting:
            _log.warning("the maps in %s have another layout; the old programs serve until routes arrive", self.pins)
        else:
            self.activate()

    def activate(self) -> None:
        """Puts the loaded programs in charge, and pins the maps they use."""
        for cgroup, program in self._places:
            self._attach(cgroup, program)
        for name, item in self.maps.items():
            self._pin_map(name, item)
        self.waiting = False

    def ensure_room(self, needed: Mapping[str, int]) -> None:
        """Makes larger maps where there is no room for so many elements. Raises EngineError naming the setting."""
        sizes = {}
        for name, count in needed.items():
            if count <= (self.maps[name].info.max_entries if self.maps else 0):
                continue
            if count > self._limit:
                raise EngineError(
                    f"BPF map {name} is full: the routes need {count} elements, and it may not grow beyond "
                    f"{self._limit}; raise max_map_entries"
                )
            sizes[name] = max(_LEAST, min(self._limit, 1 << (count + count // 4 - 1).bit_length()))
        if not self.maps:
            self._load({}, sizes)
        elif sizes:
            self._grow(sizes)

    def _grow(self, sizes: Mapping[str, int]) -> None:
        before, old_object = self.maps, self._object
        self._load({name: item for name, item in before.items() if name not in sizes}, sizes)
        try:
            for name in sizes:
                count, keys, values = before[name].read()
                self.maps[name].update_many(count, keys, values)
            if not self.waiting:
                self.activate()
        except (BpfError, OSError):
            self._close_object()
            self.maps, self._object = before, old_object
            raise
        for item in before.values():
            item.close()
        if old_object is not None:
            old_object.close()
        _log.info("made larger BPF maps: %s", ", ".join(f"{name}={size}" for name, size in sizes.items()))

    def _close_object(self) -> None:
        for item in self.maps.values():
            item.close()
        if self._object is not None:
            self._object.close()
        self.maps, self._object = {}, None

    def _load(self, existing: Mapping[str, Map], sizes: Mapping[str, int]) -> set[str]:
        """Loads the object over existing maps where they fit; the names of those that are new."""
        made = Object(CONNECT)
        fresh = set()
        sizes = {"flows": self._remembered, "affinity": self._remembered // 4, **sizes}
        try:
            for name in MAPS:
                if (
                    name in existing
                    and _fits(existing[name].info, made.declared(name))
                    and (name not in REMEMBERED or existing[name].info.max_entries == sizes[name])
                ):
                    made.reuse(name, existing[name])
                    continue
                fresh.add(name)
                if name in sizes:
                    made.resize(name, sizes[name])
            made.load()
            maps = {name: made.map(name) for name in MAPS}
            maps["config"].update(bytes(4), CONFIG.pack(self._netns))
        except BpfError:
            made.close()
            raise
        self._object, self.maps = made, maps
        return fresh

    # --- what is there already ------------------------------------------------------------------------------------

    def open_pinned(self) -> dict[str, Map]:
        """The pinned maps, for a bystander who only looks; the caller closes them."""
        return {name: Map.open(self.pins / "maps" / name) for name in MAPS}

    def _existing_maps(self) -> tuple[dict[str, Map], bool]:
        """Maps of the attached programs, and pinned ones that these do not use; whether programs are attached."""
        found: dict[str, Map] = {}
        for name in MAPS:
            path = self.pins / "maps" / name
            if path.exists():
                found[name] = Map.open(path)
        attached = False
        # All of a node's programs use the same maps, unless a crash came between two: then those of the last count.
        for cgroup, program in reversed(self._places):
            if not program.endswith(("connect4", "sendmsg4")):
                continue
            path = self._link_path(cgroup, program)
            if not path.exists():
                continue
            with Link.open(path) as link:
                info = link.info()
            if not info.cgroup_id:
                continue
            attached = True
            for name, item in Map.of_program(info.program_id).items():
                if name in found:
                    found[name].close()
                found[name] = item
        return found, attached

    def _link_path(self, cgroup: Path, program: str) -> Path:
        digest = hashlib.sha256(bytes(cgroup)).hexdigest()[:12]
        return self.pins / "links" / f"{program}-{digest}"

    def _remove_strange_pins(self) -> None:
        """Those of cgroups that this node no longer serves, and what a crash has left half pinned."""
        ours = {self._link_path(cgroup, program) for cgroup, program in self._places}
        ours.update(self.pins / "maps" / name for name in MAPS)
        for path in (*(self.pins / "links").iterdir(), *(self.pins / "maps").iterdir()):
            if path not in ours:
                path.unlink()

    # --- links and pins -------------------------------------------------------------------------------------------

    def _attach(self, cgroup: Path, name: str) -> None:
        """Makes the cgroup's hook run the loaded program: by the link that is there, or by a new one."""
        if self._object is None:
            raise EngineError("the ebpf engine is not started: call start() first")
        program = self._object.program(name)
        path = self._link_path(cgroup, name)
        link = self._links.get((cgroup, name))
        if link is None and path.exists():
            link = Link.open(path)
            self._links[cgroup, name] = link
        if link is not None and link.info().cgroup_id == _cgroup_id(cgroup):
            link.update(program)
            if not path.exists():
                link.pin(path)
            return
        if link is not None:
            link.close()
            del self._links[cgroup, name]
        cgroup.mkdir(parents=True, exist_ok=True)
        link = Link.attach(program, cgroup)
        self._links[cgroup, name] = link
        link.pin(path)

    def _pin_map(self, name: str, item: Map) -> None:
        path = self.pins / "maps" / name
        if path.exists():
            with Map.open(path) as pinned:
                if pinned.info.id == item.info.id:
                    return
        item.pin(path)

    def missing(self) -> list[str]:
        """What others have removed: links, pins. May be called from any thread."""
        found = []
        for (cgroup, program), link in tuple(self._links.items()):
            if link.fd >= 0 and link.info().cgroup_id != _cgroup_id(cgroup):
                found.append(f"the link of {program} to cgroup {cgroup}")
            elif not self._link_path(cgroup, program).exists():
                found.append(f"the pin of the link of {program} to cgroup {cgroup}")
        found.extend(f"the pin of map {name}" for name in self.maps if not (self.pins / "maps" / name).exists())
        return found

    def mend(self) -> int:
        """Attaches and pins anew what is missing; how many things were."""
        count = len(self.missing())
        if count and self.maps and not self.waiting:
            for folder in (self.pins / "maps", self.pins / "links"):
                folder.mkdir(parents=True, exist_ok=True)
            self.activate()
        return count

    def close(self) -> None:
        """The kernel keeps everything."""
        for link in self._links.values():
            link.close()
        self._links = {}
        self._close_object()


def _fits(existing: MapInfo, declared: MapInfo) -> bool:
    """Whether an existing map, of whatever size, can stand for what the object declares."""
    return (existing.type, existing.key_size, existing.value_size, existing.flags) == (
        declared.type,
        declared.key_size,
        declared.value_size,
        declared.flags,
    )


def _cgroup_id(cgroup: Path) -> int:
    """The id of a cgroup is its folder's inode number; -1 where it is gone."""
    try:
        return cgroup.stat().st_ino
    except FileNotFoundError:
        return -1
