"""`python -m kernelet.agents.cluster.supervise NAME`: the background supervisor of one cluster."""

from __future__ import annotations

import asyncio
import sys

from kernelet.core.client import logs

from .paths import ClusterPaths, check_name
from .spec import ClusterSpec
from .supervisor import Supervisor


def main() -> None:
    paths = ClusterPaths(check_name(sys.argv[1]))
    logs.setup("supervisor", "INFO")

    async def supervise() -> None:
        await Supervisor(paths, ClusterSpec.load(paths.spec)).run()

    asyncio.run(supervise())


if __name__ == "__main__":
    main()
