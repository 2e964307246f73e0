"""The demo's images, made on this machine without a registry: programs from Debian packages, with just the libraries
they load, in a scratch image each."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import docker
import docker.errors

TAG = "1"
WEB, APP, REDIS = (f"kernelet-demo/{name}:{TAG}" for name in ("web", "app", "redis"))
_LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib", "lib")
_STDLIB_LEFT_OUT = ("test", "idlelib", "tkinter", "lib2to3", "ensurepip", "distutils", "turtledemo", "dist-packages")


class ImageError(Exception):
    """An image could not be made; the message names the package or program, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image: programs with their libraries, further files, and how it is started and stopped."""

    name: str
    programs: tuple[str, ...]
    entrypoint: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    """(package data of the demo, path in the image)"""
    python: bool = False
    stop_signal: str = "SIGTERM"
    folders: tuple[str, ...] = field(default=("tmp", "var/log", "var/lib"))


RECIPES = (
    # nginx finishes requests under way on SIGQUIT, and drops them on SIGTERM.
    Recipe(
        WEB,
        ("usr/sbin/nginx",),
        ("/usr/sbin/nginx", "-c", "/etc/nginx.conf"),
        (("nginx.conf", "etc/nginx.conf"),),
        stop_signal="SIGQUIT",
    ),
    Recipe(
        APP,
        ("usr/bin/python3.11",),
        ("/usr/bin/python3.11",),
        (("server.py", "srv/server.py"), ("load.py", "srv/load.py"), ("get.py", "srv/get.py")),
        python=True,
    ),
    Recipe(REDIS, ("usr/bin/redis-server", "usr/bin/redis-cli"), ("/usr/bin/redis-server", "--protected-mode", "no")),
)


def ensure_images(docker_socket: str, packages: Path) -> list[str]:
    """Makes the images that are missing; returns their names. `packages` holds the .deb files. Raises ImageError."""
    client = docker.APIClient(base_url=f"unix://{docker_socket}", timeout=300)
    try:
        missing = [recipe for recipe in RECIPES if not _has(client, recipe.name)]
        if missing:
            with tempfile.TemporaryDirectory(prefix="kernelet-demo-") as folder:
                unpacked = _unpack(packages, Path(folder))
                for recipe in missing:
                    _build(client, recipe, unpacked)
        return [recipe.name for recipe in missing]
    finally:
        client.close()


def remove_images(docker_socket: str) -> None:
    """Removes the demo's images; no error for those that are gone."""
    client = docker.APIClient(base_url=f"unix://{docker_socket}", timeout=60)
    try:
        for recipe in RECIPES:
            if _has(client, recipe.name):
                client.remove_image(recipe.name, force=True)
    finally:
        client.close()


def _has(client: docker.APIClient, image: str) -> bool:
    return bool(client.images(name=image))


def _unpack(packages: Path, folder: Path) -> Path:
    debs = sorted(packages.glob("*.deb"))
    if not debs:
        raise ImageError(f"no Debian packages in {packages}; run `make setup`, or give their folder with --packages")
    for deb in debs:
        result = subprocess.run(["dpkg-deb", "-x", deb, folder], capture_output=True, text=True, check=False)
        if result.returncode:
            raise ImageError(f"{deb}: cannot be unpacked: {result.stderr.strip()}; remove it and run `make setup`")
    return folder


def _build(client: docker.APIClient, recipe: Recipe, unpacked: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kernelet-image-") as folder:
        root = Path(folder) / "root"
        for name in recipe.folders:
            (root / name).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        for program in recipe.programs:
            _copy_program(program, unpacked, root)
        if recipe.python:
            _copy_python(root)
        for source, target in recipe.files:
            _write(root / target, resources.files("kernelet.agents.demo").joinpath("app", source).read_bytes())
        _write(root / "etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        _write(root / "etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        _write(root / "etc/nsswitch.conf", b"hosts: files dns\n")
        dockerfile = "\n".join(
            [
                "FROM scratch",
                "ADD root /",
                f"STOPSIGNAL {recipe.stop_signal}",
                f"ENTRYPOINT {_json(recipe.entrypoint)}",
            ]
        )
        context = _context(root, dockerfile)
    lines = client.build(fileobj=context, custom_context=True, tag=recipe.name, rm=True, decode=True)
    errors = [line["error"] for line in lines if "error" in line]
    if errors:
        raise ImageError(f"image {recipe.name}: docker could not build it: {errors[0].strip()}")


def _json(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def _context(root: Path, dockerfile: str) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, "root")
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        tar.addfile(entry, io.BytesIO(dockerfile.encode()))
    buffer.seek(0)
    return buffer


def _copy_program(program: str, unpacked: Path, root: Path) -> None:
    source = unpacked / program if (unpacked / program).exists() else Path("/") / program
    if not source.exists():
        raise ImageError(f"program /{program} is in no package of the demo; run `make setup` to fetch them again")
    _copy(source, root / program)
    for library in _libraries(source, unpacked):
        # Where the loader looks by default, whatever folder it came from.
        target = library if str(library).startswith("/lib64/") else Path("/usr/lib") / library.name
        _copy(library.resolve(), root / str(target).lstrip("/"))


def _libraries(program: Path, unpacked: Path) -> Iterable[Path]:
    """The shared libraries a program loads, by ldd(1); names as the program asks for them."""
    search = os.pathsep.join(str(unpacked / folder) for folder in _LIBRARY_FOLDERS)
    result = subprocess.run(
        ["ldd", program], capture_output=True, text=True, check=False, env={**os.environ, "LD_LIBRARY_PATH": search}
    )
    for line in result.stdout.splitlines():
        found = re.match(r"\s*(?:(\S+) => )?(/\S+|not found)", line)
        if found is None:
            continue
        if found[2] == "not found":
            raise ImageError(f"{program.name} needs the library {found[1]}, which no package of the demo holds")
        yield Path(found[2])


def _copy_python(root: Path) -> None:
    """Python's standard library without what a server does not need, and the libraries its extensions load."""
    source = Path("/usr/lib/python3.11")
    if not source.exists():
        raise ImageError("Debian's Python 3.11 is missing; apt-get install python3")
    skip = shutil.ignore_patterns("__pycache__", "config-*", *_STDLIB_LEFT_OUT)
    shutil.copytree(source, root / "usr/lib/python3.11", ignore=skip, symlinks=False, ignore_dangling_symlinks=True)
    for name in ("_json", "_hashlib", "_contextvars"):
        for extension in (source / "lib-dynload").glob(f"{name}.*.so"):
            for library in _libraries(extension, Path("/nonexistent")):
                _copy(library.resolve(), root / "usr/lib" / library.name)


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
