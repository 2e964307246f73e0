"""From a query's bytes to an answer's bytes: the zone's own names here, the rest for the forwarder."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

from dnslib import AAAA, CNAME, PTR, QTYPE, RCODE, RR, SOA, SRV, TXT, A, DNSError, DNSHeader, DNSQuestion, DNSRecord

from .records import Records, Zone

TTL = 5
"""Seconds; short, since endpoints change."""
PLAIN_UDP_LIMIT = 512
"""Bytes of an answer over UDP to a client that offers no larger size (RFC 1035, RFC 6891)."""
_REVERSE = (".in-addr.arpa", ".ip6.arpa")


class Malformed(Exception):
    """The bytes are no DNS query."""


def parse(data: bytes) -> DNSRecord:
    """Raises Malformed."""
    try:
        query = DNSRecord.parse(data)
    except (DNSError, ValueError, IndexError, UnicodeError) as error:
        raise Malformed(str(error)) from error
    if query.header.qr or len(query.questions) != 1:
        raise Malformed("not a query with one question")
    return query


class Answerer:
    """Answers for one zone."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def answer(self, query: DNSRecord) -> DNSRecord | None:
        """None where the name is not the cluster's: to be forwarded."""
        question = query.questions[0]
        name = str(question.qname).rstrip(".").lower()
        domain = self._zone.domain
        inside = name == domain or name.endswith(f".{domain}")
        if not inside and not name.endswith(_REVERSE):
            return None
        if name == f"dns-version.{domain}":
            return self._version(query)
        records = self._zone.lookup(name)
        if records is None and not inside:
            return None  # Addresses that are not the cluster's have their names elsewhere.
        reply = query.reply(ra=1, aa=1)
        if records is None:
            reply.header.rcode = RCODE.NXDOMAIN
        else:
            self._fill(reply, question, records)
        if not reply.rr:
            reply.add_auth(self._soa())
        return reply

    def _version(self, query: DNSRecord) -> DNSRecord:
        reply = query.reply(ra=1, aa=1)
        reply.add_answer(RR(query.questions[0].qname, QTYPE.TXT, ttl=TTL, rdata=TXT("1.1.0")))
        return reply

    def _fill(self, reply: DNSRecord, question: DNSQuestion, records: Records) -> None:
        name, kind = question.qname, QTYPE[question.qtype]
        if records.cname:
            reply.add_answer(RR(name, QTYPE.CNAME, ttl=TTL, rdata=CNAME(records.cname)))
            return
        if kind in ("A", "AAAA", "ANY"):
            self._add_addresses(reply, name, records, kind)
        if kind in ("SRV", "ANY"):
            for srv in records.srv:
                rdata = SRV(0, 100 // max(1, len(records.srv)), srv.port, srv.target)
                reply.add_answer(RR(name, QTYPE.SRV, ttl=TTL, rdata=rdata))
                target = self._zone.lookup(srv.target)
                for address in target.addresses if target else []:
                    rtype, data = _address_record(address.version, str(address))
                    reply.add_ar(RR(srv.target, rtype, ttl=TTL, rdata=data))
        if kind in ("PTR", "ANY"):
            for target_name in records.ptr:
                reply.add_answer(RR(name, QTYPE.PTR, ttl=TTL, rdata=PTR(target_name)))

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
    """The answer's bytes; over UDP cut to what the client takes, with the truncation flag set."""
    data = bytes(reply.pack())
    if not udp:
        return data
    limit = max((int(rr.rclass) for rr in query.ar if rr.rtype == QTYPE.OPT), default=PLAIN_UDP_LIMIT)
    if len(data) <= max(limit, PLAIN_UDP_LIMIT):
        return data
    return bytes(reply.truncate().pack())


def failure(data: bytes, code: int) -> bytes:
    """An answer without data: FORMERR where the query cannot be read, SERVFAIL where upstream fails."""
    number = int.from_bytes(data[:2], "big") if len(data) >= 2 else 0
    return bytes(DNSRecord(DNSHeader(id=number, qr=1, ra=1, rcode=code)).pack())
