"""netd's sockets, in a loop on loopback: the resolver's, the questions that go outside, published ports."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, A, DNSRecord

from wherry.linux.loop import Loop
from wherry_plugins.network.bridge.netd import dns, resolver, tcp, udp, upstream
from wherry_plugins.network.bridge.netd.names import Names
from wherry_plugins.network.bridge.netd.state import Endpoint, Network

BOUND = 30.0


class Running:
    """A loop in a thread; ``do`` calls a function there."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._jobs: list[Callable[[], None]] = []
        self._reader, self._writer = os.pipe()
        self.loop.add(self._reader, 1, self._work)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def _work(self, _events: int) -> None:
        os.read(self._reader, 1)
        self._jobs.pop(0)()

    def do(self, function: Callable[[], Any]) -> Any:
        found: list[Any] = []
        done = threading.Event()

        def job() -> None:
            try:
                found.append(function())
            finally:
                done.set()

        self._jobs.append(job)
        os.write(self._writer, b"x")
        assert done.wait(BOUND)
        return found[0]

    def close(self) -> None:
        self.do(self.loop.stop)
        self._thread.join(BOUND)
        self.loop.close()
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


def bound(kind: int, address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.bind((address, 0))
    sock.settimeout(BOUND)
    return sock


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


# -- questions --------------------------------------------------------------------------------------------------------------


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
    assert asking.upstream.asking == {}


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
    assert not asking.upstream.asking


def test_answers_that_are_forged(asking: Asking) -> None:
    asking.serve(forged)
    assert asking.found() == ("NOERROR", ["192.0.2.7"])


def test_twin_any_answer_will_do(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream.Question, "_fits", lambda self, answer: True)
    asking.serve(forged)
    assert asking.found() == ("NOERROR", ["203.0.113.66"])


def test_questions_on_their_way_are_counted(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    asking.serve(silent)
    monkeypatch.setattr(upstream, "MOST_OF_ONE", 3)
    with contextlib.ExitStack() as stack:
        for number in range(3):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.sendto(DNSRecord.question("example.com").pack(), asking.udp)
            until(lambda number=number: asking.upstream.asking["web"] == number + 1)  # type: ignore[misc]
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


# -- published ports --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def published(
    running: Running, target: socket.socket, address: str = "127.0.0.1", cls: Any = tcp.TcpPort
) -> Iterator[Any]:
    """A port in front of a socket."""
    listener = bound(socket.SOCK_STREAM if cls is tcp.TcpPort else socket.SOCK_DGRAM, address)
    where = target.getsockname()[:2]
    port = running.do(lambda: cls(running.loop, listener.detach(), lambda _version: where, lambda _address: False))
    try:
        yield port
    finally:
        running.do(port.close)
        target.close()


@contextlib.contextmanager
def pair(running: Running) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and the container's of one connection through a port."""
    server = bound(socket.SOCK_STREAM)
    server.listen()
    with published(running, server) as port, socket.create_connection(port.socket.getsockname(), BOUND) as client:
        inner, _address = server.accept()
        with inner:
            inner.settimeout(BOUND)
            yield client, inner
        until(lambda: not port.connections or client.fileno() >= 0)


def test_bytes_both_ways_and_ends_one_by_one(running: Running) -> None:
    with pair(running) as (client, inner):
        client.sendall(b"to you")
        assert inner.recv(100) == b"to you"
        client.shutdown(socket.SHUT_WR)
        assert inner.recv(100) == b""
        inner.sendall(b"still here" * 50_000)
        inner.close()
        data = b""
        while piece := client.recv(1 << 16):
            data += piece
        assert data == b"still here" * 50_000


def test_much_at_once_both_ways(running: Running) -> None:
    size = 8 << 20
    with pair(running) as (client, inner):
        found: dict[str, int] = {}

        def read(name: str, sock: socket.socket) -> None:
            count = 0
            while piece := sock.recv(1 << 16):
                count += len(piece)
            found[name] = count

        def write(sock: socket.socket) -> None:
            sock.sendall(bytes(size))
            sock.shutdown(socket.SHUT_WR)

        threads = [
            threading.Thread(target=read, args=("client", client)),
            threading.Thread(target=read, args=("inner", inner)),
        ]
        threads += [threading.Thread(target=write, args=(sock,)) for sock in (client, inner)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
        assert found == {"client": size, "inner": size}


def test_who_does_not_read_holds_up_the_other(running: Running) -> None:
    with pair(running) as (client, inner):
        client.setblocking(False)
        sent, quiet = 0, 0
        while quiet < 20 and sent < 256 << 20:
            try:
                sent += client.send(bytes(1 << 16))
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.01)
        assert sent < 256 << 20
        client.setblocking(True)
        client.settimeout(BOUND)
        got = 0
        client.shutdown(socket.SHUT_WR)
        while piece := inner.recv(1 << 16):
            got += len(piece)
        assert got == sent


def leftovers(running: Running) -> list[bytes]:
    """What is in the pipes that are kept for the next connection, when one was reset while its own was full."""
    server = bound(socket.SOCK_STREAM)
    server.listen()
    with published(running, server) as port, socket.create_connection(port.socket.getsockname(), BOUND) as client:
        inner, _address = server.accept()
        with inner:
            client.sendall(b"x")
            assert inner.recv(1) == b"x"
            (connection,) = port.connections
            assert running.do(lambda: (connection._client.pipe, connection._server.pipe)) == (None, None)
            client.setblocking(False)

            def poured() -> bool:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        client.send(bytes(1 << 16))
                return running.do(lambda: connection._server.pipe is not None)

            until(poured)
            assert connection._client.pipe is None
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: not port.connections)  # reset, with a pipe that is full
    found = []
    for reader, _writer in tcp.PIPES._kept:
        with contextlib.suppress(BlockingIOError):
            found.append(os.read(reader, 1))
    return found


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pipes of the test's own."""
    monkeypatch.setattr(tcp, "PIPES", made := tcp.Pipes())
    yield
    for pipe in made._kept:
        for fd in pipe:
            os.close(fd)


@pytest.mark.usefixtures("pipes")
def test_a_pipe_is_lent_for_as_long_as_there_is_something_in_it(running: Running) -> None:
    assert leftovers(running) == []


@pytest.mark.usefixtures("pipes")
def test_twin_a_pipe_comes_back_as_it_is(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp.Pipes, "give", lambda self, pipe, *, empty: self._kept.append(pipe))
    assert leftovers(running) == [b"\0"]


@pytest.mark.parametrize("who", ["client", "inner"])
def test_a_reset_resets_the_other(running: Running, who: str) -> None:
    with pair(running) as (client, inner):
        client.sendall(b"x")
        assert inner.recv(1) == b"x"
        one, other = (client, inner) if who == "client" else (inner, client)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_nobody_listens_behind_it(running: Running) -> None:
    server = bound(socket.SOCK_STREAM)  # and does not listen
    with published(running, server) as port:
        with pytest.raises(ConnectionResetError):  # as early as connect(2), or when the answer is waited for
            with socket.create_connection(port.socket.getsockname(), BOUND) as client:
                client.recv(1)
        until(lambda: not port.connections)


def test_connections_of_a_port_that_goes_are_reset(running: Running) -> None:
    server = bound(socket.SOCK_STREAM)
    server.listen()
    with published(running, server) as port:
        client = socket.create_connection(port.socket.getsockname(), BOUND)
        inner, _address = server.accept()
        with client, inner:
            client.sendall(b"x")
            assert inner.recv(1) == b"x"
            running.do(port.close)
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_many_connections_and_one_that_takes_all_it_can(running: Running) -> None:
    server = bound(socket.SOCK_STREAM)
    server.listen(100)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(published(running, server))
        pairs = []
        for _number in range(60):
            client = stack.enter_context(socket.create_connection(port.socket.getsockname(), BOUND))
            inner = stack.enter_context(server.accept()[0])
            inner.settimeout(BOUND)
            pairs.append((client, inner))
        flood, sink = pairs[0]
        stop = threading.Event()

        def pour() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    flood.send(bytes(1 << 16))

        def drain() -> None:
            with contextlib.suppress(OSError):
                while sink.recv(1 << 16):
                    pass

        threads = [threading.Thread(target=pour, daemon=True), threading.Thread(target=drain, daemon=True)]
        for thread in threads:
            thread.start()
        for client, inner in pairs[1:]:
            client.sendall(b"?")
            assert inner.recv(1) == b"?"
            inner.sendall(b"!")
            assert client.recv(1) == b"!"
        stop.set()
        flood.close()
        for thread in threads:
            thread.join(BOUND)


def test_there_is_a_most(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MOST_OF_ONE", 2)
    server = bound(socket.SOCK_STREAM)
    server.listen(10)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(published(running, server))
        clients = [stack.enter_context(socket.create_connection(port.socket.getsockname(), BOUND)) for _ in range(3)]
        inners = [stack.enter_context(server.accept()[0]) for _ in range(2)]
        until(lambda: port.full() and port._waiting)
        assert len(port.connections) == 2
        for sock in (clients[0], inners[0]):
            sock.close()
        third = stack.enter_context(server.accept()[0])
        clients[2].sendall(b"x")
        assert third.recv(1) == b"x"
    assert tcp.TcpPort.count == 0


class Datagrams:
    """A server that says who it saw."""

    def __init__(self) -> None:
        self.socket = bound(socket.SOCK_DGRAM)
        self.senders: list[Any] = []

    def answer(self) -> None:
        data, address = self.socket.recvfrom(1 << 16)
        self.senders.append(address)
        self.socket.sendto(data.upper(), address)


@pytest.mark.parametrize(("listen", "ask"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.9"), ("::", "::1")])
def test_datagrams_come_back_from_where_they_were_sent(running: Running, listen: str, ask: str) -> None:
    server = Datagrams()
    with published(running, server.socket, listen, udp.UdpPort) as port:
        number = port.socket.getsockname()[1]
        with (
            socket.socket(port.socket.family, socket.SOCK_DGRAM) as one,
            socket.socket(port.socket.family, socket.SOCK_DGRAM) as two,
        ):
            for sock in (one, two, one):
                sock.settimeout(BOUND)
                sock.connect((ask, number))  # so that an answer from elsewhere is not seen
                sock.send(b"hello")
                server.answer()
                assert sock.recv(100) == b"HELLO"
        assert len(set(server.senders)) == 2  # a session each, which lasts
        assert server.senders[0] == server.senders[2]


def test_the_largest_datagram(running: Running) -> None:
    server = Datagrams()
    with published(running, server.socket, "127.0.0.1", udp.UdpPort) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(BOUND)
            sock.sendto(b"x" * 65000, port.socket.getsockname())
            server.answer()
            assert sock.recv(1 << 16) == b"X" * 65000


def test_sessions_are_bounded_and_end(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "MOST", 3)
    server = Datagrams()
    with published(running, server.socket, "127.0.0.1", udp.UdpPort) as port, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(bound(socket.SOCK_DGRAM)) for _number in range(5)]
        for sock in socks:
            sock.sendto(b"x", port.socket.getsockname())
            server.answer()
            assert sock.recv(10) == b"X"
        assert [key[0] for key in port.sessions] == [sock.getsockname() for sock in socks[2:]]  # the oldest ones went
        monkeypatch.setattr(udp, "SILENCE", 0.0)
        running.do(port._sweep)
        monkeypatch.setattr(udp, "SILENCE", 60.0)
        assert port.sessions == {}


def test_nobody_takes_datagrams(running: Running) -> None:
    server = Datagrams()
    server_address = server.socket.getsockname()
    with published(running, server.socket, "127.0.0.1", udp.UdpPort) as port:
        server.socket.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(BOUND)
            sock.sendto(b"x", port.socket.getsockname())
            until(lambda: not port.sessions)
            again = Datagrams.__new__(Datagrams)
            again.socket, again.senders = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), []
            with again.socket:
                again.socket.bind(server_address)
                again.socket.settimeout(BOUND)
                sock.sendto(b"y", port.socket.getsockname())
                again.answer()
                assert sock.recv(10) == b"Y"
