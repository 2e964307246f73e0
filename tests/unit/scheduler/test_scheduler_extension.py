"""Plug-ins and algorithms of other packages, found by entry points; and the process `kernelet scheduler`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apiserver import ApiServer
from support.scheduling import Cluster, node, pod

from kernelet.core.api.kinds import KINDS
from kernelet.core.client.client import Client
from kernelet.core.scheduler.algorithm import FrameworkAlgorithm
from kernelet.core.scheduler.config import SchedulerConfig
from kernelet.core.scheduler.framework import Handle, Unschedulable, load_algorithm
from kernelet.core.scheduler.scheduler import framework_of

MODULE = """
from kernelet.core.scheduler.framework import SUCCESS, unschedulable

class OnlyEven:
    name = "OnlyEven"

    def __init__(self, handle):
        self.handle = handle

    def filter(self, pod, node):
        return SUCCESS if int(node.name[1:]) % 2 == 0 else unschedulable("node(s) were odd")

class First:
    def __init__(self, handle):
        self.handle = handle

    def schedule(self, pod, nodes):
        return nodes[0]
"""
ENTRY_POINTS = """
[kernelet.scheduler.plugins]
OnlyEven = foreign_plugins:OnlyEven

[kernelet.scheduler.algorithms]
first = foreign_plugins:First
"""


@pytest.fixture
def foreign_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that declares a plug-in and an algorithm."""
    (tmp_path / "foreign_plugins.py").write_text(MODULE)
    info = tmp_path / "foreign_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("foreign_plugins", None)


@pytest.mark.usefixtures("foreign_package")
def test_an_installed_plugin_takes_part_unless_it_is_disabled() -> None:
    cluster = Cluster(node("n1"), node("n3"))
    cluster.algorithm = FrameworkAlgorithm(framework_of(cluster.handle, SchedulerConfig()))
    with pytest.raises(Unschedulable, match=r"0/2 nodes are available: 2 node\(s\) were odd\."):
        cluster.schedule(pod("web"))
    without = SchedulerConfig(disabled=("OnlyEven",))
    cluster.algorithm = FrameworkAlgorithm(framework_of(cluster.handle, without))
    assert cluster.schedule(pod("web")) in ("n1", "n3")


@pytest.mark.usefixtures("foreign_package")
def test_an_installed_algorithm_replaces_the_whole_decision() -> None:
    cluster = Cluster(node("n1", cpu="1"), node("n2"))
    assert load_algorithm("first", cluster.handle).schedule is not None
    with pytest.raises(ValueError, match=r'no schedule algorithm "fist" is installed .*first'):
        load_algorithm("fist", Handle())


def test_disabling_an_unknown_plugin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no scheduler plug-in NodePort to disable; there are: .*NodePorts"):
        framework_of(Handle(), SchedulerConfig(disabled=("NodePort",)))


async def test_the_process_leads_and_on_sigterm_gives_its_lease_up_and_exits(
    client: Client, shared_api_server: ApiServer
) -> None:
    program = "from kernelet.core.scheduler.main import command; command()"
    flags = ["--kubeconfig", str(shared_api_server.data / "admin.kubeconfig"), "--name", "alone"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *flags, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stderr.readline(), 20)
        assert b"INFO scheduler leading lease=kernelet-scheduler-alone" in line
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lease = await client.raw.get(KINDS.resolve("leases"), "kernelet-scheduler-alone", "kube-system")
    assert not lease["spec"]["holderIdentity"]
