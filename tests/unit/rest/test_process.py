"""The API server's process: first start, restart, refusals to start, stopping."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest

from kernelet.core.security.kubeconfig import load_kubeconfig
from kernelet.core.security.pki import Pki
from kernelet.core.security.tokens import JoinToken, TokenError, Tokens, fetch_pinned_ca
from kernelet.proto import registry_pb2 as pb
from kernelet.proto.registry_pb2_grpc import RegistryStub

from .conftest import Server, arguments, free_port, running, stop


def refusal(folder: Path, *extra: str) -> str:
    done = subprocess.run(arguments(folder, *extra), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    return lines[0]


def test_a_restart_keeps_certificates_and_objects(tmp_path: Path) -> None:
    ports = "--port", str(free_port()), "--grpc-port", str(free_port())
    path = "/api/v1/namespaces/default/configmaps"
    with running(tmp_path / "state", *ports) as first:
        kubeconfig = first.kubeconfig.read_bytes()
        body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept"},"data":{"a":"b"}}'
        request = Request(f"{first.url}{path}", body, {"Content-Type": "application/json"})
        with urlopen(request, context=first.tls(), timeout=10) as created:
            assert created.status == 201
        assert stop(first.process) == 0
    with running(tmp_path / "state", *ports) as second:
        assert second.kubeconfig.read_bytes() == kubeconfig
        with urlopen(f"{second.url}{path}/kept", context=second.tls(), timeout=10) as found:
            assert b'"data":{"a":"b"}' in found.read()
        assert stop(second.process) == 0
    assert "Traceback" not in second.log.read_text()
    assert min(first.seconds_to_ready, second.seconds_to_ready) < 5


def test_open_watches_do_not_delay_the_end(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        config = load_kubeconfig(server.kubeconfig)
        credentials = grpc.ssl_channel_credentials(config.ca_pem, config.key_pem, config.cert_pem)
        watch_url = f"{server.url}/api/v1/namespaces?watch=1"
        with (
            grpc.secure_channel(config.address, credentials) as channel,
            urlopen(watch_url, context=server.tls(), timeout=10) as watch,
        ):
            request = pb.WatchRequest(ref=pb.Ref(version="v1", resource="namespaces"))
            assert next(RegistryStub(channel).Watch(request, timeout=10)).type == "ADDED"
            assert b'"ADDED"' in watch.readline()
            begun = time.monotonic()
            assert stop(server.process) == 0
            assert time.monotonic() - begun < 5
            # The chunked answer ends as it should, so a client does not take it for a fault.
            assert all(b'"ADDED"' in line for line in watch)
        assert "Traceback" not in server.log.read_text()


def test_a_socket_bound_by_another_process_is_served_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        flags = arguments(tmp_path / "state", "--listen-fd", str(listener.fileno()))
        process = subprocess.Popen(flags, pass_fds=(listener.fileno(),), stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert " ready https=" in process.stderr.readline()
            token = str(JoinToken(Pki.load(tmp_path / "state" / "pki").ca_hash, "x"))
            assert fetch_pinned_ca(f"https://127.0.0.1:{listener.getsockname()[1]}", token).startswith(b"-----BEGIN")
        finally:
            stop(process)
            process.communicate()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(tmp_path / "state", "--port", str(port))
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what uses the port" in message
        assert f"127.0.0.1:{port}" in refusal(tmp_path / "state", "--grpc-port", str(port))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--store", "mysql://x"), "unknown scheme; use sqlite:///FILE or etcd://HOST:PORT"),
        (("--store", "sqlite:///proc/none/x.db"), "/proc/none"),
        (("--service-cidr", "10.96.0.0"), "--service-cidr"),
        (("--service-cidr", "fd00:96::/112,10.96.0.0/16"), "give an IPv4 network such as 10.96.0.0/16, or that and"),
        (("--service-cidr", "10.96.0.0/16,fd00:96::/64"), "--service-cidr fd00:96::/64: too large; give at most a"),
        (("--node-port-range", "5-1"), "--node-port-range: give LOW-HIGH"),
        (("--listen-fd", "77"), "file descriptor 77 is no socket"),
        (("--data-dir", "/proc/none"), "--data-dir /proc/none"),
        (("--unix-socket", "/proc/none/x.sock"), "--unix-socket /proc/none/x.sock"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path / "state", *flags)


def test_a_ca_without_its_key_is_named(tmp_path: Path) -> None:
    Pki.ensure(tmp_path / "state" / "pki")
    (tmp_path / "state" / "pki" / "ca.key").unlink()
    assert "ca.key is missing; restore it" in refusal(tmp_path / "state")


def test_grpc_needs_a_certificate_and_takes_the_kubeconfigs(server: Server) -> None:
    config = load_kubeconfig(server.kubeconfig)
    request = pb.GetRequest(ref=pb.Ref(version="v1", resource="namespaces", name="default"))
    good = grpc.ssl_channel_credentials(config.ca_pem, config.key_pem, config.cert_pem)
    with grpc.secure_channel(config.address, good) as channel:
        assert b'"name":"default"' in RegistryStub(channel).Get(request, timeout=5).json
    with grpc.secure_channel(config.address, grpc.ssl_channel_credentials(config.ca_pem)) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            RegistryStub(channel).Get(request, timeout=2)
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


def test_a_join_token_pins_the_ca_and_authenticates(server: Server, tmp_path: Path) -> None:
    pki = Pki.load(server.folder / "pki")
    secret = Tokens(pki.folder).create("system:bootstrap:n1", ["system:bootstrappers"], ttl=60)
    token = str(JoinToken(pki.ca_hash, secret))
    assert fetch_pinned_ca(server.url, token) == pki.ca_pem
    other = str(JoinToken(Pki.ensure(tmp_path / "other").ca_hash, secret))
    with pytest.raises(TokenError, match="presents another CA"):
        fetch_pinned_ca(server.url, other)
