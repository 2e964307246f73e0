"""Service proxy: engines that make the kernel route service addresses to backends.

Promises: `create_engine` gives an `Engine` (engine.py) for this host; an engine keeps its routes in the kernel when the
process is gone, and writes what changed rather than everything. Depends on `kernelet.ext` and on the route table of
`kernelet.dataplane.routes`. Never forwards a packet itself, and never learns where routes come from. One engine breaks
these promises by its nature: `userspace`, the baseline that the others are measured against, carries every byte itself.
"""

from __future__ import annotations

import logging

from .engine import Counter, Engine, EngineConfig, EngineError

__all__ = ["Counter", "Engine", "EngineConfig", "EngineError", "create_engine"]

_log = logging.getLogger(__name__)
ENGINES = ("auto", "nftables", "ebpf", "userspace")


def create_engine(name: str, config: EngineConfig) -> Engine:
    """The engine called `name`, one of `ENGINES`; "auto" takes the best one that this host can run.

    It touches nothing before its `start()`. Raises EngineError for an unknown name.
    """
    if name == "auto":
        _log.info("proxy engine nftables: it needs nothing but the kernel's nf_tables and nf_nat")
        name = "nftables"
    if name == "nftables":
        # Imported late: an engine that is not used must not demand its libraries.
        from .nftables import NftablesEngine

        return NftablesEngine(config)
    if name == "ebpf":
        from .ebpf import EbpfEngine

        return EbpfEngine(config)
    if name == "userspace":
        from .userspace import UserspaceEngine

        return UserspaceEngine(config)
    raise EngineError(f"no proxy engine is called {name!r}; use one of {', '.join(ENGINES)}")
