"""Answers to what containers ask (RFC 1035): names and addresses of their networks at once, all else from the servers outside.

The wire format is dnslib's. A question that is none gets FORMERR where it has a header, and never more than that.
"""

from __future__ import annotations

import ipaddress

from dnslib import AAAA, EDNS0, PTR, QTYPE, RCODE, RR, A, DNSHeader, DNSRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry_plugins.network.bridge.netd.names import Names
    from wherry_plugins.network.bridge.netd.upstream import Upstream

HEADER = 12
#: Containers come and go: nobody should remember them for longer than this, in seconds.
TTL = 5
#: What is asked by datagram; whatever is longer is no question.
MAX_QUERY = 4096
_MIN_UDP, _OUR_UDP = 512, 1232
_IN, _ANY_CLASS = 1, 255
_VERSIONS: dict[int, tuple[int, ...]] = {QTYPE.A: (4,), QTYPE.AAAA: (6,), QTYPE.ANY: (4, 6)}
_NIBBLES = 32


class Answers:
    """ask(question, who asks, whether by TCP, what to do with the answer): the answer comes at once, later, or never."""

    def __init__(self, names: Names, upstream: Upstream) -> None:
        self._names = names
        self._upstream = upstream

    def ask(self, data: bytes, sandbox: str, tcp: bool, reply: Callable[[bytes], None]) -> None:
        if not question(data):
            return
        if len(data) > MAX_QUERY:
            reply(refusal(data, RCODE.FORMERR))
            return
        try:
            query = DNSRecord.parse(data)
            end = question_end(data)
        except Exception:  # whatever the parser stumbles over, the container wrote it
            reply(refusal(data, RCODE.FORMERR))
            return
        if query.header.opcode != 0:
            reply(refusal(data, RCODE.NOTIMP))
        elif len(query.questions) != 1:
            reply(refusal(data, RCODE.FORMERR))
        elif (answer := self._own(query, sandbox)) is not None:
            reply(_packed(query, answer, tcp))
        else:
            self._forward(data, end, sandbox, tcp, reply)

    def _own(self, query: DNSRecord, sandbox: str) -> DNSRecord | None:
        """The answer that is ours to give; None: somebody outside has to be asked."""
        question = query.questions[0]
        labels: tuple[bytes, ...] = question.qname.label
        if question.qclass not in (_IN, _ANY_CLASS) or not labels or any(b"." in label for label in labels):
            return None
        name = b".".join(labels).lower().decode("latin-1")
        if address := reverse(name):
            owner = self._names.owner(sandbox, address)
            if owner is None:
                return None
            answer = _answer(query, RCODE.NOERROR if owner else RCODE.NXDOMAIN)
            if owner and question.qtype in (QTYPE.PTR, QTYPE.ANY):
                answer.add_answer(RR(question.qname, QTYPE.PTR, ttl=TTL, rdata=PTR(owner)))
            return answer
        addresses = self._names.addresses(sandbox, name, _VERSIONS.get(question.qtype, ()))
        if addresses is None:
            return None
        answer = _answer(query, RCODE.NOERROR)  # without addresses: there is such a name, and nothing of that type
        for address in addresses:
            type, data = (QTYPE.AAAA, AAAA(address)) if ":" in address else (QTYPE.A, A(address))
            answer.add_answer(RR(question.qname, type, ttl=TTL, rdata=data))
        return answer

    def _forward(self, data: bytes, end: int, sandbox: str, tcp: bool, reply: Callable[[bytes], None]) -> None:
        servers = self._names.forwarders(sandbox)
        if servers is None:
            reply(refusal(data, RCODE.NXDOMAIN, end))
        elif not servers:
            reply(refusal(data, RCODE.SERVFAIL, end))
        else:
            self._upstream.ask(data, end, servers, sandbox, tcp, reply)


def question(data: bytes) -> bool:
    """Whether it may be one: it has a header, and is no answer; to answer answers would make loops."""
    return len(data) >= HEADER and not data[2] & 0x80


def question_end(data: bytes) -> int:
    """Where the one question's class ends. ValueError where its name is not written out."""
    at = HEADER
    while length := data[at]:
        if length > 63:
            raise ValueError("a question with a pointer")
        at += length + 1
    at += 5
    if at > len(data):
        raise ValueError("cut short")
    return at


def refusal(data: bytes, rcode: int, end: int = HEADER) -> bytes:
    """An answer without records: the header, and the question where it is known to be one that ends there."""
    flags = 0x8080 | (data[2] & 0x79) << 8 | rcode
    counts = b"\0\1" if end > HEADER else b"\0\0"
    return data[:2] + flags.to_bytes(2, "big") + counts + bytes(6) + data[HEADER:end]


def _answer(query: DNSRecord, rcode: int) -> DNSRecord:
    header = DNSHeader(id=query.header.id, qr=1, aa=1, ra=1, rd=query.header.rd, rcode=rcode)
    return DNSRecord(header, q=query.questions[0])


def _packed(query: DNSRecord, answer: DNSRecord, tcp: bool) -> bytes:
    """On the wire; what the asker's buffer does not hold is left out, and he is told to ask by TCP (RFC 2181, section 9)."""
    room = _MIN_UDP
    for record in query.ar:
        if record.rtype == QTYPE.OPT:
            room = max(_MIN_UDP, record.edns_len)
            answer.add_ar(EDNS0(udp_len=_OUR_UDP))
            break
    packed = bytes(answer.pack())
    if tcp or len(packed) <= min(room, _OUR_UDP):
        return packed
    answer.rr.clear()
    answer.header.tc = 1
    return bytes(answer.pack())


def reverse(name: str) -> str:
    """The address of a name below in-addr.arpa or ip6.arpa (RFC 1035, section 3.5; RFC 3596, section 2.5), "" for any other."""
    for suffix, glue, count in ((".in-addr.arpa", ".", 4), (".ip6.arpa", "", _NIBBLES)):
        if name.endswith(suffix):
            parts = name[: -len(suffix)].split(".")[::-1]
            if len(parts) != count:
                return ""
            text = glue.join(parts)
            if not glue:
                text = ":".join(text[at : at + 4] for at in range(0, _NIBBLES, 4))
            try:
                return str(ipaddress.ip_address(text))
            except ValueError:
                return ""
    return ""
