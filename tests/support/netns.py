"""Network namespaces for tests: made with random names, wired with veth pairs, and always removed again.

A socket belongs to the namespace it was made in, so servers and clients run in the test's own process: only the
`socket()` call happens inside. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_FOLDER = Path("/run/netns")


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread, and processes started by it, are in the namespace for the duration."""
    with contextlib.ExitStack() as stack:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, home)
        there = os.open(_FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, there)
        _setns(there)
        try:
            yield
        finally:
            _setns(home)


def run(*command: str, text: str = "") -> str:
    """Runs a command; what it prints. Raises RuntimeError with what it says when it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


class Server:
    """Answers every TCP connection with its name and a newline, then echoes; every UDP datagram with its name."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self._name = name.encode()
        self.peers: list[str] = []
        """Client addresses as the server saw them, in order."""
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._spawn(self._serve_udp if listener.type == socket.SOCK_DGRAM else self._serve_tcp)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return  # closed
            self.peers.append(peer[0])
            self._connections.append(connection)
            self._spawn(self._echo, connection)

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(self._name + b"\n")
            while data := connection.recv(4096):
                connection.sendall(data)

    def _serve_udp(self) -> None:
        while True:
            try:
                data, peer = self._listener.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            self.peers.append(peer[0])
            with contextlib.suppress(OSError):
                self._listener.sendto(self._name, peer)

    def close(self) -> None:
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)


class Namespace:
    """One network namespace of a `Lab`."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def run(self, *command: str, text: str = "") -> str:
        return run("ip", "netns", "exec", self.name, *command, text=text)

    def ip(self, *commands: str) -> None:
        """`ip` commands, each as one text without the leading `ip`; IPv6 ones begin with `-6`."""
        for flag, wanted in (("-4", False), ("-6", True)):
            lines = [line.removeprefix("-6 ") for line in commands if line.startswith("-6 ") is wanted]
            if lines:
                run("ip", flag, "-n", self.name, "-batch", "-", text="\n".join(lines) + "\n")

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return entered(self.name)

    def sysctl(self, key: str, value: str) -> None:
        with self.entered():
            Path("/proc/sys", *key.split(".")).write_text(value)

    def open(self, kind: socket.SocketKind = socket.SOCK_STREAM, address: str = "0.0.0.0") -> socket.socket:
        """A socket of the address's family, made in here; closed with the lab at the latest."""
        with self.entered():
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        self._lab.callback(made.close)
        return made

    def serve(self, address: str, port: int, name: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Server:
        listener = self.open(kind, address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        if kind == socket.SOCK_STREAM:
            listener.listen(256)
        server = Server(listener, name)
        self._lab.callback(server.close)
        return server

    def connect(self, address: str, port: int, timeout: float = 2.0) -> socket.socket:
        """A TCP connection from in here."""
        made = self.open(address=address)
        made.settimeout(timeout)
        made.connect((address, port))
        return made

    def ask(self, address: str, port: int, timeout: float = 2.0) -> str:
        """The name of the TCP server that answers."""
        with self.connect(address, port, timeout) as connection:
            return connection.makefile().readline().strip()

    def ask_udp(self, address: str, port: int, timeout: float = 2.0, via: socket.socket | None = None) -> str:
        """The name of the UDP server that answers; `via` keeps one source port over several questions."""
        made = via or self.open(socket.SOCK_DGRAM, address)
        made.settimeout(timeout)
        made.connect((address, port))
        made.send(b"?")
        return made.recv(4096).decode()


class Lab(contextlib.ExitStack):
    """Namespaces that are gone when the block is left, whatever happens in it."""

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(super().__exit__(kind, error, trace))

    def namespace(self, role: str) -> Namespace:
        name = f"kl-test-{role}-{secrets.token_hex(3)}"
        self.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, timeout=60, check=False)
        run("ip", "netns", "add", name)
        made = Namespace(self, name)
        made.ip("link set lo up")
        return made

    def veth(self, one: Namespace, one_link: str, other: Namespace, other_link: str) -> None:
        """A pair of links between two namespaces, both up."""
        run("ip", "link", "add", one_link, "netns", one.name, "type", "veth", "peer", other_link, "netns", other.name)
        one.ip(f"link set {one_link} up")
        other.ip(f"link set {other_link} up")
