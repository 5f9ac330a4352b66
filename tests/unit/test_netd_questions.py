"""netd's resolver in a loop on loopback: sockets that are asked, and servers outside that are asked in turn."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, A, DNSRecord

from support.loops import BOUND, Running, bound, until
from wherry_plugins.network.bridge.netd import dns, resolver, upstream
from wherry_plugins.network.bridge.netd.names import Names
from wherry_plugins.network.bridge.netd.state import Endpoint, Network


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


class Server:
    """A name server at 127.0.0.N; what it does with a question is the test's."""

    def __init__(self, address: str, port: int, act: Callable[[Server, bytes, Any], None]) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, port))
        self.port = self.udp.getsockname()[1]
        self.tcp = socket.socket()
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.tcp.bind((address, self.port))
        self.tcp.listen()
        self.seen: list[bytes] = []
        self.act = act
        self._closed = False
        for sock in (self.udp, self.tcp):
            sock.settimeout(0.1)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()

    def _datagrams(self) -> None:
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                data, address = self.udp.recvfrom(5000)
                self.seen.append(data)
                self.act(self, data, address)

    def _streams(self) -> None:
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                client, _address = self.tcp.accept()
                with client:
                    client.settimeout(BOUND)
                    (length,) = struct.unpack("!H", client.recv(2, socket.MSG_WAITALL))
                    data = client.recv(length, socket.MSG_WAITALL)
                    self.seen.append(data)
                    whole = answer(data, "192.0.2.77")
                    client.sendall(struct.pack("!H", len(whole)) + whole[:5])  # in two pieces
                    client.sendall(whole[5:])

    def close(self) -> None:
        self._closed = True
        for thread in self._threads:
            thread.join(BOUND)
        self.udp.close()
        self.tcp.close()


def answer(data: bytes, address: str = "", rcode: int = 0) -> bytes:
    query = DNSRecord.parse(data)
    reply = query.reply()
    reply.header.rcode = rcode
    if address:
        reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=60))
    return bytes(reply.pack())


def right(server: Server, data: bytes, address: Any) -> None:
    server.udp.sendto(answer(data, "192.0.2.7"), address)


def silent(_server: Server, _data: bytes, _address: Any) -> None:
    pass


def failing(server: Server, data: bytes, address: Any) -> None:
    server.udp.sendto(answer(data, rcode=RCODE.SERVFAIL), address)


class Asking:
    """A container's resolver, and the servers behind it."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self._running = running
        self._monkeypatch = monkeypatch
        for name in ("PATIENCE", "PATIENCE_TCP"):
            monkeypatch.setattr(upstream, name, BOUND * 2)
        self.servers: list[Server] = []
        self.names = Names()
        record = {
            "name": "n", "interface": "br", "subnets": ["10.1.0.0/24"], "gateways": [], "internal": False, "isolated": True,
            "masquerade": True, "icc": True, "names": True,
        }  # fmt: skip
        self.names.network(Network(record))
        self.upstream = upstream.Upstream(running.loop)
        self.sockets = [bound(socket.SOCK_DGRAM), bound(socket.SOCK_STREAM)]
        self.udp, self.tcp = (sock.getsockname() for sock in self.sockets)
        answers = dns.Answers(self.names, self.upstream)
        self.resolvers = running.do(
            lambda: [resolver.Resolver(running.loop, answers, "web", sock.detach()) for sock in self.sockets]
        )
        self.serve()

    def serve(self, *acts: Callable[[Server, bytes, Any], None], missing: int = 0) -> None:
        """Servers that the container's questions go to, after some addresses where nobody is."""
        port = 0
        for act in acts:
            self.servers.append(Server(f"127.0.0.{2 + len(self.servers)}", port, act))
            port = self.servers[-1].port
        self._monkeypatch.setattr(upstream, "PORT", port or 9)
        addresses = [f"127.0.0.{100 + number}" for number in range(missing)]
        addresses += [server.udp.getsockname()[0] for server in self.servers]
        record = {
            "sandbox_id": "web", "network": "n", "interface": "", "addresses": ["10.1.0.2/24"], "names": ["web"],
            "ports": [], "forwarders": addresses, "search": [],
        }  # fmt: skip
        self._running.do(lambda: self.names.add(Endpoint(record)))

    def ask(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(BOUND)
            sock.connect(self.udp)
            sock.send(data)
            return sock.recv(5000)

    def stream(self, *queries: bytes) -> list[bytes]:
        with socket.create_connection(self.tcp, BOUND) as sock:
            sock.sendall(b"".join(struct.pack("!H", len(data)) + data for data in queries))
            sock.shutdown(socket.SHUT_WR)
            found = []
            while head := sock.recv(2, socket.MSG_WAITALL):
                found.append(sock.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL))
            return found

    def found(self, name: str = "example.com") -> tuple[str, list[str]]:
        """(rcode, data) of an answer by UDP, whose number is the question's."""
        query = DNSRecord.question(name)
        reply = DNSRecord.parse(self.ask(query.pack()))
        assert reply.header.id == query.header.id
        return RCODE[reply.header.rcode], [str(record.rdata) for record in reply.rr]

    def close(self) -> None:
        self._running.do(lambda: [one.close() for one in (*self.resolvers, self.upstream)])
        for server in self.servers:
            server.close()


@pytest.fixture
def asking(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    made = Asking(running, monkeypatch)
    yield made
    made.close()


def test_names_by_both_ways(asking: Asking) -> None:
    assert asking.found("web") == ("NOERROR", ["10.1.0.2"])
    queries = [bytes(DNSRecord.question("web").pack()) for _number in range(40)]
    replies = [DNSRecord.parse(reply) for reply in asking.stream(*queries)]
    assert [reply.header.id for reply in replies] == [int.from_bytes(query[:2], "big") for query in queries]
    assert {str(reply.rr[0].rdata) for reply in replies} == {"10.1.0.2"}


def test_a_question_goes_outside_and_its_answer_comes_back(asking: Asking) -> None:
    asking.serve(right)
    query = DNSRecord.question("Example.COM", "A")
    query.add_ar(EDNS0(udp_len=1400))
    data = bytes(query.pack())
    assert asking.ask(data) == data[:2] + answer(data, "192.0.2.7")[2:]
    (seen,) = asking.servers[0].seen
    assert seen[2:] == data[2:]  # all of it, but for the number


def test_numbers_are_not_the_askers(asking: Asking) -> None:
    asking.serve(right)
    data = bytes(DNSRecord.question("example.com").pack())
    for _turn in range(8):
        asking.ask(data)
    assert len({seen[:2] for seen in asking.servers[0].seen}) > 4


def test_by_tcp_it_goes_by_tcp(asking: Asking) -> None:
    asking.serve(silent)
    (reply,) = asking.stream(bytes(DNSRecord.question("example.com").pack()))
    assert str(DNSRecord.parse(reply).rr[0].rdata) == "192.0.2.77"


def test_who_is_told_that_it_was_too_long_asks_by_tcp(asking: Asking) -> None:
    def cut(server: Server, data: bytes, address: Any) -> None:
        reply = DNSRecord.parse(answer(data))
        reply.header.tc = 1
        server.udp.sendto(reply.pack(), address)

    asking.serve(cut)
    assert DNSRecord.parse(asking.ask(DNSRecord.question("example.com").pack())).header.tc == 1


def test_the_next_server_is_asked_after_a_failure(asking: Asking) -> None:
    asking.serve(failing, right)
    assert asking.found() == ("NOERROR", ["192.0.2.7"])


def test_the_next_server_is_asked_after_a_silence(asking: Asking, running: Running) -> None:
    asking.serve(silent, right)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(BOUND)
        sock.sendto(DNSRecord.question("example.com").pack(), asking.udp)
        until(lambda: asking.servers[0].seen)
        running.do(lambda: [question._timer.callback() for question in asking.upstream.questions])
        assert str(DNSRecord.parse(sock.recv(500)).rr[0].rdata) == "192.0.2.7"


def test_a_server_that_is_not_there(asking: Asking) -> None:
    asking.serve(right, missing=2)
    assert asking.found() == ("NOERROR", ["192.0.2.7"])
    (reply,) = asking.stream(bytes(DNSRecord.question("example.com").pack()))
    assert DNSRecord.parse(reply).header.rcode == 0


def test_nobody_answers(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "PATIENCE", 0.05)
    asking.serve(failing, silent)
    assert asking.found() == ("SERVFAIL", [])
    assert asking.upstream.asking.total == 0


def forged(server: Server, data: bytes, address: Any) -> None:
    """What is no answer to the question, before the one that is."""
    other = answer(bytes(DNSRecord.question("bank.example").pack()), "203.0.113.66")
    number = (int.from_bytes(data[:2], "big") ^ 1).to_bytes(2, "big")
    server.udp.sendto(number + answer(data, "203.0.113.66")[2:], address)  # another number
    server.udp.sendto(data[:2] + other[2:], address)  # another question
    server.udp.sendto(data, address)  # the question itself
    server.udp.sendto(data[:2] + b"\x81\x80", address)  # cut short
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(answer(data, "203.0.113.66"), address)  # somebody else
    right(server, data, address)


def test_the_one_who_asked_is_gone(asking: Asking) -> None:
    """Its answer is thrown away, and nothing is left of the question."""
    asking.serve(silent)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(DNSRecord.question("example.com").pack(), asking.udp)
        until(lambda: asking.upstream.questions)
    (question,) = asking.upstream.questions
    asking._running.do(lambda: [one.close() for one in asking.resolvers])
    asking._running.do(lambda: question._done(b"too late"))
    assert not asking.upstream.questions
    assert asking.upstream.asking.held == {}


def test_answers_that_are_forged(asking: Asking) -> None:
    asking.serve(forged)
    assert asking.found() == ("NOERROR", ["192.0.2.7"])


def test_twin_any_answer_will_do(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream.Question, "_fits", lambda self, answer: True)
    asking.serve(forged)
    assert asking.found() == ("NOERROR", ["203.0.113.66"])


def test_questions_on_their_way_are_counted(asking: Asking) -> None:
    asking.serve(silent)
    asking.upstream.asking.of_one = asking.upstream.asking.always = 3
    with contextlib.ExitStack() as stack:
        for number in range(3):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.sendto(DNSRecord.question("example.com").pack(), asking.udp)
            until(lambda number=number: asking.upstream.asking.held["web"] == number + 1)  # type: ignore[misc]
        assert asking.found() == ("SERVFAIL", [])
        assert asking.found("web") == ("NOERROR", ["10.1.0.2"])  # names cost nothing outside


def test_a_stream_that_talks_nonsense_is_ended(asking: Asking) -> None:
    for nonsense in (b"\xff\xff" + bytes(100), b"\0\x02ab", b"\0\x0c" + b"\0\0\x80" + bytes(9)):
        with socket.create_connection(asking.tcp, BOUND) as sock:
            sock.sendall(nonsense)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""


def test_streams_are_counted(asking: Asking) -> None:
    with contextlib.ExitStack() as stack:
        for _number in range(resolver.MOST_STREAMS):
            stack.enter_context(socket.create_connection(asking.tcp, BOUND))
        until(lambda: len(asking.resolvers[1].streams) == resolver.MOST_STREAMS)
        with socket.create_connection(asking.tcp, BOUND) as one:
            assert one.recv(1) == b""
    until(lambda: not asking.resolvers[1].streams)


def test_who_reads_no_answers_is_read_no_more(asking: Asking) -> None:
    query = bytes(DNSRecord.question("web").pack())
    frame = struct.pack("!H", len(query)) + query
    with socket.create_connection(asking.tcp, BOUND) as sock:
        sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += sock.send(frame * 1000)
                time.sleep(0)
        assert sent < 64 << 20
        (stream,) = asking.resolvers[1].streams
        assert len(stream._out) < 1 << 18
    until(lambda: not asking.resolvers[1].streams)
