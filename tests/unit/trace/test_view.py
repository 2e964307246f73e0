"""What a trace shows of its events."""

from __future__ import annotations

import json
from ipaddress import ip_address

from kernelet.agents.trace.collect import Drop
from kernelet.agents.trace.subject import Endpoint
from kernelet.agents.trace.tracer import Connection, DroppedPacket
from kernelet.agents.trace.view import Latencies, Summary, event_json, histogram, is_telling, line


def end(address: str, port: int, protocol: int = 6) -> Endpoint:
    return Endpoint(ip_address(address).packed, port, protocol)


CLIENT, VIP, BACKEND = end("10.244.0.2", 40000), end("10.96.0.1", 80), end("10.244.0.3", 8080)


def connection(microseconds: float = 100.0, backend: Endpoint | None = BACKEND, error: str = "") -> Connection:
    return Connection(CLIENT, VIP, backend, True, microseconds, "node-1", 4026531840, error)


DROP = DroppedPacket(Drop(CLIENT, BACKEND, "SKB_DROP_REASON_NETFILTER_DROP", "nft_do_chain", 4026531840), "node-1")


def test_percentiles_are_exact_to_five_percent() -> None:
    latencies = Latencies()
    for microseconds in range(1, 10_001):
        latencies.add(float(microseconds))
    for share, exact in ((0.5, 5000), (0.99, 9900), (1.0, 10_000)):
        found = latencies.percentile(share)
        assert found is not None
        assert exact <= found * 1.001
        assert found <= exact * 1.05


def test_a_histogram_has_every_power_of_two_between_the_fastest_and_the_slowest() -> None:
    latencies = Latencies()
    for microseconds in (3.0, 3.5, 20.0):
        latencies.add(microseconds)
    assert latencies.powers() == {1: 2, 2: 0, 3: 0, 4: 1}
    lines = histogram(latencies).splitlines()[1:]
    assert [one.split()[:4] for one in lines] == [
        ["2", "->", "3", "2"],
        ["4", "->", "7", "0"],
        ["8", "->", "15", "0"],
        ["16", "->", "31", "1"],
    ]
    assert lines[0].count("*") == 2 * lines[3].count("*")


def test_each_backend_has_its_connections_and_its_failures() -> None:
    summary = Summary()
    for _ in range(3):
        summary.add(connection())
    summary.add(connection(error="ECONNREFUSED"))
    summary.add(connection(backend=None, error="ECONNREFUSED"))
    rows = [one.split() for one in summary.render(0).splitlines()]
    assert rows[1][:5] == ["10.96.0.1:80", "-", "0", "1", "ECONNREFUSED"]
    assert rows[2][:5] == ["10.96.0.1:80", "10.244.0.3:8080", "3", "1", "ECONNREFUSED"]


def test_drops_are_grouped_by_the_kernels_reason_the_commonest_first() -> None:
    summary = Summary()
    other = DroppedPacket(Drop(CLIENT, BACKEND, "SKB_DROP_REASON_NO_SOCKET", "tcp_v4_rcv", 0), "")
    for record in (other, DROP, DROP):
        summary.add(record)
    rows = [one.split() for one in summary.render(0).splitlines()][-2:]
    assert rows == [
        ["2", "SKB_DROP_REASON_NETFILTER_DROP", "nft_do_chain", "node-1"],
        ["1", "SKB_DROP_REASON_NO_SOCKET", "tcp_v4_rcv", "-"],
    ]


def test_lost_events_are_admitted() -> None:
    assert "7 events came faster" in Summary().render(7)
    assert "faster" not in Summary().render(0)


def test_a_line_tells_the_way_the_time_and_the_node() -> None:
    assert line(connection(153.2)) == "10.244.0.2:40000 -> 10.96.0.1:80 -> 10.244.0.3:8080  153 us  node-1"
    failed = line(connection(20.0, None, "ECONNREFUSED"))
    assert failed == "10.244.0.2:40000 -> 10.96.0.1:80 -> -  ECONNREFUSED after 20 us  node-1"
    dropped = "10.244.0.2:40000 -> 10.244.0.3:8080  dropped: SKB_DROP_REASON_NETFILTER_DROP in nft_do_chain  node-1"
    assert line(DROP) == dropped


def test_a_drop_without_a_reason_is_counted_and_has_no_line() -> None:
    vague = DroppedPacket(Drop(VIP, CLIENT, "SKB_DROP_REASON_NOT_SPECIFIED", "tcp_v4_rcv", 0), "node-1")
    assert [is_telling(record) for record in (vague, DROP, connection())] == [False, True, True]


def test_ipv6_ends_are_written_with_brackets() -> None:
    assert str(end("fd00::1", 80)) == "[fd00::1]:80"


def test_events_and_summaries_are_json() -> None:
    summary = Summary()
    for record in (connection(), DROP):
        summary.add(record)
        assert json.loads(json.dumps(event_json(record, 1.5)))["time"] == 1.5
    found = json.loads(json.dumps(summary.to_json(0)))
    assert found["backends"][0]["backend"] == "10.244.0.3:8080"
    assert found["drops"] == [
        {"reason": "SKB_DROP_REASON_NETFILTER_DROP", "function": "nft_do_chain", "node": "node-1", "count": 1}
    ]
    assert found["latency_us"] == [[64, 128, 1]]
