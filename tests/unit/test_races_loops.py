"""What goes wrong between a descriptor's event and its handler, in the worst order; each with a twin that lacks the one step."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.api import Connection
from wherry.client import hot
from wherry.kit import threads
from wherry.linux import framing
from wherry.linux.loop import IN, Loop
from wherry_plugins.frontend.cli import keys, server
from wherry_plugins.frontend.cli import session as sessions
from wherry_plugins.frontend.cli.server import Multiplexer
from wherry_plugins.frontend.cli.session import Session

BOUND = 30.0


class Forgetful(set[int]):
    """A set that takes nothing in."""

    def add(self, _item: int) -> None:
        pass


class Ends:
    """Descriptors of a test, closed at its end whoever closed some of them before."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def pipe(self) -> tuple[int, int]:
        made = os.pipe2(os.O_CLOEXEC)
        self.fds += made
        return made


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    for fd in set(made.fds):
        try:
            os.close(fd)
        except OSError:
            pass


# the shim's and the logger's loop


def one_closes_the_other(ends: Ends) -> list[str]:
    """Two descriptors are ready in one round; whoever is first closes the other, whose number goes to a third that is silent."""
    loop, told = Loop(), []
    readers = []
    for _ in range(2):
        reader, writer = ends.pipe()
        os.write(writer, b"x")
        readers.append(reader)
    silent, _writer = ends.pipe()

    def handler(own: int) -> Callable[[int], None]:
        def handle(_events: int) -> None:
            (other,) = set(readers) - {own}
            told.append("first")
            loop.remove(own)
            loop.remove(other)
            os.dup2(silent, other)
            loop.add(other, IN, lambda _events: told.append("newcomer"))

        return handle

    for reader in readers:
        loop.add(reader, IN, handler(reader))
    loop.later(0, lambda: None)
    loop.turn()
    loop.close()
    return told


def test_an_event_is_not_given_to_the_next_owner_of_its_number(ends: Ends) -> None:
    assert one_closes_the_other(ends) == ["first"]


def test_twin_a_loop_that_does_not_know_the_newcomers(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Loop.add

    def forgetful(self: Loop, *arguments: Any) -> None:
        add(self, *arguments)
        self._fresh.clear()

    monkeypatch.setattr(Loop, "add", forgetful)
    assert one_closes_the_other(ends) == ["first", "newcomer"]


def test_what_is_added_in_a_round_is_heard_in_the_next(ends: Ends) -> None:
    loop, told = Loop(), []
    first, first_writer = ends.pipe()
    second, second_writer = ends.pipe()
    for writer in (first_writer, second_writer):
        os.write(writer, b"x")

    def handle(_events: int) -> None:
        loop.remove(first)
        loop.add(second, IN, lambda _events: told.append("second"))

    loop.add(first, IN, handle)
    loop.turn()
    loop.turn()
    loop.close()
    assert told == ["second"]


# the command line's


def session_of(hub: Multiplexer, fds: tuple[int, ...] = ()) -> tuple[Session, socket.socket]:
    """A session and the client's end of its socket."""
    near, far = socket.socketpair()
    near.settimeout(BOUND)
    return Session(Connection(far, {}, fds), None, hub), near


class Interrupted:
    """An epoll object; what is to happen between its answer and the look at it is happened."""

    def __init__(self, real: Any, meanwhile: Callable[[], None]) -> None:
        self._real = real
        self._meanwhile = meanwhile

    def poll(self) -> Any:
        found = self._real.poll(BOUND)
        self._meanwhile()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def a_client_leaves_and_another_comes(hub: Multiplexer) -> Session:
    """The other one, which has the first one's number."""
    old, old_end = session_of(hub)
    hub.add(old)
    old_end.close()
    new, new_end = session_of(hub)
    number = old.connection.socket.fileno()

    def meanwhile() -> None:
        hub.drop(old)
        os.dup2(new.connection.socket.fileno(), number)
        new.connection.socket.close()
        object.__setattr__(new.connection, "socket", old.connection.socket)
        hub.add(new)

    hub.epoll = Interrupted(hub.epoll, meanwhile)  # type: ignore[assignment]
    hub.turn()
    new_end.close()
    hub.drop(new)
    new.connection.socket.close()
    return new


def hub_of_my_own(monkeypatch: pytest.MonkeyPatch) -> Multiplexer:
    """Whose answers to frames are recorded as "lost"."""
    monkeypatch.setattr(Multiplexer, "_read", lambda _hub, session: session.lost())
    return Multiplexer()


def test_a_client_is_not_taken_for_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not a_client_leaves_and_another_comes(hub_of_my_own(monkeypatch)).gone


def test_twin_a_hub_that_does_not_know_the_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_of_my_own(monkeypatch)
    hub.fresh = Forgetful()
    assert a_client_leaves_and_another_comes(hub).gone


def two_frames_at_once(monkeypatch: pytest.MonkeyPatch, patience: float, lock: Any = None) -> int:
    """How many threads a session makes for frames when the hub's and its own thread bring one each."""
    session, end = session_of(Multiplexer())
    if lock is not None:
        session._starting = lock
    made: list[threading.Thread] = []
    second = threading.Event()

    def start(target: Callable[[], None], name: str) -> threading.Thread:
        made.append(threads.start(target, name))
        if len(made) == 2:
            second.set()
        else:
            other.start()
            second.wait(patience)
        return made[-1]

    other = threading.Thread(target=session._enqueue, args=({},))
    monkeypatch.setattr(sessions, "threads", SimpleNamespace(start=start))
    session._enqueue({})
    other.join(BOUND)
    for _ in made:
        session._steps.put(None)
    for thread in made:
        thread.join(BOUND)
    session.close()
    end.close()
    return len(made)


def test_one_thread_for_a_sessions_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    assert two_frames_at_once(monkeypatch, 0.2) == 1


class Open:
    """A lock that locks nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_error: object) -> None: ...


def test_twin_two_threads_for_a_sessions_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    assert two_frames_at_once(monkeypatch, BOUND, Open()) == 2


def others_wait_for_a_client_that_reads_nothing(ends: Ends, monkeypatch: pytest.MonkeyPatch, patience: float) -> bool:
    """Whether the thread that listens to all clients waits for one that is to be told to exit and takes no frame."""
    hub = Multiplexer()
    reader, writer = os.pipe()
    ends.fds.append(writer)
    session, end = session_of(hub, (os.dup(writer), os.dup(writer), os.dup(writer)))
    taken = threading.Event()
    monkeypatch.setattr(Session, "exit", lambda _session, _code: taken.wait(BOUND))
    hub.watch(session)
    os.close(reader)
    turn = threading.Thread(target=hub.turn, daemon=True)
    turn.start()
    turn.join(patience)
    waits = turn.is_alive()
    taken.set()
    turn.join(BOUND)
    worker = session._worker
    session.close()
    end.close()
    if worker is not None:
        worker.join(BOUND)
    return waits


def test_nobody_waits_for_a_client_that_reads_nothing(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not others_wait_for_a_client_that_reads_nothing(ends, monkeypatch, BOUND)


def test_twin_the_listener_tells_clients_itself(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_later", lambda _session, step: step())
    assert others_wait_for_a_client_that_reads_nothing(ends, monkeypatch, 0.2)


def watched_while_let_go(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> dict[int, Session]:
    """A command asks for its stdout to be watched just when another thread lets go of it."""
    hub = Multiplexer()
    reader, writer = ends.pipe()
    session, end = session_of(hub, (os.dup(reader), os.dup(writer), os.dup(writer)))
    close = os.close
    asked: list[int] = []

    def closing(fd: int) -> None:
        if not asked:
            asked.append(fd)
            hub.watch(session)
        close(fd)

    with monkeypatch.context() as patch:
        patch.setattr(sessions.os, "close", closing)
        session.release()
    found = dict(hub.sessions)
    session.close()
    session.connection.socket.close()
    end.close()
    return found


def test_a_stdout_is_not_watched_after_it_was_let_go_of(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched_while_let_go(ends, monkeypatch) == {}


def test_twin_a_stdout_that_is_let_go_of_in_two_steps(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def release(hub: Multiplexer, session: Session) -> list[int]:
        hub._unwatch(session)
        return list(session.fds)

    with monkeypatch.context() as patch:
        patch.setattr(server.Multiplexer, "release", release)
        patch.setattr(Session, "close", lambda _session: None)
        assert len(watched_while_let_go(ends, patch)) == 1


def written_while_let_go(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """(what the client got, what got whoever had the number of its stderr next)."""
    hub = Multiplexer()
    mine, client = ends.pipe()
    others, other = ends.pipe()
    session, end = session_of(hub, (os.dup(client), os.dup(client), os.dup(client)))
    number = session.fds[2]
    write = os.write

    def writing(fd: int, data: Any) -> int:
        session.release()
        os.dup2(other, number)
        ends.fds.append(number)
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(sessions.os, "write", writing)
        session.write(2, b"secret")
    for fd in (mine, others):
        os.set_blocking(fd, False)
    got = []
    for fd in (mine, others):
        try:
            got.append(os.read(fd, 100))
        except BlockingIOError:
            got.append(b"")
    session.close()
    end.close()
    return got[0], got[1]


def test_what_is_written_does_not_follow_the_number(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_while_let_go(ends, monkeypatch) == (b"secret", b"")


def test_twin_writes_by_number(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.os, "dup", lambda fd: fd)
    monkeypatch.setattr(Session, "close", lambda _session: None)
    hub = Multiplexer()
    _mine, client = ends.pipe()
    session, end = session_of(hub, (-1, -1, client))
    others, other = ends.pipe()
    write = os.write

    def writing(fd: int, data: Any) -> int:
        os.dup2(other, client)  # let go of, and taken by another
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(sessions.os, "write", writing)
        session.write(2, b"secret")
    assert os.read(others, 100) == b"secret"
    end.close()
    session.connection.socket.close()


# streams that do not block


def stdin_of(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What a session reads where the first look at its stdin finds that somebody else was quicker."""
    reader, writer = ends.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"archive")
    os.close(writer)
    session, end = session_of(Multiplexer(), (os.dup(reader),))
    read, calls = os.read, []

    def reading(fd: int, size: int) -> bytes:
        calls.append(fd)
        if len(calls) == 1:
            raise BlockingIOError
        return read(fd, size)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(sessions.os, "read", reading)
            return list(session.pieces(4))
    finally:
        session.close()
        end.close()


def test_a_stdin_that_does_not_block_is_read_whole(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stdin_of(ends, monkeypatch) == [b"arch", b"ive"]


def test_twin_a_stdin_read_as_if_it_blocked(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BlockingIOError", ZeroDivisionError, raising=False)
    with pytest.raises(BlockingIOError):
        stdin_of(ends, monkeypatch)


def typed(ends: Ends, monkeypatch: pytest.MonkeyPatch, *, arrives: bool) -> None:
    """A terminal's input where the first look finds nothing after all."""
    source, keyboard = ends.pipe()
    container, sink = ends.pipe()
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    ends.fds.append(stop)
    os.write(keyboard, b"x")
    read, calls, left = os.read, [], threading.Event()

    def reading(fd: int, size: int) -> bytes:
        calls.append(fd)
        if len(calls) == 1:
            raise BlockingIOError
        return read(fd, size)

    class Poll:
        def __init__(self) -> None:
            self._real = select.poll()
            self.register, self.poll = self._real.register, self._real.poll

        def unregister(self, fd: int) -> None:
            self._real.unregister(fd)
            left.set()

    monkeypatch.setattr(
        keys, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN, POLLOUT=select.POLLOUT, PIPE_BUF=4096)
    )
    monkeypatch.setattr(keys.os, "read", reading)
    pump = threading.Thread(target=keys._pump, args=(source, sink, stop, b"\x10\x11", lambda: None), daemon=True)
    pump.start()
    try:
        if arrives:
            assert select.select([container], [], [], BOUND)[0]
            assert read(container, 10) == b"x"
        else:
            assert left.wait(BOUND)
    finally:
        os.eventfd_write(stop, 1)
        pump.join(BOUND)


def test_nothing_to_read_is_no_hang_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(ends, monkeypatch, arrives=True)


def test_twin_nothing_to_read_taken_for_a_hang_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "BlockingIOError", ZeroDivisionError, raising=False)
    typed(ends, monkeypatch, arrives=False)


def shown(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What a client shows on a stdout that is full, does not block, and is read from only after that was felt."""
    reader, writer = ends.pipe()
    os.set_blocking(writer, False)
    full = os.write(writer, bytes(1 << 20))
    text = "line\n"
    found: list[bytes] = []

    def drain() -> None:
        while sum(map(len, found)) < full + len(text) and (piece := os.read(reader, 1 << 16)):
            found.append(piece)

    thread = threading.Thread(target=drain, daemon=True)
    write = hot.posix.write

    def writing(fd: int, data: Any) -> int:
        try:
            return write(fd, data)
        except BlockingIOError:
            thread.start()
            raise

    near, far = socket.socketpair()
    try:
        client = hot.Client(near)  # type: ignore[arg-type]  # a subclass of what it takes
        with monkeypatch.context() as patch:
            patch.setattr(hot.posix, "write", writing)
            client.write(writer, text)
    finally:
        os.close(writer)
        thread.join(BOUND)
        near.close()
        far.close()
    return b"".join(found)[full:]


def test_a_client_writes_all_to_a_stdout_that_does_not_block(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(ends, monkeypatch) == b"line\n"


def test_twin_a_client_that_writes_as_if_it_blocked(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "BlockingIOError", ZeroDivisionError, raising=False)
    with pytest.raises(BlockingIOError):
        shown(ends, monkeypatch)


# signals while the command is sent


class Interrupting:
    """A socket on which a signal comes in the middle of the first frame."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.client: Any = None

    def sendmsg(self, buffers: list[bytes], ancillary: Any) -> int:
        sent = self.sock.sendmsg([buffers[0][:10]], ancillary)
        signal.raise_signal(signal.SIGUSR1)
        return sent

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(data)


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (*hot.FATAL, hot.SIGUSR1, hot.SIGUSR2, hot.SIGALRM, hot.SIGWINCH, hot.SIGCONT)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sent(*, twin: bool = False) -> list[Any]:
    """The frames of a client that is interrupted while it sends its command."""
    near, far = socket.socketpair()
    far.settimeout(BOUND)
    client = hot.Client(Interrupting(near))  # type: ignore[arg-type]  # stands in for a socket
    if twin:
        client.early = None
    try:
        client.hello(["ps"], {})
        near.close()
        reader = framing.Reader(far)
        frames = []
        while (frame := reader.next()) is not None:
            for fd in frame[1]:
                os.close(fd)
            frames.append(frame[0])
        return frames
    finally:
        near.close()
        far.close()


@pytest.mark.usefixtures("handlers")
def test_a_signal_while_the_command_is_sent_follows_it() -> None:
    hello, after = sent()
    assert hello["argv"] == ["ps"]
    assert after == {"signal": int(signal.SIGUSR1)}


@pytest.mark.usefixtures("handlers")
def test_twin_a_signal_that_does_not_wait() -> None:
    with pytest.raises(framing.FrameError):
        sent(twin=True)


@pytest.mark.usefixtures("handlers")
def test_twin_signals_caught_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot.Client, "catch", lambda _client: None)
    assert len(sent()) == 1
