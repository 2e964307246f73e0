"""The DNS server over UDP and TCP, and what it does with names of others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st
from support.waiting import eventually

from kernelet.agents.dns import forward
from kernelet.agents.dns.answers import Answerer, Malformed, parse
from kernelet.agents.dns.forward import Forwarder, UpstreamFailed, upstreams_of
from kernelet.agents.dns.records import Zone
from kernelet.agents.dns.server import DnsServer

from .dns_objects import endpoint, headless, service

WEB = "web.shop.svc.cluster.local"


class Client(asyncio.DatagramProtocol):
    """One UDP socket and what came back to it."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Client]:
        transport, made = await asyncio.get_running_loop().create_datagram_endpoint(
            cls, remote_addr=("127.0.0.1", port)
        )
        made._transport = transport
        try:
            yield made
        finally:
            transport.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received.append(data)

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(data)

    async def ask(self, query: DNSRecord) -> DNSRecord:
        count = len(self.received)
        self.send(query.pack())
        await eventually(lambda: len(self.received) > count)
        return DNSRecord.parse(self.received[-1])


class Upstream(asyncio.DatagramProtocol):
    """A server that answers every name with 192.0.2.1, over both protocols, as `change` makes it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.change: Callable[[DNSRecord], list[DNSRecord]] = lambda reply: [reply]

    def replies(self, data: bytes) -> list[bytes]:
        query = DNSRecord.parse(data)
        self.asked.append(str(query.q.qname))
        reply = query.reply()
        reply.add_answer(RR(query.q.qname, QTYPE.A, ttl=60, rdata=A("192.0.2.1")))
        return [bytes(changed.pack()) for changed in self.change(reply)]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        for reply in self.replies(data):
            self.transport.sendto(reply, addr)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            for reply in self.replies(data):
                writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[tuple[Upstream, int]]:
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: made, local_addr=("127.0.0.1", port)
    )
    try:
        yield made, port
    finally:
        transport.close()
        server.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextlib.asynccontextmanager
async def serving(zone: Zone, *servers: str, port: int = 53) -> AsyncIterator[DnsServer]:
    made = DnsServer(Answerer(zone), Forwarder(servers, port))
    await made.start("127.0.0.1", 0)
    before = open_files()
    try:
        yield made
    finally:
        await made.close()
        assert not made._tasks
        await eventually(lambda: open_files() < before)


async def ask_tcp(port: int, *queries: bytes) -> list[DNSRecord]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for query in queries:
            writer.write(len(query).to_bytes(2, "big") + query)
        return [
            DNSRecord.parse(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
            for _ in queries
        ]
    finally:
        writer.close()


@pytest.fixture
def zone() -> Zone:
    made = Zone()
    made.set_service("shop/web", service())
    return made


def many(count: int) -> Zone:
    return headless(*(endpoint(f"10.244.{n // 250}.{n % 250}", f"h{n}") for n in range(count)))


async def test_it_answers_over_both_protocols_with_the_querys_id(zone: Zone) -> None:
    query = DNSRecord.question(WEB)
    async with serving(zone) as server, Client.to(server.port) as client:
        by_udp = await client.ask(query)
        by_tcp = await ask_tcp(server.port, query.pack(), query.pack())
        for reply in (by_udp, *by_tcp):
            assert (reply.header.id, str(reply.rr[0].rdata)) == (query.header.id, "10.96.0.7")


async def test_an_answer_too_long_for_udp_is_cut_and_whole_over_tcp() -> None:
    query = DNSRecord.question(WEB)
    async with serving(many(100)) as server, Client.to(server.port) as client:
        cut = await client.ask(query)
        assert cut.header.tc
        assert not cut.rr
        assert cut.q.qname == query.q.qname  # Resolvers drop what does not repeat the question.
        [whole] = await ask_tcp(server.port, query.pack())
        assert not whole.header.tc
        assert len(whole.rr) == 100


async def test_a_client_that_takes_more_gets_more_and_is_told_so() -> None:
    query = DNSRecord.question(WEB)
    query.add_ar(EDNS0(udp_len=4096))
    async with serving(many(60)) as server, Client.to(server.port) as client:
        reply = await client.ask(query)
        assert len(reply.rr) == 60
        assert [rr.rtype for rr in reply.ar] == [QTYPE.OPT]
    async with serving(many(100)) as server, Client.to(server.port) as client:
        assert (await client.ask(query)).header.tc  # More would need fragments.


async def test_additional_records_are_left_out_before_anything_is_cut() -> None:
    async with serving(many(8)) as server, Client.to(server.port) as client:
        reply = await client.ask(DNSRecord.question(f"_http._tcp.{WEB}", "SRV"))
        assert len(reply.rr) == 8
        assert not reply.header.tc
        assert not reply.ar


async def test_what_cannot_be_read_is_told_so_and_answers_get_no_answer(zone: Zone) -> None:
    query = DNSRecord.question(WEB)
    async with serving(zone) as server, Client.to(server.port) as client:
        for data in (b"", b"\0\1", bytes(query.reply().pack()), b"\0\1\x80" + b"\0" * 9):
            client.send(data)
        client.send(bytes(query.pack())[:-3])
        client.send(b"\0\7\x10\0" + bytes(query.pack())[4:])  # Opcode 2.
        await client.ask(query)
        codes = [RCODE[DNSRecord.parse(data).header.rcode] for data in client.received]
        assert codes == ["FORMERR", "NOTIMP", "NOERROR"]
        assert DNSRecord.parse(client.received[0]).header.id == query.header.id


@given(st.one_of(st.binary(max_size=600), st.data()))
def test_no_bytes_make_it_fail(found: object) -> None:
    if isinstance(found, bytes):
        data = found
    else:
        query = bytearray(DNSRecord.question(WEB, "SRV").pack())
        for _ in range(found.draw(st.integers(1, 6))):  # type: ignore[attr-defined]  # hypothesis' DataObject
            query[found.draw(st.integers(0, len(query) - 1))] = found.draw(st.integers(0, 255))  # type: ignore[attr-defined]
        data = bytes(query)
    zone = headless(endpoint("10.244.1.2", "db-0"))
    server = DnsServer(Answerer(zone), Forwarder([]))
    for udp in (True, False):
        reply = server._answer(data, udp=udp)
        if isinstance(reply, bytes):
            if reply:
                assert reply[:2] == data[:2]
                assert DNSRecord.parse(reply).header.qr
        else:
            reply.close()  # To be forwarded.
            assert parse(data).questions


def test_an_answer_is_malformed_as_a_query_and_not_to_be_answered() -> None:
    with pytest.raises(Malformed) as caught:
        parse(bytes(DNSRecord.question("a.b").reply().pack()))
    assert caught.value.reply == b""


async def test_names_of_others_are_asked_upstream_and_the_answer_goes_back_unchanged(zone: Zone) -> None:
    query = DNSRecord.question("example.org")
    async with upstream() as (other, port), serving(zone, "127.0.0.1", port=port) as server:
        async with Client.to(server.port) as client:
            reply = await client.ask(query)
        [by_tcp] = await ask_tcp(server.port, query.pack())
        for found in (reply, by_tcp):
            assert (found.header.id, str(found.rr[0].rdata), found.rr[0].ttl) == (query.header.id, "192.0.2.1", 60)
        assert other.asked == ["example.org.", "example.org."]


async def test_a_name_of_the_cluster_is_never_asked_upstream(zone: Zone) -> None:
    async with upstream() as (other, port), serving(zone, "127.0.0.1", port=port) as server:
        async with Client.to(server.port) as client:
            reply = await client.ask(DNSRecord.question("example.org.shop.svc.cluster.local"))
        assert RCODE[reply.header.rcode] == "NXDOMAIN"
        assert other.asked == []


async def test_an_external_name_is_answered_with_its_addresses() -> None:
    zone = Zone()
    zone.set_service("shop/web", service("", type="ExternalName", externalName="db.example.org"))
    async with upstream() as (other, port), serving(zone, "127.0.0.1", port=port) as server:
        async with Client.to(server.port) as client:
            reply = await client.ask(DNSRecord.question(WEB))
        assert [(QTYPE[rr.rtype], str(rr.rdata)) for rr in reply.rr] == [
            ("CNAME", "db.example.org."),
            ("A", "192.0.2.1"),
        ]
        assert other.asked == ["db.example.org."]


async def test_only_an_answer_with_the_id_and_the_question_is_taken(zone: Zone) -> None:
    def forged(reply: DNSRecord) -> list[DNSRecord]:
        other_id = DNSRecord.parse(reply.pack())
        other_id.header.id ^= 1
        other_name = DNSRecord.question("evil.org").reply()
        other_name.header.id = reply.header.id
        echo = DNSRecord.question("example.org")
        echo.header.id = reply.header.id
        return [other_id, other_name, echo, reply]

    async with upstream() as (other, port), serving(zone, "127.0.0.1", port=port) as server:
        other.change = forged
        async with Client.to(server.port) as client:
            reply = await client.ask(DNSRecord.question("example.org"))
            assert str(reply.rr[0].rdata) == "192.0.2.1"
            assert len(client.received) == 1


async def test_dead_upstreams_are_a_failure_in_time_that_repeats_the_question(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "ATTEMPT_SECONDS", 0.2)
    async with upstream() as (other, port), serving(zone, "127.0.0.1", "127.0.0.1", port=port) as server:
        other.change = lambda reply: []
        started = time.monotonic()
        async with Client.to(server.port) as client:
            reply = await client.ask(DNSRecord.question("example.org"))
        assert RCODE[reply.header.rcode] == "SERVFAIL"
        assert str(reply.q.qname) == "example.org."
        assert 0.4 <= time.monotonic() - started < 2
        assert len(other.asked) == 2


async def test_the_server_that_answered_last_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "ATTEMPT_SECONDS", 0.2)
    async with upstream() as (_, port):
        forwarder = Forwarder(["127.0.0.2", "127.0.0.1"], port)  # Nothing listens on the first.
        query = DNSRecord.question("example.org").pack()
        await forwarder.ask(query, udp=True)
        assert forwarder._first == 1
        assert await forwarder.ask(query, udp=False)


async def test_a_flood_is_bounded_and_the_rest_refused_at_once(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "ATTEMPT_SECONDS", 1.0)
    async with upstream() as (other, port):
        other.change = lambda reply: []
        forwarder = Forwarder(["127.0.0.1"], port)
        query = DNSRecord.question("example.org").pack()
        flood = [asyncio.ensure_future(forwarder.ask(query, udp=True)) for _ in range(forward.MOST_AT_ONCE + 500)]
        done, waiting = await asyncio.wait(flood, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
        done, waiting = await asyncio.wait(flood, timeout=0.3)
        assert len(waiting) == forward.MOST_AT_ONCE
        assert len(done) == 500
        for task in flood:
            task.cancel()
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(isinstance(result, UpstreamFailed) for result in results) == 500


async def test_answers_of_the_zone_go_on_while_upstream_is_dead(zone: Zone) -> None:
    async with upstream() as (other, port), serving(zone, "127.0.0.1", port=port) as server:
        other.change = lambda reply: []
        async with Client.to(server.port) as client:
            for _ in range(200):
                client.send(DNSRecord.question("example.org").pack())
            reply = await client.ask(DNSRecord.question(WEB))
            assert str(reply.rr[0].rdata) == "10.96.0.7"


async def test_too_many_connections_are_closed_and_room_comes_back(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelet.agents.dns.server.MOST_TCP_CONNECTIONS", 2)
    query = DNSRecord.question(WEB).pack()
    async with serving(zone) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await eventually(server._connections.locked)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await ask_tcp(server.port, query)
        for _, writer in held:
            writer.close()
        await eventually(lambda: not server._connections.locked())
        assert (await ask_tcp(server.port, query))[0].rr


async def test_a_port_that_is_taken_is_an_error_naming_it(zone: Zone) -> None:
    async with serving(zone) as server:
        with pytest.raises(OSError, match=f"DNS server on 127.0.0.1:{server.port}"):
            await DnsServer(Answerer(zone), Forwarder([])).start("127.0.0.1", server.port)


def test_upstreams_are_those_of_resolv_conf_without_this_server(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# here\nsearch a b\nnameserver 192.0.2.1\nnameserver 10.244.1.1\nnameserver\nnameserver ::1\n")
    assert upstreams_of(path, ("10.244.1.1",)) == ["192.0.2.1", "::1"]
    assert upstreams_of(tmp_path / "none", ()) == []
