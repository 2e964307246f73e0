"""Images of a node: the pause image, made here; pulls, one at a time an image and shared by all who wait for it."""

from __future__ import annotations

import asyncio
import io
import logging
import tarfile
import tempfile
from pathlib import Path
from typing import Protocol, runtime_checkable

from .plugins import Runtime, RuntimeFailure

log = logging.getLogger(__name__)

PAUSE_REPOSITORY = "kernelet/pause"
PAUSE_TAG = "1"
PAUSE_IMAGE = f"{PAUSE_REPOSITORY}:{PAUSE_TAG}"
_SOURCE = Path(__file__).parent / "pause" / "pause.c"
_COMPILE_SECONDS = 30.0


@runtime_checkable
class ImageImporter(Protocol):
    """What making an image locally needs of a runtime."""

    async def has_image(self, image: str) -> bool: ...
    async def import_image(self, tar: Path, repository: str, tag: str, entrypoint: str) -> None: ...


async def ensure_pause_image(runtime: ImageImporter) -> str:
    """Makes the pause image unless it is there; returns its name.

    Two nodes that do so at once both import the same program under the same name: the later one wins, either is right.
    Raises RuntimeFailure naming what is missing.
    """
    if await runtime.has_image(PAUSE_IMAGE):
        return PAUSE_IMAGE
    with tempfile.TemporaryDirectory(prefix="kernelet-pause-") as folder:
        program = Path(folder) / "pause"
        await _compile(program)
        archive = Path(folder) / "pause.tar"
        archive.write_bytes(tar_of({"pause": program.read_bytes()}))
        await runtime.import_image(archive, PAUSE_REPOSITORY, PAUSE_TAG, "/pause")
    log.info("made image %s", PAUSE_IMAGE)
    return PAUSE_IMAGE


async def _compile(program: Path) -> None:
    command = ["gcc", "-static", "-Os", "-s", "-Wall", "-Werror", "-o", str(program), str(_SOURCE)]
    try:
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    except FileNotFoundError as error:
        raise RuntimeFailure(
            f"image {PAUSE_IMAGE} cannot be made: gcc is missing; apt-get install gcc libc6-dev"
        ) from error
    try:
        async with asyncio.timeout(_COMPILE_SECONDS):
            _, errors = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise RuntimeFailure(f"image {PAUSE_IMAGE} cannot be made: gcc took over {_COMPILE_SECONDS:.0f} s") from error
    if process.returncode:
        raise RuntimeFailure(
            f"image {PAUSE_IMAGE} cannot be made: {errors.decode(errors='replace').strip()}; "
            f"a static build needs libc6-dev"
        )


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar archive of executable files, with the same bytes for the same content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


class ImagePuller:
    """Pulls by request; whoever asks for an image that is being pulled waits for the same pull.

    Pulls run in `group`, their owner: a pod that gives up waiting does not end the pull of another.
    """

    def __init__(self, runtime: Runtime, group: asyncio.TaskGroup) -> None:
        self._runtime = runtime
        self._group = group
        self._running: dict[str, asyncio.Future[None]] = {}

    async def pull(self, image: str) -> None:
        """Raises RuntimeFailure (ImagePullFailure) naming the image and the cause."""
        running = self._running.get(image)
        if running is None:
            running = asyncio.get_running_loop().create_future()
            self._running[image] = running
            self._group.create_task(self._run(image, running), name=f"pull {image}")
        await asyncio.shield(running)

    async def _run(self, image: str, done: asyncio.Future[None]) -> None:
        try:
            await self._runtime.pull(image)
        except RuntimeFailure as error:
            done.set_exception(error)
            # Retrieved here, in case every waiter has gone: an unread error is no bug of theirs.
            done.exception()
        except asyncio.CancelledError:
            done.cancel()
            raise
        else:
            done.set_result(None)
        finally:
            del self._running[image]
