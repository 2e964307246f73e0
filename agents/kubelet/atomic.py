"""Writes the files of a volume so that a reader sees all of the old ones or all of the new ones.

As Kubernetes' atomic writer: the files live in a folder of their own, `..data` is a symlink to it, and the visible
names are symlinks through `..data`. A change writes a new folder and renames one symlink (rename(2) is atomic).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_DATA = "..data"


@dataclass(frozen=True, slots=True)
class Entry:
    content: bytes
    mode: int = 0o644


Payload = Mapping[str, Entry]
"""Relative path -> file."""


def write_atomically(folder: Path, payload: Payload, group: int | None = None) -> bool:
    """Makes `folder` hold exactly the payload; False when it did already.

    Raises ValueError for a path that is absolute, empty or holds `..`, OSError when the disk refuses.
    """
    for path in payload:
        check_path(path)
    if group is not None:
        payload = {path: Entry(entry.content, entry.mode | 0o040) for path, entry in payload.items()}
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / _DATA
    old = data.resolve() if data.is_symlink() else None
    if old is not None and _read(old) == {path: (entry.content, entry.mode) for path, entry in payload.items()}:
        return False
    new = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    new.chmod(0o755)
    for path, entry in payload.items():
        _write(new, path, entry, group)
    link = folder / "..data_new"
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    link.rename(data)
    _point(folder, {PurePosixPath(path).parts[0] for path in payload})
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return True


def check_path(path: str) -> None:
    """Raises ValueError unless the path stays below the folder it is written to."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or any(part == ".." for part in parts) or parts[0].startswith(".."):
        raise ValueError(f"path {path!r} in a volume must be relative, below the volume and without '..'")


def _write(folder: Path, path: str, entry: Entry, group: int | None) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(entry.content)
    target.chmod(entry.mode)
    if group is not None:
        os.chown(target, -1, group)


def _read(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _point(folder: Path, names: set[str]) -> None:
    """Visible names: one symlink each through `..data`; names that went away are removed."""
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in names:
            entry.unlink()
    for name in names:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"{_DATA}/{name}")
