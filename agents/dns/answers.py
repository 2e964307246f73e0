"""From a query's bytes to an answer's bytes: the zone's own names here, the rest for the forwarder."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnslib import (
    AAAA,
    CLASS,
    CNAME,
    EDNS0,
    OPCODE,
    PTR,
    QTYPE,
    RCODE,
    RR,
    SOA,
    SRV,
    TXT,
    A,
    DNSError,
    DNSHeader,
    DNSLabel,
    DNSQuestion,
    DNSRecord,
)

from .records import Records, Zone

TTL = 5
"""Seconds; short, since endpoints change."""
PLAIN_UDP_LIMIT = 512
"""Bytes of an answer over UDP to a client that offers no larger size (RFC 1035)."""
LARGEST_UDP, LARGEST_TCP = 1232, 65535
"""Bytes; over UDP what passes every link without fragments, whatever the client offers (RFC 6891, RFC 9715)."""
LONGEST_ALIAS_CHAIN = 8
_HEADER_BYTES = 12
_ANY_CLASS = 255
_REVERSE = (".in-addr.arpa", ".ip6.arpa")


class Malformed(Exception):
    """The bytes are no DNS query. `reply` is what to answer: b"" for nothing at all."""

    def __init__(self, cause: str, reply: bytes = b"") -> None:
        super().__init__(cause)
        self.reply = reply


def parse(data: bytes) -> DNSRecord:
    """Raises Malformed.

    What is no query, as far as its header can be read, gets no answer: two servers would answer each other for ever.
    """
    if len(data) < _HEADER_BYTES:
        raise Malformed("shorter than a header")
    if data[2] & 0x80:
        raise Malformed("an answer, not a query")
    try:
        query = DNSRecord.parse(data)
    except (DNSError, ValueError, IndexError, UnicodeError) as error:
        raise Malformed(str(error), _failure(data, RCODE.FORMERR)) from error
    if query.header.opcode != OPCODE.QUERY:
        raise Malformed("not a standard query", _failure(data, RCODE.NOTIMP))
    if len(query.questions) != 1:
        raise Malformed("not one question", _failure(data, RCODE.FORMERR))
    return query


@dataclass(slots=True)
class Answer:
    """What is known of a question here."""

    reply: DNSRecord
    alias: str = ""
    """A name outside the cluster whose records belong into the reply: stub resolvers do not ask for it themselves."""


class Answerer:
    """Answers for one zone."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def answer(self, query: DNSRecord) -> Answer | None:
        """None where the name is not the cluster's: to be forwarded."""
        question = query.questions[0]
        name = str(question.qname).rstrip(".").lower()
        inside = self._is_inside(name)
        if not inside and not name.endswith(_REVERSE):
            return None
        reply = query.reply(ra=1, aa=1)
        if inside and question.qclass not in (CLASS.IN, _ANY_CLASS):
            reply.header.rcode = RCODE.REFUSED
            return Answer(reply)
        if name == f"dns-version.{self._zone.domain}":
            return Answer(self._version(query))
        records = self._zone.lookup(name)
        if records is None and not inside:
            return None  # Addresses that are not the cluster's have their names elsewhere.
        alias = ""
        if records is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif records.cname and question.qtype != QTYPE.CNAME:
            alias = self._follow(reply, question, records.cname)
        else:
            self._fill(reply, question.qname, question.qtype, records)
        if not reply.rr:
            reply.add_auth(self._soa())
        return Answer(reply, alias)

    def _is_inside(self, name: str) -> bool:
        return name == self._zone.domain or name.endswith(f".{self._zone.domain}")

    def _follow(self, reply: DNSRecord, question: DNSQuestion, target: str) -> str:
        """Adds the chain of aliases and what is at its end; returns the end's name where it is outside."""
        owner = question.qname
        for _ in range(LONGEST_ALIAS_CHAIN):
            reply.add_answer(RR(owner, QTYPE.CNAME, ttl=TTL, rdata=CNAME(target)))
            if not self._is_inside(target.lower()):
                return target
            records = self._zone.lookup(target.lower())
            if records is None:
                reply.header.rcode = RCODE.NXDOMAIN
                return ""
            if not records.cname:
                self._fill(reply, DNSLabel(target), question.qtype, records)
                return ""
            owner, target = DNSLabel(target), records.cname
        reply.header.rcode = RCODE.SERVFAIL  # Names that lead in a circle.
        return ""

    def _version(self, query: DNSRecord) -> DNSRecord:
        reply = query.reply(ra=1, aa=1)
        reply.add_answer(RR(query.questions[0].qname, QTYPE.TXT, ttl=TTL, rdata=TXT("1.1.0")))
        return reply

    def _fill(self, reply: DNSRecord, name: DNSLabel, qtype: int, records: Records) -> None:
        kind = QTYPE[qtype]
        if records.cname:
            reply.add_answer(RR(name, QTYPE.CNAME, ttl=TTL, rdata=CNAME(records.cname)))
            return
        if kind in ("A", "AAAA", "ANY"):
            self._add_addresses(reply, name, records, kind)
        if kind in ("SRV", "ANY"):
            self._add_srv(reply, name, records)
        if kind in ("PTR", "ANY"):
            for target_name in records.ptr:
                reply.add_answer(RR(name, QTYPE.PTR, ttl=TTL, rdata=PTR(target_name)))

    def _add_srv(self, reply: DNSRecord, name: DNSLabel, records: Records) -> None:
        targets = set()
        for srv in records.srv:
            rdata = SRV(0, max(1, 100 // len(records.srv)), srv.port, srv.target)
            reply.add_answer(RR(name, QTYPE.SRV, ttl=TTL, rdata=rdata))
            targets.add(srv.target)
        for target in sorted(targets):
            found = self._zone.lookup(target)
            for address in found.addresses if found else []:
                rtype, data = _address_record(address.version, str(address))
                reply.add_ar(RR(target, rtype, ttl=TTL, rdata=data))

    @staticmethod
    def _add_addresses(reply: DNSRecord, name: object, records: Records, kind: str) -> None:
        # In an order of its own each time: clients mostly take the first.
        addresses = random.sample(records.addresses, len(records.addresses))
        for address in addresses:
            rtype, data = _address_record(address.version, str(address))
            if kind in ("ANY", "A" if isinstance(address, IPv4Address) else "AAAA"):
                reply.add_answer(RR(name, rtype, ttl=TTL, rdata=data))

    def _soa(self) -> RR:
        """For negative answers (RFC 2308): how long "no" may be kept."""
        domain = self._zone.domain
        rdata = SOA(f"ns.dns.{domain}", f"hostmaster.{domain}", (1, 7200, 1800, 86400, TTL))
        return RR(domain, QTYPE.SOA, ttl=TTL, rdata=rdata)


def _address_record(version: int, text: str) -> tuple[int, object]:
    return (QTYPE.A, A(text)) if version == 4 else (QTYPE.AAAA, AAAA(text))


def pack(query: DNSRecord, reply: DNSRecord, *, udp: bool) -> bytes:
    """The answer's bytes; where they are too many first without the additional records, then truncated (RFC 2181)."""
    offered = next((rr for rr in query.ar if rr.rtype == QTYPE.OPT), None)
    options = [EDNS0(udp_len=LARGEST_UDP)] if offered is not None else []
    limit = LARGEST_TCP
    if udp:
        size = int(offered.rclass) if offered is not None else PLAIN_UDP_LIMIT
        limit = min(max(size, PLAIN_UDP_LIMIT), LARGEST_UDP)
    reply.add_ar(*options)
    data = bytes(reply.pack())
    if len(data) > limit:
        reply.ar = options
        data = bytes(reply.pack())
    if len(data) > limit:
        header = DNSHeader(id=reply.header.id, bitmap=reply.header.bitmap, tc=1)
        # With the question: resolvers drop an answer that does not repeat it.
        data = bytes(DNSRecord(header, q=query.q, ar=options).pack())
    return data


def servfail(query: DNSRecord) -> bytes:
    """The answer where upstream gave none."""
    reply = query.reply(ra=1, aa=0)
    reply.header.rcode = RCODE.SERVFAIL
    return bytes(reply.pack())


def _failure(data: bytes, code: int) -> bytes:
    """An answer to what cannot be read: the header alone."""
    return bytes(DNSRecord(DNSHeader(id=int.from_bytes(data[:2], "big"), qr=1, ra=1, rcode=code)).pack())
