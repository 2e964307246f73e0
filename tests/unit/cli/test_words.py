"""Command lines are understood as kubectl's are; start-up stays light."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from kernelet.core.api.errors import NotFound
from kernelet.core.cli.logs import duration
from kernelet.core.cli.main import BUILT_IN, cli
from kernelet.core.cli.modify import split_changes
from kernelet.core.cli.targets import parse_targets

FAR = ["--kubeconfig", "/nowhere/config"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["pods"], ["pod/"]),
        (["po", "a", "b"], ["pod/a", "pod/b"]),
        (["deploy/a", "svc/b"], ["deployment.apps/a", "service/b"]),
        (["pods,svc"], ["pod/", "service/"]),
        (["deployments.v1.apps", "a"], ["deployment.apps/a"]),
        (["all"], ["pod/", "service/", "replicationcontroller/", "replicaset.apps/", "deployment.apps/"]),
    ],
)
def test_targets_are_types_and_names(arguments: list[str], meant: list[str]) -> None:
    assert [str(target) for target in parse_targets(arguments)] == meant


@pytest.mark.parametrize("arguments", [[], ["pods", "a/b"], ["pods,svc", "a"], ["pod/"], ["/a"], ["a/b/c"], [","]])
def test_targets_of_a_wrong_form_are_refused(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse_targets(arguments)


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(NotFound, match='doesn\'t have a resource type "frobs"'):
        parse_targets(["frobs"])


def test_changes_are_told_from_targets() -> None:
    assert split_changes(["pod", "web-1", "a=b=c", "x-"]) == (["pod", "web-1"], {"a": "b=c", "x": None})
    with pytest.raises(click.UsageError, match="KEY=VALUE"):
        split_changes(["pod", "web"])
    with pytest.raises(click.UsageError, match="must consist of alphanumeric"):
        split_changes(["pod", "web", "a b=c"])


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1h30m", 5400), ("1.5m", 90), ("100ms", 0.1)])
def test_durations_have_units(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5 m", "h", "5x", "m5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 90s"):
        duration(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "write TYPE"),
        (["get", "pods", "a", "-l", "x=y"], "leave out one of the two"),
        (["get", "pod", "a", "-A"], "leave out -A"),
        (["get", "pods,svc", "-w"], "-w watches one type"),
        (["delete", "pods"], "--all"),
        (["delete"], "say what to delete"),
        (["create"], "say what to create"),
        (["create", "pod", "a"], "needs more than a name"),
        (["scale", "deploy/web"], "--replicas"),
        (["scale", "svc/web", "--replicas=1"], "cannot be scaled"),
        (["rollout", "status", "pod/a"], "has no rollouts"),
        (["label", "pods", "a=b"], "--all"),
        (["label", "pod", "a", "b=c d"], "a valid label"),
        (["exec", "pod"], "COMMAND"),
        (["logs", "a", "--since", "soon"], "write 90s"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2_and_says_what_is_right(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, [*FAR, *arguments], prog_name="kernelet")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_an_error_is_one_line_on_stderr_and_status_1() -> None:
    result = CliRunner().invoke(cli, [*FAR, "get", "pods"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: kubeconfig /nowhere/config: ")
    assert result.stderr.count("\n") == 1


def test_options_may_stand_before_and_after_the_command() -> None:
    for arguments in (
        ["-n", "a", "--kubeconfig", "/nowhere/x", "get", "pods"],
        ["get", "pods", "--kubeconfig", "/nowhere/x"],
    ):
        assert "/nowhere/x" in CliRunner().invoke(cli, arguments).stderr


def test_help_lists_built_in_commands_and_those_of_other_packages() -> None:
    text = CliRunner().invoke(cli, ["--help"]).stdout
    for name in (*BUILT_IN, "apiserver", "cluster"):
        assert f"  {name} " in text
    for name in BUILT_IN:
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def completions(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    environment = {"_KERNELET_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["kernelet", *words])}
    environment |= {"COMP_CWORD": str(len(words))}
    result = CliRunner().invoke(cli, [], prog_name="kernelet", env=environment, complete_var="_KERNELET_COMPLETE")
    return [line.partition(",")[2] for line in result.stdout.split("\n") if line]


def test_commands_and_kinds_are_completed() -> None:
    assert completions("ro") == ["rollout", "routes", "routes-server"]
    assert completions("get", "dep") == ["deployments"]
    assert completions("get", "pods,serv") == ["pods,serviceaccounts", "pods,services"]
    assert completions("get", "-o", "y") == ["yaml"]
    assert completions("--kubeconfig", "/nowhere/x", "get", "pods", "w") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    assert "_KERNELET_COMPLETE" in CliRunner().invoke(cli, ["completion", shell]).stdout


def test_the_command_line_starts_without_models_http_or_cryptography() -> None:
    modules = ", ".join(f"kernelet.core.cli.{module}" for module, _ in BUILT_IN.values())
    script = (
        f"import sys, kernelet.core.cli.main, {modules}, kernelet.core.client.raw, kernelet.core.security.kubeconfig\n"
        "heavy = {'lightkube', 'aiohttp', 'cryptography', 'rich', 'docker', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    light = "import sys, kernelet.core.cli.main; sys.exit('grpc' in sys.modules or 'yaml' in sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True)
