"""One client's command: its streams, terminal, directory and environment, and what it sends while the command runs.

Nothing here touches sys.stdout, os.environ or the working directory: many sessions run in one engine.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.api import Connection, Engine, Error, Invalid, Unavailable
from wherry.kit import framing, threads

if TYPE_CHECKING:
    from wherry_plugins.frontend.cli.server import Multiplexer

FATAL = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
PATH_TRANSPORTS = frozenset({"archive", "layout"})
"""Whose references are paths."""
BROKEN_PIPE = 141
"""Exit code, as a shell shows a program that SIGPIPE ended."""
SLOW_CLIENT = 30_000
"""Milliseconds that a client may leave its socket unread before it counts as gone."""


class ClientGone(Exception):
    """The client went away, closed the stream written to, or was told to exit after a signal."""


class Session:
    """See the module. stdin, stdout and stderr are descriptors, owned until ``close``."""

    def __init__(self, connection: Connection, engine: Engine | None, hub: Multiplexer) -> None:
        hello = connection.hello
        self._hub = hub
        self._engine = engine
        self.connection = connection
        self.codes: Sequence[int] = ()
        """Exit codes that errors keep, by the command (``Command.codes``)."""
        self.argv = [str(word) for word in hello.get("argv", ())]
        self.cwd = str(hello.get("cwd") or "")
        self.environ: dict[str, str] = dict(hello.get("environ", {}))
        self.given: dict[str, str] = dict(hello.get("given", {}))
        self.tty: tuple[bool, ...] = tuple(map(bool, hello.get("tty", ()))) or (False, False, False)
        self.rows, self.columns = (*hello.get("size", ()), 0, 0)[:2]
        self.fds = list(connection.fds)
        self.reader = framing.Reader(connection.socket)
        self.gone = False
        self.finished = False
        self._was_raw = False
        self.let_go: Callable[[], None] = lambda: None
        """Takes the client's streams from the process it follows; set once there is one."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._steps: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._target: Callable[[dict[str, Any]], None] | None = None
        self._held: list[dict[str, Any]] | None = None

    @property
    def engine(self) -> Engine:
        """Unavailable where there is none: the client serves help and the like without one."""
        if self._engine is None:
            raise Unavailable("engine", "not running", 'run "wherry engine start"')
        return self._engine

    @property
    def offline(self) -> bool:
        return self._engine is None

    @property
    def width(self) -> int:
        """Columns to format for: $COLUMNS, the terminal's, or 80."""
        columns = self.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() and int(columns) else self.columns or 80

    def path(self, text: str) -> str:
        """A path of the client, absolute. Invalid when it is relative and the client's directory is gone."""
        if text.startswith("~/") and self.environ.get("HOME"):
            text = self.environ["HOME"] + text[1:]
        if not text.startswith("/"):
            if not self.cwd:
                raise Invalid(f'path "{text}"', "it is relative and the current directory does not exist")
            text = f"{self.cwd}/{text}"
        return os.path.normpath(text)

    def reference(self, text: str) -> str:
        """An image reference in which a transport's relative path is made absolute: "archive:x.tar" is the client's file."""
        transport, colon, rest = text.partition(":")
        if not colon or not rest or transport not in PATH_TRANSPORTS:
            return text
        tree = "rootfs:" if transport == "archive" and rest.startswith("rootfs:") else ""
        return f"{transport}:{tree}{self.path(rest.removeprefix(tree))}"

    def read(self, text: str, limit: int = 16 << 20) -> str:
        """The text of a regular file (or a pipe) of the client, at most limit bytes. Invalid, OSError."""
        path = self.path(text)
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Invalid(f'file "{text}"', f"it is larger than {limit >> 20} MiB")
        return data.decode("utf-8", "surrogateescape")

    # output
    def out(self, text: str) -> None:
        """Writes to the client's stdout. Gone when nobody reads it, OSError when it is a file on a full disk."""
        self.write(1, text.encode("utf-8", "surrogateescape"))

    def line(self, text: str) -> None:
        self.out(text + "\n")

    def err(self, text: str) -> None:
        """Writes to the client's stderr. A terminal that was raw may be so still: the client sees our frame later."""
        text = text.replace("\n", "\r\n") if self._was_raw else text
        self.write(2, text.encode("utf-8", "surrogateescape"))

    def write(self, number: int, data: bytes) -> None:
        """All of data to descriptor 1 or 2 of the client, which may be non-blocking. Gone; for 1 OSError of a full disk."""
        fd = self.duplicate(number)
        try:
            view = memoryview(data)
            while view:
                if self.gone or len(self.fds) <= number:
                    raise ClientGone
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(fd, select.POLLOUT)
                    poll.poll(1000)
                except OSError as error:
                    if number == 1 and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise OSError(error.errno, error.strerror, "stdout") from None
                    raise ClientGone from None  # EPIPE, or EIO from a terminal that has hung up
        finally:
            os.close(fd)

    def duplicate(self, number: int) -> int:
        """A descriptor of the client's, for the caller to use and to close: its number stays what it is, whoever lets go of the
        streams meanwhile. Gone when they were let go of."""
        with self._hub.lock:
            if self.gone or len(self.fds) <= number:
                raise ClientGone
            return os.dup(self.fds[number])

    def pieces(self, size: int) -> Iterator[bytes]:
        """What the client's stdin has, to its end, in pieces of at most size bytes; it may be non-blocking. Gone, OSError."""
        fd = self.duplicate(0)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        try:
            while True:
                # Never without a look at whether somebody still waits for the outcome.
                ready = poll.poll(1000)
                if self.gone:
                    raise ClientGone
                try:
                    data = os.read(fd, size) if ready else None
                except BlockingIOError:  # another process that has this pipe was quicker
                    continue
                if data == b"":
                    return
                if data:
                    yield data
        finally:
            os.close(fd)

    # frames to the client
    def send(self, message: dict[str, Any]) -> None:
        """One frame; a client that is gone is marked so."""
        data = framing.encode(message)
        with self._lock:
            if self.finished:
                return
            try:
                while data:
                    try:
                        data = data[self.connection.socket.send(data) :]
                    except BlockingIOError:
                        poll = select.poll()
                        poll.register(self.connection.socket, select.POLLOUT)
                        if not poll.poll(SLOW_CLIENT):
                            self.gone = True
                            return
            except OSError:
                self.gone = True

    def exit(self, code: int) -> None:
        """The last frame."""
        self.send({"exit": code})
        with self._lock:
            self.finished = True

    @contextmanager
    def raw(self) -> Iterator[None]:
        """The client's terminal in raw mode meanwhile."""
        self._was_raw = True
        self.send({"raw": True})
        try:
            yield
        finally:
            self.send({"raw": False})

    # frames from the client
    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps signals meanwhile for the ``deliver`` that follows inside; else they end the command."""
        self._held = []
        try:
            yield
        finally:
            self._held = None
            self._target = None

    def deliver(self, target: Callable[[dict[str, Any]], None]) -> None:
        """From now on each frame of the client goes to target, on a thread of this session."""
        self._target = target
        held, self._held = self._held or [], None
        for frame in held:
            self.feed(frame)
        self._hub.watch(self)

    def feed(self, frame: dict[str, Any]) -> None:
        """Takes one frame; called by the hub's thread."""
        if self._target is not None:
            self._enqueue(frame)
        elif self._held is not None:
            self._held.append(frame)
        elif (number := frame.get("signal")) in FATAL:
            self._later(lambda: self._end(128 + int(str(number))))

    def lost(self) -> None:
        """The client closed its socket; called by the hub's thread."""
        self.gone = True
        if self._target is not None:
            self._enqueue({"gone": True})

    def broken(self) -> None:
        """Nobody reads the client's stdout any more; called by the hub's thread."""
        self._later(lambda: self._end(BROKEN_PIPE))

    def _end(self, code: int) -> None:
        """The client is told to exit, and then the command that it is gone."""
        self.exit(code)
        self.lost()

    def _enqueue(self, frame: dict[str, Any]) -> None:
        self._later(lambda: self._take(frame))

    def _take(self, frame: dict[str, Any]) -> None:
        if self._target is not None:
            self._target(frame)

    def _later(self, step: Callable[[], None]) -> None:
        """On a thread of this session's, as its client may keep it waiting. One thread, or steps would overtake each other; the
        hub's thread and the command's own may both come here."""
        self._steps.put(step)
        with self._starting:
            if self._worker is None:
                with suppress(Unavailable):  # the client's next frame tries again
                    self._worker = threads.start(self._work, "cli-frames")

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                step()
            except (Error, OSError):
                continue  # the container is gone, or going

    def release(self) -> None:
        """Closes the client's streams, so that whoever is at their other ends sees the end of file; only while no call to
        the engine has them as arguments. Idempotent."""
        for fd in self._hub.release(self):
            os.close(fd)

    def close(self) -> None:
        """Closes socket and descriptors; nothing happens when they are closed."""
        with self._lock:
            self.finished = self.gone = True
        if self._worker is not None:
            self._steps.put(None)
        self.release()
        self.connection.socket.close()
