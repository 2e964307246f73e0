"""kubeconfigs: written and read back, and those of other people."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kernelet.core.security.kubeconfig import (
    KubeconfigError,
    default_namespace,
    find_kubeconfig,
    load_kubeconfig,
    write_kubeconfig,
)

FOREIGN = """
apiVersion: v1
kind: Config
current-context: there
clusters:
- name: c
  cluster: {server: "https://api.example:6443", certificate-authority: ca.pem}
users:
- name: u
  user: {tokenFile: token}
- name: plugin
  user: {exec: {command: gke-gcloud-auth-plugin}}
contexts:
- name: there
  context: {cluster: c, user: u, namespace: team}
- name: by-plugin
  context: {cluster: c, user: plugin}
- name: broken
  context: {cluster: missing, user: u}
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_bytes(b"CA")
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "config").write_text(FOREIGN)
    return tmp_path / "config"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "made" / "config"
    write_kubeconfig(path, "https://127.0.0.1:6443", b"CA", b"CERT", b"KEY", "mine", "unix:///run/registry.sock")
    config = load_kubeconfig(path)
    assert (config.address, config.ca_pem) == ("unix:///run/registry.sock", b"CA")
    assert (config.cert_pem, config.key_pem, config.token) == (b"CERT", b"KEY", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert default_namespace(path) == "default"


def test_files_and_tokens_of_another_kubeconfig_are_read_relative_to_it(foreign: Path) -> None:
    config = load_kubeconfig(foreign)
    assert (config.address, config.ca_pem, config.token) == ("api.example:6445", b"CA", "secret")
    assert default_namespace(foreign) == "team"


def test_without_the_extension_a_certificate_goes_to_the_grpc_port(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "config", "https://[fd00::1]:6443", b"CA", b"CERT", b"KEY")
    assert load_kubeconfig(tmp_path / "config").address == "[fd00::1]:6444"


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            "by-plugin",
            r"plug-in \(exec or auth-provider\), which is not supported; use a client certificate or a token",
        ),
        ("broken", "no entry 'missing' in clusters; it has: c"),
        ("none", "no entry 'none' in contexts; it has: broken, by-plugin, there"),
    ],
)
def test_what_cannot_be_used_is_named(foreign: Path, context: str, message: str) -> None:
    with pytest.raises(KubeconfigError, match=message):
        load_kubeconfig(foreign, context)


@pytest.mark.parametrize("text", ["[1]", "a: [", "clusters: x", "clusters: [x]", ""])
def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(KubeconfigError, match=str(tmp_path / "config")):
        load_kubeconfig(tmp_path / "config")


def test_the_file_is_searched_in_the_documented_order(tmp_path: Path) -> None:
    assert find_kubeconfig("x", {"KERNELET_CONFIG": "y"}) == [Path("x")]
    assert find_kubeconfig(None, {"KERNELET_CONFIG": "y", "KUBECONFIG": "z"}) == [Path("y")]
    assert find_kubeconfig(None, {"KUBECONFIG": "a:b"}) == [Path("a"), Path("b")]


def test_files_of_a_list_merge_and_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kubeconfig(tmp_path / "one", "https://one:1", b"CA1", b"C", b"K", "one", "one:1")
    write_kubeconfig(tmp_path / "two", "https://two:1", b"CA2", b"C", b"K", "two", "two:1")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'gone'}:{tmp_path / 'one'}:{tmp_path / 'two'}")
    monkeypatch.delenv("KERNELET_CONFIG", raising=False)
    assert load_kubeconfig().address == "one:1"
    assert load_kubeconfig(context="two").address == "two:1"
