"""The API server's process: what is made on first start, in which order parts start and stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kernelet.core.client import logs
from kernelet.core.security.kubeconfig import KubeconfigError, write_kubeconfig
from kernelet.core.security.pki import CertPair, Pki, PkiError
from kernelet.core.security.tokens import TokenError, Tokens
from kernelet.core.store import StoreError, open_store

from .grpc import GrpcFace, Tls
from .kubelets import KubeletProxy
from .registry import Registry, RegistryConfig
from .rest.context import Face
from .rest.server import ListenError, RestServer, inherit, listen, tls_context

log = logging.getLogger("apiserver")

SERVER_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "kernelet-apiserver",
    "127.0.0.1",
)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LARGEST_IPV6 = 1 << 20
"""Addresses of an IPv6 service network, as in Kubernetes: a full one must be found out in bounded time."""


class StartError(Exception):
    """The server cannot start; one line that names the object, the cause and the fix."""


@dataclass(frozen=True)
class Options:
    """The command's flags, checked; see `kernelet apiserver --help`."""

    store_url: str
    data_dir: Path
    cluster: str
    bind: str
    port: int
    grpc_port: int
    token_port: int
    advertise_address: str
    public_url: str
    tls_san: tuple[str, ...]
    unix_socket: str
    listen_fds: tuple[int, ...]
    service_networks: tuple[Network, ...]
    """The IPv4 one first."""
    node_ports: tuple[int, int]
    default_toleration_seconds: int
    event_ttl: float
    log_level: str

    @classmethod
    def parse(cls, flags: Mapping[str, Any]) -> Options:
        """Raises StartError naming the flag."""
        values = dict(flags)
        data_dir = Path(values.pop("data_dir")).absolute()
        networks = _service_networks(values.pop("service_cidr"))
        low, _, high = str(values.pop("node_port_range")).partition("-")
        if not low.isdigit() or not high.isdigit() or not 0 < int(low) <= int(high) < 65536:
            raise StartError("--node-port-range: give LOW-HIGH such as 30000-32767")
        return cls(
            data_dir=data_dir,
            cluster=values.pop("cluster") or data_dir.name,
            store_url=values.pop("store_url") or f"sqlite://{data_dir / 'store.db'}",
            advertise_address=values.pop("advertise_address") or _own_address(values["bind"]),
            service_networks=networks,
            node_ports=(int(low), int(high)),
            **values,
        )


def _service_networks(text: str) -> tuple[Network, ...]:
    """Raises StartError."""
    example = "give an IPv4 network such as 10.96.0.0/16, or that and an IPv6 one: 10.96.0.0/16,fd00:96::/112"
    try:
        networks = tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise StartError(f"--service-cidr: {error}; {example}") from error
    if [network.version for network in networks] not in ([4], [4, 6]):
        raise StartError(f"--service-cidr {text}: {example}")
    for network in networks:
        if network.num_addresses < 16:
            raise StartError(f"--service-cidr {network}: too small; give at least a /{network.max_prefixlen - 4}")
        if network.version == 6 and network.num_addresses > LARGEST_IPV6:
            raise StartError(f"--service-cidr {network}: too large; give at most a /108")
    return networks


@dataclass(frozen=True)
class Ports:
    """The TCP ports in use; of HTTPS, the one of --port."""

    https: int
    grpc: int
    tokens: int


@dataclass(frozen=True)
class Identity:
    """The cluster's CA, and the server's own certificate."""

    pki: Pki
    server: CertPair
    kubelet_client: CertPair


def run(options: Options) -> None:
    """Serves until SIGTERM or SIGINT. Raises StartError."""
    try:
        logs.setup("apiserver", options.log_level)
    except ValueError as error:
        raise StartError(f"--log-level: {error}") from error
    try:
        asyncio.run(serve(options))
    except (PkiError, TokenError, KubeconfigError, StoreError, ListenError) as error:
        raise StartError(str(error)) from error
    except ValueError as error:
        # An unknown store scheme and the like: a wrong flag, not a fault.
        log.debug("start failed", exc_info=error)
        raise StartError(str(error)) from error


async def serve(options: Options) -> None:
    """Starts everything, waits for a signal, stops everything in reverse. Raises what makes a start impossible."""
    started = time.monotonic()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with running(options) as listening:
        log.info("ready", extra={**listening, "seconds": f"{time.monotonic() - started:.2f}"})
        await stopping.wait()
        log.info("stopping")
    log.info("stopped")


@asynccontextmanager
async def running(options: Options) -> AsyncIterator[dict[str, str]]:
    """The whole server; yields the addresses it listens on."""
    async with AsyncExitStack() as stack:
        sockets = [listen(options.bind, options.port), *map(inherit, options.listen_fds)]
        for listener in sockets:
            stack.callback(listener.close)
        port = int(sockets[0].getsockname()[1])
        identity = await asyncio.to_thread(make_identity, options)
        tokens = Tokens(identity.pki.folder)
        store = await open_store(options.store_url)
        stack.push_async_callback(store.close)
        registry = await stack.enter_async_context(Registry(store, _registry_config(options, port)))
        proxy = KubeletProxy(identity.pki.ca_path, identity.kubelet_client.cert_path, identity.kubelet_client.key_path)
        nodes = await stack.enter_async_context(proxy)
        face = Face(registry, registry.authorizer, tokens.authenticate, nodes, identity.pki.ca_pem)
        rest = RestServer(face, tls_context(identity.server.cert_path, identity.server.key_path, identity.pki.ca_path))
        await rest.start(sockets)
        stack.push_async_callback(rest.stop)
        grpc_face = GrpcFace(registry, _grpc_tls(identity), tokens.authenticate, nodes, identity.pki)
        ports = _listen_grpc(grpc_face, options, port)
        await grpc_face.start()
        # Watches never end by themselves: whatever takes longer than this is one.
        stack.push_async_callback(grpc_face.stop, 0.5)
        await asyncio.to_thread(write_kubeconfigs, options, identity, ports)
        yield {name: f"{_bracketed(options.bind)}:{number}" for name, number in asdict(ports).items()}


def _grpc_tls(identity: Identity) -> Tls:
    cert, key = identity.server.read()
    return Tls(identity.pki.ca_pem, cert, key)


def _listen_grpc(face: GrpcFace, options: Options, https: int) -> Ports:
    """Opens the listeners of the gRPC face. Raises ListenError."""
    host = _bracketed(options.bind)
    try:
        grpc = face.listen(f"{host}:{options.grpc_port}")
        tokens = face.listen(f"{host}:{options.token_port}", client_certificate=False)
        if options.unix_socket:
            Path(options.unix_socket).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            face.listen(f"unix://{options.unix_socket}")
    except RuntimeError as error:
        raise ListenError(f"cannot listen for gRPC: {error}; stop what uses the address or choose another") from error
    except OSError as error:
        raise ListenError(f"--unix-socket {options.unix_socket}: {error.strerror or error}") from error
    return Ports(https, grpc, tokens)


def make_identity(options: Options) -> Identity:
    """The CA and the server's certificates, made on first start. Raises PkiError."""
    try:
        options.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise PkiError(f"--data-dir {options.data_dir}: {error.strerror or error}") from error
    pki = Pki.ensure(options.data_dir / "pki")
    public = urlsplit(options.public_url).hostname if options.public_url else None
    names = [*SERVER_NAMES, options.advertise_address, str(options.service_networks[0][1]), *options.tls_san]
    names += [name for name in (public, options.bind) if name and name not in ("0.0.0.0", "::")]
    server = pki.issue("apiserver", "kernelet-apiserver", sans=list(dict.fromkeys(names)), server=True, client=False)
    return Identity(pki, server, pki.issue("apiserver-kubelet-client", "kernelet-apiserver", ["system:masters"]))


def write_kubeconfigs(options: Options, identity: Identity, ports: Ports) -> None:
    """admin.kubeconfig and controllers.kubeconfig. Raises PkiError, KubeconfigError."""
    pki = identity.pki
    host = _bracketed(options.advertise_address)
    url = options.public_url or f"https://{host}:{ports.https}"
    grpc = f"unix://{options.unix_socket}" if options.unix_socket else f"{host}:{ports.grpc}"
    admin = pki.issue("admin", "kubernetes-admin", ["system:masters"])
    # The routes feed is served with this certificate as well, hence the names.
    names = list(dict.fromkeys(["kernelet-routes", "localhost", "127.0.0.1", options.advertise_address]))
    controllers = pki.issue("controllers", "system:kernelet-control-plane", ["system:masters"], sans=names, server=True)
    for user, pair in (("admin", admin), ("controllers", controllers)):
        path = options.data_dir / f"{user}.kubeconfig"
        write_kubeconfig(path, url, pki.ca_pem, *pair.read(), options.cluster, grpc, user=user)


def _registry_config(options: Options, port: int) -> RegistryConfig:
    return RegistryConfig(
        service_cidr=",".join(map(str, options.service_networks)),
        node_ports=options.node_ports,
        kubernetes_service_ip=str(options.service_networks[0][1]),
        dns_service_ip=str(options.service_networks[0][10]),
        advertise_host=options.advertise_address,
        advertise_port=port,
        toleration_seconds=options.default_toleration_seconds,
        event_ttl_seconds=options.event_ttl,
    )


def _own_address(bind: str) -> str:
    """The address others reach this host at: a datagram socket learns its own without sending anything."""
    if bind not in ("0.0.0.0", "::", ""):
        return bind
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
