"""What the daemons' commands refuse before they touch anything."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from kernelet.agents.cluster.up import RESERVED, command
from kernelet.agents.node import command as node_command


@pytest.mark.parametrize("name", [*RESERVED, "Supervisor"])
def test_a_node_cannot_take_the_name_of_another_process_of_its_cluster(name: str) -> None:
    result = CliRunner().invoke(command, ["--address", "127.0.0.1", "--node-name", name])
    assert result.exit_code == 2
    assert "is the name of another process of the cluster" in result.output


def test_an_engine_that_does_not_exist_is_refused_by_name() -> None:
    result = CliRunner().invoke(node_command, ["--node-ip", "127.0.0.1", "--engine", "ipvs"])
    assert result.exit_code == 2
    assert "'ipvs' is not one of 'auto', 'ebpf', 'nftables', 'userspace'" in result.output
