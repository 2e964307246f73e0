"""Service proxy: engines that make the kernel route service addresses to backends.

Promises: `create_engine` gives an `Engine` (engine.py) for this host; an engine keeps its routes in the kernel when the
process is gone, and writes what changed rather than everything. Depends on `kernelet.ext` and on the route table of
`kernelet.dataplane.routes`. Never forwards a packet itself, and never learns where routes come from. One engine breaks
these promises by its nature: `userspace`, the baseline that the others are measured against, carries every byte itself.
"""

from __future__ import annotations

from .choice import ENGINES, Choice, choose, make_way, programmed
from .engine import Counter, Engine, EngineConfig, EngineError

__all__ = [
    "ENGINES",
    "Choice",
    "Counter",
    "Engine",
    "EngineConfig",
    "EngineError",
    "choose",
    "create_engine",
    "make_way",
    "programmed",
]


def create_engine(name: str, config: EngineConfig) -> Engine:
    """The engine called `name`, one of `ENGINES`; "auto" takes the one that `choose` does.

    It touches nothing before its `start()`. Raises EngineError for an unknown name.
    """
    engine = choose(name, config).engine
    # Imported late: an engine that is not used must not demand its libraries.
    if engine == "nftables":
        from .nftables.engine import NftablesEngine

        return NftablesEngine(config)
    if engine == "ebpf":
        from .ebpf.engine import EbpfEngine

        return EbpfEngine(config)
    from .userspace.engine import UserspaceEngine

    return UserspaceEngine(config)
