"""The image of the cluster tests, made without a registry: a static busybox, this host's Python with just the modules
that the two programs in `image/` import, and those programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker

from kernelet.agents.kubelet.docker import DockerConfig, DockerRuntime
from kernelet.agents.kubelet.plugins import RuntimeFailure

TOOLS = "kernelet-test/tools:1"
PYTHON = "/usr/bin/python3.11"
SERVER = [PYTHON, "-I", "-S", "/srv/server.py"]
LOAD = [PYTHON, "-I", "-S", "/srv/load.py"]
_PROGRAMS = Path(__file__).parent / "image"
_APPLETS = [
    "busybox",
    "sh",
    "sleep",
    "cat",
    "echo",
    "true",
    "false",
    "touch",
    "test",
    "rm",
    "ls",
    "kill",
    "trap",
    "seq",
    "wc",
    "id",
]
_LIST_MODULES = """
import asyncio, collections, concurrent.futures.thread, contextlib, encodings.idna, encodings.latin_1
import encodings.ascii, http.client, json, os, pkgutil, runpy, signal, socket, stringprep, sys, time
import unicodedata, urllib.parse
for module in list(sys.modules.values()):
    for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
        if path: print(path)
"""


class MissingProgram(Exception):
    """The message names what this machine lacks."""


async def ensure_tools_image(docker_socket: str) -> str:
    """Makes the image unless it is there with the programs as they are now; its name. Raises MissingProgram."""
    runtime = DockerRuntime(DockerConfig(docker_socket))
    try:
        with tempfile.TemporaryDirectory(prefix="kl-test-image-") as folder:
            tar = Path(folder) / "tools.tar"
            _pack(tar)
            await runtime.import_image(tar, *TOOLS.split(":"), "/bin/busybox")
    except RuntimeFailure as error:
        raise MissingProgram(f"image {TOOLS}: {error}") from error
    finally:
        await runtime.close()
    return TOOLS


def remove_tools_image(docker_socket: str) -> None:
    client = docker.APIClient(base_url=f"unix://{docker_socket}", timeout=60)
    try:
        if client.images(name=TOOLS):
            client.remove_image(TOOLS, force=True)
    finally:
        client.close()


def _pack(tar: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None or not Path(PYTHON).exists():
        raise MissingProgram(
            f"image {TOOLS} needs a static busybox and {PYTHON}; apt-get install busybox-static python3"
        )
    with tarfile.open(tar, "w") as archive:
        for applet in _APPLETS:
            archive.add(Path(busybox).resolve(), f"bin/{applet}") if applet == "busybox" else _link(archive, applet)
        for source, name in {**dict(_python()), **dict(_programs())}.items():
            archive.add(source, name)
        for folder in ("tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(entry)


def _link(archive: tarfile.TarFile, applet: str) -> None:
    entry = tarfile.TarInfo(f"bin/{applet}")
    entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
    archive.addfile(entry)


def _programs() -> Iterator[tuple[Path, str]]:
    for source in _PROGRAMS.glob("*.py"):
        yield source, f"srv/{source.name}"


def _python() -> Iterator[tuple[Path, str]]:
    """(file here, path in the image) of the interpreter, the modules and all libraries they load."""
    listed = subprocess.run(
        [PYTHON, "-I", "-S", "-c", _LIST_MODULES], capture_output=True, text=True, check=True, timeout=60
    )
    files = {Path(PYTHON), *(path for line in listed.stdout.split() if (path := Path(line)).exists())}
    for path in sorted(files):
        yield path.resolve(), str(path).lstrip("/")
        if path.suffix in (".so", "") or path == Path(PYTHON):
            for library in _libraries(path):
                yield library.resolve(), str(library).lstrip("/")


def _libraries(program: Path) -> Iterator[Path]:
    shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=False, timeout=30)
    for line in shown.stdout.splitlines():
        if found := re.match(r"\s*(?:\S+ => )?(/\S+)", line):
            yield Path(found[1])
