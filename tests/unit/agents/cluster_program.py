"""`python cluster_program.py FOLDER`: a supervisor of the cluster below the folder, to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kernelet.agents.cluster.paths import ClusterPaths
from kernelet.agents.cluster.spec import ClusterSpec
from kernelet.agents.cluster.supervisor import Supervisor

if __name__ == "__main__":
    root = Path(sys.argv[1])
    paths = ClusterPaths("test", root / "state", root / "run")
    asyncio.run(Supervisor(paths, ClusterSpec.load(paths.spec)).run())
