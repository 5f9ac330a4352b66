"""netd's published ports in a loop on loopback: what is carried from here to there, and what it may cost."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.loops import BOUND, Running, bound, until
from wherry_plugins.network.bridge.netd import tcp, udp
from wherry_plugins.network.bridge.netd.shares import Shares


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


@contextlib.contextmanager
def published(
    running: Running,
    target: socket.socket,
    address: str = "127.0.0.1",
    cls: Any = tcp.TcpPort,
    shares: Shares | None = None,
    sandbox: str = "web",
) -> Iterator[Any]:
    """A port in front of a socket, which has given back what it took when it is closed."""
    shares = shares or Shares(100, 100, 1)
    listener = bound(socket.SOCK_STREAM if cls is tcp.TcpPort else socket.SOCK_DGRAM, address)
    where = target.getsockname()[:2]
    port = running.do(
        lambda: cls(running.loop, listener.detach(), lambda _version: where, lambda _address: False, shares, sandbox)
    )
    try:
        yield port
    finally:
        running.do(port.close)
        target.close()
        assert shares.total == 0 or cls is tcp.TcpPort


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
    monkeypatch.setattr(tcp, "PIPES", made := tcp.PipePool())
    yield
    for pipe in made._kept:
        for fd in pipe:
            os.close(fd)


@pytest.mark.usefixtures("pipes")
def test_a_pipe_is_lent_for_as_long_as_there_is_something_in_it(running: Running) -> None:
    assert leftovers(running) == []


@pytest.mark.usefixtures("pipes")
def test_twin_a_pipe_comes_back_as_it_is(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp.PipePool, "give", lambda self, pipe, *, empty: self._kept.append(pipe))
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


def test_there_is_a_most(running: Running) -> None:
    server = bound(socket.SOCK_STREAM)
    server.listen(10)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(published(running, server, shares=Shares(100, 2, 1)))
        clients = [stack.enter_context(socket.create_connection(port.socket.getsockname(), BOUND)) for _ in range(3)]
        inners = [stack.enter_context(server.accept()[0]) for _ in range(2)]
        until(lambda: port.full() and port._waiting)
        assert len(port.connections) == 2
        for sock in (clients[0], inners[0]):
            sock.close()
        third = stack.enter_context(server.accept()[0])
        clients[2].sendall(b"x")
        assert third.recv(1) == b"x"


def second_of_two_is_carried(running: Running, shares: Shares) -> bool:
    """Whether a sandbox has a connection while another one has taken all that it can get, by two ports."""
    with contextlib.ExitStack() as stack:
        servers = [bound(socket.SOCK_STREAM) for _ in range(3)]
        for server in servers:
            server.listen(50)
        greedy = [stack.enter_context(published(running, server, shares=shares, sandbox="a")) for server in servers[:2]]
        other = stack.enter_context(published(running, servers[2], shares=shares, sandbox="b"))
        for port in greedy:
            for _ in range(20):
                stack.enter_context(socket.create_connection(port.socket.getsockname(), BOUND))
        until(lambda: all(port.full() and port._waiting for port in greedy))
        assert shares.held["a"] == sum(len(port.connections) for port in greedy) < 20
        stack.enter_context(socket.create_connection(other.socket.getsockname(), BOUND))
        servers[2].settimeout(1)
        try:
            stack.enter_context(servers[2].accept()[0])
        except TimeoutError:
            return False
        return True


def test_one_sandbox_does_not_take_the_room_of_another(running: Running) -> None:
    shares = Shares(8, 8, 1)
    assert second_of_two_is_carried(running, shares)
    assert shares.total == 0
    assert shares.held == {}


def test_twin_without_a_share_that_is_always_there(running: Running) -> None:
    assert not second_of_two_is_carried(running, Shares(8, 8, 0))


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
    server = Datagrams()
    shares = Shares(100, 3, 1)
    with published(running, server.socket, "127.0.0.1", udp.UdpPort, shares) as port, contextlib.ExitStack() as stack:
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
        where, sought = port.target, []
        port.target = lambda version: sought.append(version) or where(version)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(BOUND)
            sock.sendto(b"x", port.socket.getsockname())
            until(lambda: running.do(lambda: sought and not port.sessions))  # there was a session, and it is over
            again = Datagrams.__new__(Datagrams)
            again.socket, again.senders = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), []
            with again.socket:
                again.socket.bind(server_address)
                again.socket.settimeout(BOUND)
                sock.sendto(b"y", port.socket.getsockname())
                again.answer()
                assert sock.recv(10) == b"Y"
