"""The front end: a thread of the engine's for each command, and one hub thread that listens to all clients."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from wherry.api import Connection, Context, Engine, Unavailable
from wherry.kit import threads
from wherry_plugins.frontend.cli.session import Session

if TYPE_CHECKING:
    import socket

_PAUSE = 0.05


@frozen
class CliConfig:
    """[plugin.frontend.cli] has no keys."""


class Multiplexer:
    """Reads the frames of every session, so that a command needs no second thread until its client says something."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.epoll.register(self.waker, select.EPOLLIN)
        self.sessions: dict[int, Session] = {}
        self.fresh: set[int] = set()
        """Numbers watched since the last look: an event told for one of them may be of the descriptor that had it before."""
        self.lock = threading.Lock()
        self.stopped = False

    def add(self, session: Session) -> None:
        sock = session.connection.socket
        sock.setblocking(False)
        with self.lock:
            self._register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP, session)

    def _register(self, fd: int, events: int, session: Session) -> None:
        self.epoll.register(fd, events)
        self.sessions[fd] = session
        self.fresh.add(fd)

    def watch(self, session: Session) -> None:
        """From now on a stdout that nobody reads any more (``| head -1``) counts as the client's leaving."""
        with self.lock, contextlib.suppress(OSError):  # a regular file can't break, and epoll(7) does not take it
            for fd in session.fds[1:2]:  # none once the session has let go of them
                self._register(fd, 0, session)

    def release(self, session: Session) -> list[int]:
        """Takes a session's streams from it, the caller's to close: nobody watches them, and nobody will."""
        with self.lock:
            self._unwatch(session)
            fds, session.fds = session.fds, []
        return fds

    def _unwatch(self, session: Session) -> None:
        for fd in [fd for fd in session.fds[1:2] if self.sessions.get(fd) is session]:
            del self.sessions[fd]
            self.epoll.unregister(fd)

    def drop(self, session: Session) -> None:
        """Before the descriptors are closed: their numbers are free for others after that."""
        with self.lock:
            self._unwatch(session)
            self._drop(session.connection.socket)

    def _drop(self, sock: socket.socket) -> None:
        if self.sessions.pop(sock.fileno(), None) is not None:
            self.epoll.unregister(sock.fileno())

    def run(self) -> None:
        while not self.stopped:
            try:
                self.turn()
            except Exception:  # of one client's, or the machine's: the others go on
                sys.excepthook(*sys.exc_info())
                time.sleep(_PAUSE)

    def turn(self) -> None:
        """Waits once and handles what came. What is told of a number that is watched only since then is told again if it holds."""
        with self.lock:
            self.fresh.clear()
        for fd, _events in self.epoll.poll():
            with self.lock:
                if (session := self.sessions.get(fd)) is None or fd in self.fresh:
                    continue
                if fd == session.connection.socket.fileno():
                    self._read(session)
                else:
                    self._unwatch(session)
                    session.broken()

    def _read(self, session: Session) -> None:
        try:
            alive = session.reader.feed()
            while (frame := session.reader.pop()) is not None:
                for fd in frame[1]:
                    os.close(fd)
                session.feed(frame[0])
        except BlockingIOError:
            return
        except (OSError, ValueError):
            alive = False
        if not alive:
            self._drop(session.connection.socket)
            session.lost()

    def stop(self) -> None:
        self.stopped = True
        os.eventfd_write(self.waker, 1)


class CliFrontend:
    """A ``wherry.api.Frontend``. Without ``serve`` it has no engine and answers what needs none."""

    def __init__(self, config: CliConfig, context: Context | None) -> None:
        self.engine: Engine | None = None
        self.hub = Multiplexer()
        self.identity: dict[str, str] = {}
        """What this engine serves, by global option; asked once, when the first client names one."""

    def serve(self, engine: Any) -> None:
        """Imports the commands in the background, then listens to clients until ``stop``."""
        self.engine = engine
        with contextlib.suppress(Unavailable):  # the first command imports them then
            threads.start(self._warm, "cli-warm")
        self.hub.run()

    def _warm(self) -> None:
        from wherry_plugins.frontend.cli.main import warm

        warm()

    def stop(self) -> None:
        self.hub.stop()

    def handle(self, connection: Connection) -> None:
        """Runs one command; the last thing the client gets is its exit code."""
        from wherry_plugins.frontend.cli.main import execute

        session = Session(connection, self.engine, self.hub)
        self.hub.add(session)
        try:
            code = execute(session, self.identity)
            session.exit(code)
        finally:
            self.hub.drop(session)
            session.close()
