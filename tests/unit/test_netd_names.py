"""Which names netd answers, to whom, and what it makes of packets that are none. Questions that go outside end in a list here."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from dnslib import CLASS, EDNS0, QTYPE, RCODE, RR, DNSHeader, DNSQuestion, DNSRecord

from wherry_plugins.network.bridge.netd import dns
from wherry_plugins.network.bridge.netd.names import Names
from wherry_plugins.network.bridge.netd.state import Endpoint, Network

#: fd00:1::2 as a reverse look-up writes it.
SIX = ".".join(reversed("fd000001" + "0" * 23 + "2")) + ".ip6.arpa"


def network(name: str, *subnets: str, **options: Any) -> Network:
    record = {
        "name": name, "interface": f"br-{name}", "subnets": subnets, "gateways": [], "internal": False, "isolated": True,
        "masquerade": True, "icc": True, "mtu": 1500, "names": True, **options,
    }  # fmt: skip
    return Network(record)


def endpoint(sandbox: str, network: str, *addresses: str, names: tuple[str, ...] = (), **options: Any) -> Endpoint:
    record = {
        "sandbox_id": sandbox, "network": network, "interface": "", "addresses": addresses, "mac": "",
        "names": names or (sandbox,), "ports": [], "forwarders": ["192.0.2.53"], "search": [], **options,
    }  # fmt: skip
    return Endpoint(record)


class Outside:
    """Takes down what is asked outside."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, tuple[str, ...]]] = []

    def ask(self, data: bytes, _end: int, servers: tuple[str, ...], _sandbox: str, _tcp: bool, _reply: Any) -> None:
        self.asked.append((data, servers))


class Here:
    def __init__(self) -> None:
        self.names = Names()
        self.outside = Outside()
        self.answers = dns.Answers(self.names, self.outside)  # type: ignore[arg-type]

    def raw(self, data: bytes, sandbox: str = "web", tcp: bool = False) -> bytes | None:
        """None: nothing was said, at least not at once."""
        said: list[bytes] = []
        self.answers.ask(data, sandbox, tcp, said.append)
        assert len(said) <= 1
        return said[0] if said else None

    def ask(self, name: str, type: str = "A", sandbox: str = "web", tcp: bool = False) -> DNSRecord | None:
        query = DNSRecord.question(name, type)
        said = self.raw(query.pack(), sandbox, tcp)
        if said is None:
            return None
        answer = DNSRecord.parse(said)
        assert answer.header.id == query.header.id
        assert answer.header.qr == 1
        assert answer.q == query.q
        return answer

    def found(self, name: str, type: str = "A", sandbox: str = "web") -> list[str] | str | None:
        """What the answer says, its rcode where that is an error, None for a question that went outside."""
        answer = self.ask(name, type, sandbox)
        if answer is None:
            return None
        if answer.header.rcode:
            return str(RCODE[answer.header.rcode])
        return [str(record.rdata) for record in answer.rr]


@pytest.fixture
def here() -> Here:
    """web is on the networks a (with db) and b (with far), inner on an internal one, plain on one without names."""
    made = Here()
    made.names.network(network("a", "10.1.0.0/24", "fd00:1::/64"))
    made.names.network(network("b", "10.2.0.0/24"))
    made.names.network(network("i", "10.3.0.0/24", internal=True))
    made.names.network(network("p", "10.4.0.0/24", names=False))
    for place in (
        endpoint(
            "web", "a", "10.1.0.2/24", "fd00:1::2/64", names=("Web", "www", "0123456789ab"), search=["corp.example."]
        ),
        endpoint("web", "b", "10.2.0.2/24", names=("web",), forwarders=["192.0.2.53", "2001:db8::53"]),
        endpoint("db", "a", "10.1.0.3/24", names=("db", "data")),
        endpoint("far", "b", "10.2.0.3/24"),
        endpoint("inner", "i", "10.3.0.2/24"),
        endpoint("other", "i", "10.3.0.3/24"),
        endpoint("plain", "p", "10.4.0.2/24"),
    ):
        made.names.add(place)
    return made


@pytest.mark.parametrize(
    ("name", "type", "found"),
    [
        ("db", "A", ["10.1.0.3"]),
        ("db.", "A", ["10.1.0.3"]),
        ("DB", "A", ["10.1.0.3"]),
        ("data", "A", ["10.1.0.3"]),
        ("db.a", "A", ["10.1.0.3"]),
        ("db.corp.example", "A", ["10.1.0.3"]),
        ("0123456789ab", "A", ["10.1.0.2"]),
        ("www", "AAAA", ["fd00:1::2"]),
        ("web", "A", ["10.1.0.2", "10.2.0.2"]),
        ("www", "ANY", ["10.1.0.2", "fd00:1::2"]),
        ("db", "AAAA", []),  # there is such a name, without such an address
        ("db", "MX", []),
        ("db", "HTTPS", []),
        ("far", "A", ["10.2.0.3"]),
        ("far.a", "A", None),
        ("db.b", "A", None),
        ("inner", "A", None),  # of a network that it is not on
        ("inner.i", "A", None),
        ("plain", "A", None),
        ("example.com", "A", None),
        ("xdb", "A", None),
        ("3.0.1.10.in-addr.arpa", "PTR", ["db.a."]),
        ("2.0.1.10.in-addr.arpa", "PTR", ["web.a."]),
        ("9.0.1.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("3.0.1.10.IN-ADDR.ARPA", "A", []),
        ("2.0.3.10.in-addr.arpa", "PTR", None),  # of a network that it is not on
        ("53.2.0.192.in-addr.arpa", "PTR", None),
        ("1.10.in-addr.arpa", "PTR", None),
        ("300.0.1.10.in-addr.arpa", "PTR", None),
        (SIX, "PTR", ["web.a."]),
        (SIX[2:], "PTR", None),
    ],
)
def test_what_a_name_means(here: Here, name: str, type: str, found: Any) -> None:
    assert here.found(name, type) == found
    assert len(here.outside.asked) == (found is None)


def test_servers_of_all_networks_are_asked(here: Here) -> None:
    here.found("example.com")
    assert here.outside.asked[0][1] == ("192.0.2.53", "2001:db8::53")


def test_an_internal_network_asks_nobody(here: Here) -> None:
    assert here.found("other", sandbox="inner") == ["10.3.0.3"]
    assert here.found("example.com", sandbox="inner") == "NXDOMAIN"
    assert here.found("db", sandbox="inner") == "NXDOMAIN"
    assert here.found("3.0.1.10.in-addr.arpa", "PTR", "inner") == "NXDOMAIN"
    assert here.outside.asked == []


def test_twin_an_internal_network_as_any_other(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Names, "forwarders", lambda self, sandbox: ("192.0.2.53",))
    assert here.found("example.com", sandbox="inner") is None
    assert here.outside.asked


def test_twin_names_of_all_networks(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(self: Names, sandbox: str) -> Any:
        for places in self._places.values():
            for place in places.values():
                yield place, self._zones[place.network]

    monkeypatch.setattr(Names, "_seen", all_of_them)
    assert here.found("inner") == ["10.3.0.2"] * 2
    assert here.found("2.0.3.10.in-addr.arpa", "PTR") == ["inner.i."]


def test_nobody_without_servers_waits(here: Here) -> None:
    here.names.add(endpoint("lone", "a", "10.1.0.9/24", forwarders=[]))
    assert here.found("example.com", sandbox="lone") == "SERVFAIL"
    assert here.found("example.com", sandbox="nobody") == "NXDOMAIN"


def test_the_one_who_is_gone_is_not_found(here: Here) -> None:
    place = here.names._places["db"]["a"]
    here.names.remove(place)
    assert here.found("db") is None
    assert here.found("3.0.1.10.in-addr.arpa", "PTR") == "NXDOMAIN"
    here.names.remove(place)
    here.names.forget_network("b")
    assert here.found("far") is None
    here.names.network(network("b", "10.2.0.0/24"))
    assert here.found("far") == ["10.2.0.3"]


def test_those_who_share_a_name_take_turns(here: Here) -> None:
    for last in (11, 12, 13):
        here.names.add(endpoint(f"w{last}", "a", f"10.1.0.{last}/24", f"fd00:1::{last}/64", names=(f"w{last}", "pool")))
    first = []
    for _turn in range(6):
        found = here.found("pool")
        here.found("pool", "AAAA")  # a look-up of the C library asks for both, each time
        assert isinstance(found, list)
        assert sorted(found) == ["10.1.0.11", "10.1.0.12", "10.1.0.13"]
        first.append(found[0])
    assert first == ["10.1.0.11", "10.1.0.12", "10.1.0.13"] * 2


def test_what_a_datagram_does_not_hold_is_asked_by_tcp(here: Here) -> None:
    for last in range(100, 180):
        here.names.add(endpoint(f"w{last}", "a", f"10.1.0.{last}/24", names=(f"w{last}", "pool")))
    answer = here.ask("pool")
    assert answer is not None
    assert answer.header.tc == 1
    assert answer.rr == []
    whole = here.ask("pool", tcp=True)
    assert whole is not None
    assert (whole.header.tc, len(whole.rr)) == (0, 80)


def test_an_answer_speaks_edns_to_those_who_do(here: Here) -> None:
    query = DNSRecord.question("db")
    query.add_ar(EDNS0(udp_len=4096))
    said = here.raw(query.pack())
    assert said is not None
    assert [record.rtype for record in DNSRecord.parse(said).ar] == [QTYPE.OPT]


def test_what_goes_outside_goes_as_it_is(here: Here) -> None:
    query = DNSRecord.question("example.com", "TXT")
    query.add_ar(EDNS0(udp_len=1400, flags="do"))
    data = query.pack()
    assert here.raw(data) is None
    assert here.outside.asked[0][0] == data
    chaos = DNSRecord(q=DNSQuestion("db", QTYPE.TXT, CLASS.CH)).pack()
    assert here.raw(chaos) is None
    assert here.outside.asked[1][0] == chaos


def _question() -> bytes:
    return bytes(DNSRecord.question("db").pack())


@pytest.mark.parametrize(
    ("make", "rcode"),
    [
        (lambda: b"", None),
        (lambda: b"\0" * 11, None),
        (lambda: _question()[:2] + b"\x81\x80" + _question()[4:], None),  # an answer
        (lambda: _question()[:12], RCODE.FORMERR),
        (lambda: _question()[:-1], RCODE.FORMERR),
        (lambda: _question()[:12] + b"\x3f" + b"x" * 10, RCODE.FORMERR),
        (lambda: _question()[:12] + b"\xc0\x0c\0\1\0\1", RCODE.FORMERR),  # a name that points to itself
        (lambda: _question()[:12] + b"\x02db\xc0\x0c\0\1\0\1", RCODE.FORMERR),
        (lambda: _question()[:4] + b"\0\0" + _question()[6:], RCODE.FORMERR),  # no question
        (lambda: _question()[:4] + b"\0\2" + _question()[6:] + _question()[12:], RCODE.FORMERR),
        (lambda: _question()[:4] + b"\xff\xff" * 4 + _question()[12:], RCODE.FORMERR),
        (lambda: _question() + b"x" * 5000, RCODE.FORMERR),
        (lambda: DNSRecord(DNSHeader(opcode=5, qr=0), q=DNSQuestion("db")).pack(), RCODE.NOTIMP),
    ],
)  # fmt: skip
def test_what_is_no_question(here: Here, make: Callable[[], bytes], rcode: int | None) -> None:
    data = make()
    said = here.raw(data)
    if rcode is None:
        assert said is None
    else:
        assert said is not None
        header = DNSRecord.parse(said).header
        assert (header.id, header.qr, header.rcode) == (int.from_bytes(data[:2], "big"), 1, rcode)
    assert here.outside.asked == []


def test_names_that_only_look_like_one(here: Here) -> None:
    dotted = DNSRecord(q=DNSQuestion(None, QTYPE.A))
    dotted.q.qname = type(dotted.q.qname)([b"db.a"])  # one label with a dot in it
    here.raw(dotted.pack())
    here.raw(DNSRecord.question(".").pack())
    assert len(here.outside.asked) == 2


def test_any_bytes(here: Here) -> None:
    """Changed, cut and made up packets: whatever comes is answered as the format has it, or not at all."""
    numbers = random.Random(53)
    names = ("db", "www.corp.example", "3.0.1.10.in-addr.arpa")
    seeds = [bytes(DNSRecord.question(name, type).pack()) for name in names for type in ("A", "ANY")]
    full = DNSRecord.question("db")
    full.add_answer(*RR.fromZone("db 60 A 10.0.0.1\na.b 60 MX 10 mail.db\nx 60 TXT text\ny 60 SRV 1 1 53 db"))
    full.add_ar(EDNS0(udp_len=1400))
    seeds.append(bytes(full.pack()))
    for _round in range(200_000 if os.environ.get("WHERRY_TESTS_ALL") else 5_000):
        data = bytearray(numbers.choice(seeds))
        for _change in range(numbers.randrange(6)):
            data[numbers.randrange(2, len(data))] = numbers.choice(
                (0, 1, 0x3F, 0x40, 0xC0, 0x0C, 0xFF, numbers.randrange(256))
            )
        data = data[: numbers.randrange(len(data) + 1)] if numbers.random() < 0.2 else data
        said = here.raw(bytes(data), tcp=bool(numbers.randrange(2)))
        if said is not None:
            assert said[:2] == data[:2]
            assert said[2] & 0x80
            DNSRecord.parse(said)


def test_a_packet_that_takes_long_to_read(here: Here) -> None:
    """Pointers to pointers, in each of as many records as there is room for: read within the test's time all the same."""
    chain = b"".join(b"\x01a" + (0xC000 | 12 + 4 * max(0, at - 1)).to_bytes(2, "big") for at in range(1, 200))
    records = (b"\xc3\x20" + b"\0\1\0\1" + b"\0\0\0\0" + b"\0\0") * 240
    data = b"\0\1\1\0" + b"\0\1" + b"\0\0\0\0" + b"\0\xf0" + b"\0\0\1\0\1" + chain + records
    for _round in range(20):
        here.raw(data[:4096])
