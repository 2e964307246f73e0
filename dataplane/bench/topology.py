"""The network that proxies are measured in: a node, a client pod and backend pods, each a network namespace.

Every subject of a comparison gets a world of its own. So nothing that one leaves behind can slow another one down:
tracked connections, sockets in TIME_WAIT, source ports in use. Two paths that share client addresses and backends spoil
each other's figures for minutes. All worlds are alike to the last address, and a world that is not being measured costs
nothing, as nothing in it runs.

The client has one address for each backend. A wrk thread, a client address and a target belong together, so
that the pods' own addresses (a thread a backend) and service addresses (a thread a service address, each of which leads
to all backends) are used with equally many source addresses and ports.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Self, TypeVar

from kernelet.ext import netns

from ..proxy import EngineConfig
from ..routes import Backend, BackendFlag, Delta, Protocol, ServicePort, ServiceRoute

PREFIX = "kl-bench-"
_RUN_NETNS = Path("/run/netns")
_CGROUPS = Path("/sys/fs/cgroup", "unified" if Path("/sys/fs/cgroup/unified").exists() else "")
_PINS = Path("/sys/fs/bpf/kernelet")
GATEWAY = "169.254.1.1"
BACKENDS = 4
HTTP_PORT, SERVICE_PORT, BULK_PORT, UDP_PORT = 8080, 80, 5201, 7000
_LOG_END = 1000
"""Characters of each log that an error quotes."""
_STOP_SECONDS = 5.0
T = TypeVar("T")


class BenchError(Exception):
    """A benchmark cannot run here; the message names object, cause and fix."""


def run(*command: str, text: str = "", seconds: float = 60.0) -> str:
    """Runs a command; what it prints. Raises BenchError with what it says when it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed: run `make setup`, or apt-get install it") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(command)} has not ended after {seconds:g} s") from None
    if done.returncode:
        raise BenchError(f"{' '.join(command)} exited {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def engine_config(cgroup: Path | None, pins: Path) -> EngineConfig:
    """For an engine on a world's node, that serves the sockets of `cgroup` if it works by cgroup."""
    return EngineConfig(
        node="bench",
        pod_cidrs=(ip_network("10.244.0.0/24"),),
        cluster_cidrs=(ip_network("10.244.0.0/16"),),
        service_cidrs=(ip_network("10.96.0.0/12"),),
        cgroups=() if cgroup is None else (cgroup,),
        pins=pins,
    )


class Namespace:
    """One network namespace; removed with the stack it is made on, after everything that was started in it."""

    def __init__(self, stack: ExitStack, role: str) -> None:
        self._stack = stack
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(2)}-{role}"
        self.cgroup: Path | None = None
        """Where what is started in here is put, for engines that work by cgroup."""
        stack.callback(subprocess.run, ["ip", "netns", "del", self.name], capture_output=True, check=False)
        run("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        self.sysctl("net.ipv4.ip_local_port_range", "1024 65535")

    def ip(self, *commands: str) -> None:
        """`ip` commands without the leading `ip`."""
        run("ip", "-n", self.name, "-batch", "-", text="".join(f"{line}\n" for line in commands))

    def inside(self, work: Callable[[], T]) -> T:
        """What `work` returns in here."""
        descriptor = os.open(_RUN_NETNS / self.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return netns.run_in(descriptor, work)
        finally:
            os.close(descriptor)

    def sysctl(self, key: str, value: str) -> None:
        self.inside(lambda: Path("/proc/sys", *key.split(".")).write_text(value))

    def join_cgroup(self, cgroup: Path) -> None:
        """What is started in here from now on is in this cgroup, which is made, and goes with the namespace."""
        cgroup.mkdir(parents=True, exist_ok=True)
        self._stack.callback(_remove_folder, cgroup)
        self.cgroup = cgroup

    def command(self, *command: str) -> list[str]:
        """A command that runs `command` in here."""
        # `ip netns exec` would mount /sys anew, without cgroups and without the bpf filesystem.
        whole = ["nsenter", f"--net={_RUN_NETNS / self.name}", "--"]
        if self.cgroup is not None:
            whole += ["sh", "-c", f'echo $$ > {self.cgroup}/cgroup.procs && exec "$@"', "sh"]
        return [*whole, *command]

    def run(self, *command: str, text: str = "", seconds: float = 60.0) -> str:
        return run(*self.command(*command), text=text, seconds=seconds)

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """A process that runs until the namespace goes, or until it is stopped; what it says goes to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen(self.command(*command), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._stack.callback(stop, process)
        return process

    @contextlib.contextmanager
    def serving(self, *command: str, ready: str) -> Iterator[None]:
        """A process that serves while the context lasts, which begins once it has printed a line with `ready`.

        It must print little more. Raises BenchError where it ends before.
        """
        process = subprocess.Popen(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if ready in line:
                    break
            else:
                raise BenchError(f"{command[0]} has ended rather than serve: {''.join(said).strip()}")
            yield
        finally:
            stop(process)
            process.stdout.close()


def _remove_folder(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def stop(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class World:
    """A node with a client pod and backend pods that serve HTTP. Use as a context manager: leaving it removes all.

    With `cgroup` the client is in a cgroup of its own, for proxies that work by cgroup. Backends serve on `ports`.
    """

    def __init__(
        self,
        subject: str,
        nginx: Path,
        folder: Path,
        *,
        cgroup: bool = False,
        ports: Sequence[int] = (HTTP_PORT,),
    ) -> None:
        self.subject = subject
        self.folder = folder / subject
        self._nginx, self._cgroup, self._ports = nginx, cgroup, ports
        self._stack = ExitStack()
        self.client_addresses = [f"10.244.0.{10 + index}" for index in range(BACKENDS)]
        self.backend_addresses = [f"10.244.0.{100 + index}" for index in range(BACKENDS)]
        self.service_addresses = [f"10.96.0.{10 + index}" for index in range(BACKENDS)]

    @property
    def config(self) -> EngineConfig:
        """For an engine on this world's node."""
        return engine_config(self.client.cgroup, self.pins)

    @property
    def pins(self) -> Path:
        """Where an engine on this world's node pins what outlives it."""
        return _PINS / self.client.name

    def logs(self) -> str:
        """The ends of what this world's processes have logged, for an error message."""
        ends = [
            f"{path.relative_to(self.folder)}: {text[-_LOG_END:]}"
            for path in sorted(self.folder.rglob("*log"))
            if path.is_file() and (text := path.read_text(errors="replace").strip())
        ]
        return "\n".join(ends) or "nothing in its logs"

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir()
            # The next round makes a world of the same subject again.
            self._stack.callback(shutil.rmtree, self.folder)
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def callback(self, work: Callable[[], object]) -> None:
        """Runs when the world is removed, before what is there now goes."""
        self._stack.callback(work)

    def _build(self) -> None:
        self.node = Namespace(self._stack, "node")
        self.node.sysctl("net.ipv4.ip_forward", "1")
        self.client = Namespace(self._stack, "client")
        self._join(self.client, "client", self.client_addresses)
        if self._cgroup:
            self.client.join_cgroup(_CGROUPS / self.client.name)
        for source, backend, service in zip(
            self.client_addresses, self.backend_addresses, self.service_addresses, strict=True
        ):
            self.client.ip(*(f"route add {to} via {GATEWAY} dev eth0 src {source}" for to in (backend, service)))
        self.backends = []
        for index, address in enumerate(self.backend_addresses):
            pod = Namespace(self._stack, f"web{index}")
            self._join(pod, f"web{index}", [address])
            self._serve(pod, index)
            self.backends.append(pod)

    def _join(self, pod: Namespace, link: str, addresses: list[str]) -> None:
        run("ip", "link", "add", link, "netns", self.node.name, "type", "veth", "peer", "eth0", "netns", pod.name)
        self.node.ip(
            f"link set {link} up",
            f"addr add {GATEWAY}/32 dev {link}",
            *(f"route add {address} dev {link}" for address in addresses),
        )
        pod.ip(
            "link set eth0 up",
            *(f"addr add {address}/32 dev eth0" for address in addresses),
            f"route add {GATEWAY} dev eth0",
            f"route add default via {GATEWAY} dev eth0",
        )

    def _serve(self, pod: Namespace, index: int) -> None:
        folder = self.folder / f"web{index}"
        folder.mkdir()
        listen = "\n".join(f"    listen {port} backlog=4096;" for port in self._ports)
        (folder / "nginx.conf").write_text(_NGINX.format(listen=listen))
        pod.start(str(self._nginx), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", log=folder / "log")

    def service(self) -> ServiceRoute:
        """HTTP with all backends; bulk TCP and UDP with the first."""
        pods = [Backend(ip_address(a).packed, HTTP_PORT, BackendFlag.READY, "bench") for a in self.backend_addresses]
        first = ip_address(self.backend_addresses[0]).packed
        return ServiceRoute(
            "bench/web",
            tuple(ip_address(address).packed for address in self.service_addresses),
            (
                ServicePort("http", Protocol.TCP, SERVICE_PORT, 0, tuple(pods)),
                ServicePort("bulk", Protocol.TCP, BULK_PORT, 0, (Backend(first, BULK_PORT),)),
                ServicePort("udp", Protocol.UDP, UDP_PORT, 0, (Backend(first, UDP_PORT),)),
            ),
        )

    def routes(self) -> Delta:
        return Delta("bench", 1, 0, [self.service()])


_NGINX = """daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{
{listen}
    location / {{ return 200 "ok\\n"; }}
  }}
}}
"""


def find_nginx(folder: Path) -> Path:
    """The nginx of this host, or one unpacked into `folder` from the packages that set-up downloads.

    Raises BenchError where there is neither.
    """
    installed = shutil.which("nginx")
    if installed:
        return Path(installed)
    packages = sorted(Path(__file__).resolve().parents[2].glob("build/debs/nginx_*.deb"))
    if not packages:
        raise BenchError("there is no nginx to serve requests: run `make setup`, or apt-get install nginx")
    run("dpkg-deb", "-x", str(packages[-1]), str(folder / "nginx"))
    return folder / "nginx/usr/sbin/nginx"


def _remove_left_over() -> None:
    """Removes what benchmarks have left behind that were killed and could not."""
    places = (_RUN_NETNS, _CGROUPS, _PINS, Path(tempfile.gettempdir()))
    for found in [path for place in places for path in place.glob(f"{PREFIX}*")]:
        owner = re.match(rf"{PREFIX}([0-9]+)-", found.name)
        if owner is None or Path("/proc", owner[1]).exists():
            continue
        if found.parent == _RUN_NETNS:
            for pid in run("ip", "netns", "pids", found.name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", found.name)
        elif found.parent == _CGROUPS:
            found.rmdir()
        else:
            shutil.rmtree(found)


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder for a benchmark's files; also removes what a killed benchmark has left behind. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("benchmarks make network namespaces and need root: use sudo")
    _remove_left_over()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        yield Path(folder)
