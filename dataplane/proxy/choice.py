"""Which engine a node runs, and how one makes way for another."""

from __future__ import annotations

import logging
from typing import NamedTuple

from .engine import EngineConfig, EngineError

_log = logging.getLogger(__name__)
ENGINES = ("auto", "ebpf", "nftables", "userspace")


class Choice(NamedTuple):
    """An engine, and why it is this one."""

    engine: str
    reason: str


def choose(name: str, config: EngineConfig) -> Choice:
    """The engine called `name`, one of `ENGINES`; for "auto" ebpf where this host can run it, else nftables.

    To find out, the socket programs are loaded and attached for a moment, which takes 0.1 s and changes nothing.
    Raises EngineError for an unknown name.
    """
    if name not in ENGINES:
        raise EngineError(f"no proxy engine is called {name!r}; use one of {', '.join(ENGINES)}")
    if name != "auto":
        return Choice(name, "it was asked for")
    if config.host_cgroup is None:
        return Choice("nftables", "no cgroup is named whose sockets the ebpf engine could serve")
    # Imported late: an engine that is not used must not demand its libraries.
    try:
        from .ebpf.kernel import obstacle
    except ImportError as error:
        return Choice("nftables", f"the ebpf engine is not built: {error}")
    why = obstacle(config.host_cgroup)
    if why:
        return Choice("nftables", f"this host cannot run the ebpf engine: {why}")
    return Choice("ebpf", "the kernel takes its socket programs")


def programmed(config: EngineConfig) -> str:
    """The kernel engine whose routes clients here meet: "ebpf" where its programs are pinned, else "nftables"."""
    from .ebpf.kernel import pins_of

    return "ebpf" if (pins_of(config) / "links").is_dir() else "nftables"


def make_way(engine: str, config: EngineConfig) -> None:
    """Removes what an earlier engine has left and `engine` would not replace, once that has all routes.

    The engines on nftables have one table between them, which whoever starts makes its own. Raises EngineError.
    """
    if engine == "ebpf" or programmed(config) != "ebpf":
        return
    from .ebpf.kernel import pins_of, remove_pins

    _log.info("detaching the socket programs of the ebpf engine: the %s engine has taken over", engine)
    try:
        remove_pins(pins_of(config))
    except OSError as error:
        raise EngineError(f"cannot remove the ebpf engine: {error.strerror or error}") from error
