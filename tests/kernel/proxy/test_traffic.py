"""Connections through service addresses and node ports, in real namespaces."""

from __future__ import annotations

import errno

from kernelet.dataplane.proxy.nftables.engine import NftablesEngine

from .topology import Feed, Topology, service

VIP = "10.96.0.1"


def test_a_connection_attempt_to_a_backend_that_does_not_answer_moves_on_once_that_is_removed(
    topology: Topology, engine: NftablesEngine, feed: Feed
) -> None:
    """A node that lost its power answers nothing: the next SYN of the same attempt must reach a backend that lives."""
    engine.apply(feed.change(service("web", VIP, topology.web1.backend())))
    topology.web1.namespace.ip(f"route add blackhole {topology.client.address}/32")
    try:
        attempt = topology.client.namespace.open()
        attempt.setblocking(False)
        assert attempt.connect_ex((VIP, 80)) == errno.EINPROGRESS
        engine.apply(feed.change(service("web", VIP, topology.web2.backend())))
        engine.tidy()
        attempt.settimeout(5)  # the second SYN comes after one second, the third after three (RFC 6298)
        with attempt, attempt.makefile() as stream:
            assert stream.readline().strip() == topology.web2.address
    finally:
        topology.web1.namespace.ip(f"route del blackhole {topology.client.address}/32")
