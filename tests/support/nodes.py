"""Nodes as network namespaces on one switch, each with an event loop of its own that lives inside; and pods."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, TypeVar

from kernelet.dataplane.overlay import OverlayConfig, Vxlan
from kernelet.dataplane.overlay.vxlan import vtep_mac
from kernelet.dataplane.podnet import PodNet, PodNetConfig
from kernelet.dataplane.routes import Peer
from support.netns import Lab, Namespace

T = TypeVar("T")

CLUSTER_CIDR = IPv4Network("10.244.0.0/16")
OUTSIDE_ADDRESS = "172.30.0.99"
DEADLINE = 10.0


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Seconds until the condition held. Raises AssertionError when it does not in time."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not so within {seconds} s"
        time.sleep(0.005)
    return time.monotonic() - started


class LoopIn:
    """An event loop in a thread that lives in one namespace, as an agent's process would."""

    def __init__(self, lab: Lab, namespace: Namespace) -> None:
        self._namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        lab.callback(self._end)

    def _run(self) -> None:
        with self._namespace.entered():
            self._loop.run_forever()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there; returns or raises what it does."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    @contextlib.contextmanager
    def during(self, work: Coroutine[Any, Any, None]) -> Any:
        """The coroutine runs there for the duration; it must not have ended by itself."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            yield
            assert not future.done(), f"it ended early: {future}"
        finally:
            future.cancel()
            self.do(asyncio.sleep(0))

    def blocked(self, work: Callable[[], object]) -> None:
        """Runs something in the loop's thread, so that the loop reads nothing meanwhile."""

        async def body() -> None:
            work()

        self.do(body())


class Pod:
    """A namespace with a process inside, as the runtime leaves it before the network is attached."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.id = name
        self.address = ""
        self.namespace = lab.namespace(name)
        with self.namespace.entered():
            self._process = subprocess.Popen(["sleep", "300"])
        self.pid = self._process.pid
        lab.callback(self.kill)

    def kill(self) -> None:
        """The process ends, and its namespace with it."""
        self._process.kill()
        self._process.wait()
        subprocess.run(["ip", "netns", "del", self.namespace.name], capture_output=True, timeout=60, check=False)


class Node:
    """A node with its agents' objects, not started."""

    def __init__(self, lab: Lab, switch: Namespace, number: int) -> None:
        self.name, self.number = f"n{number}", number
        self.address = f"172.30.0.1{number}"
        self.subnet = IPv4Network(f"10.244.{number}.0/24")
        self.gateway = str(self.subnet[1])
        self.lab = lab
        self.namespace = plug(lab, switch, self.name, self.address)
        self.loop = LoopIn(lab, self.namespace)
        self.overlay = self.new_overlay()
        self.podnet = self.new_podnet()

    def new_overlay(self, **changes: Any) -> Vxlan:
        fields: dict[str, Any] = {
            "node": self.name,
            "address": IPv4Interface(f"{self.address}/24"),
            "pod_cidr": self.subnet,
            "cluster_cidr": CLUSTER_CIDR,
        }
        return Vxlan(OverlayConfig(**(fields | changes)))

    def new_podnet(self, mtu: int = 1450) -> PodNet:
        return PodNet(PodNetConfig(self.subnet, CLUSTER_CIDR, mtu))

    def start(self) -> None:
        self.loop.do(self.overlay.start())
        self.loop.do(self.podnet.start())

    def peer(self) -> Peer:
        return Peer(self.name, (str(self.subnet),), self.address, vtep_mac(IPv4Address(self.address)))

    def pod(self, name: str) -> Pod:
        """A pod with its network attached."""
        pod = Pod(self.lab, name)
        pod.address = self.loop.do(self.podnet.attach(pod.id, pod.pid)).addresses[0]
        return pod


def switch(lab: Lab) -> Namespace:
    made = lab.namespace("switch")
    made.ip("link add br0 type bridge", "link set br0 up")
    return made


def plug(lab: Lab, switch: Namespace, role: str, address: str) -> Namespace:
    """A namespace on the switch."""
    made = lab.namespace(role)
    lab.veth(made, "eth0", switch, f"p-{role}")
    switch.ip(f"link set p-{role} master br0")
    made.ip(f"addr add {address}/24 dev eth0")
    return made
