"""engine.sock: takes clients in, looks at their first frame and hands them to the front end that it names.

The socket file is 0600, or 0660 for the group of ``[engine] group``; who connects is known by SO_PEERCRED (unix(7)). A client
of another version hears ``{"mismatch": VERSION}``. Wire format: ``wherry.linux.framing``.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import wherry
from wherry.api import Connection, Denied, Engine, Error, FailedPrecondition, Frontend, NotFound, Unavailable
from wherry.errors import encode_error
from wherry.kernel.log import logger as log
from wherry.kit import threads
from wherry.linux import framing

BACKLOG = 512
HELLO_SECONDS = 10.0
#: Idle threads that are kept for the next clients.
SPARE = 8
_PATH_LIMIT = 107


class ConnectionThreads:
    """Runs work on threads of its own: an idle one if there is, else a new one. No limit: a client may stay for days."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self.busy = 0

    def run(self, work: Callable[[], None]) -> None:
        """Unavailable when no thread can be started."""
        with self._lock:
            self.busy += 1
            if self._idle > 0:
                self._idle -= 1
                self._work.put(work)
                return
        try:
            threads.start(self._loop, "wherry-client", (work,))
        except Unavailable:
            with self._lock:
                self.busy -= 1
            raise

    def _loop(self, work: Callable[[], None] | None) -> None:
        while work is not None:
            try:
                work()
            except Exception:
                log.exception("a client's thread failed")
            with self._lock:
                self.busy -= 1
                if self._idle >= SPARE:
                    return
                self._idle += 1
            work = self._work.get()

    def close(self) -> None:
        for _ in range(SPARE):
            self._work.put(None)


class SocketServer:
    """Serves one engine. ``open`` listens, ``serve`` accepts until ``close``."""

    def __init__(
        self, engine: Engine, *, root: Path, run: Path, group: str, config: str, frontends: dict[str, Frontend]
    ) -> None:
        self._engine = engine
        self._root = root
        self._run = run
        self._group = group
        self._config = config
        self._frontends = frontends
        self._threads = ConnectionThreads()
        self._socket: socket.socket | None = None
        self._closed = False
        self.last_active = time.monotonic()

    def open(self) -> None:
        """Listens on <run>/engine.sock. OSError; Denied for a group that does not exist."""
        gid = -1
        if self._group:
            try:
                gid = grp.getgrnam(self._group).gr_gid
            except KeyError:
                raise Denied(f'group "{self._group}"', "no such group", "make it, or change [engine] group") from None
            os.chown(self._run, -1, gid)
        path = self._run / "engine.sock"
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with short_path(self._run, "engine.sock") as name:
                listener.bind(name)
        finally:
            os.umask(before)
        if gid >= 0:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        listener.listen(BACKLOG)
        self._socket = listener

    def serve(self) -> None:
        """Accepts clients, each on a thread of its own, until ``close``."""
        assert self._socket is not None
        while not self._closed:
            try:
                client, _address = self._socket.accept()
            except OSError as error:
                if self._closed:
                    return
                log.warning("accept failed: {}", error)
                time.sleep(0.05)
                continue
            try:
                self._threads.run(partial(self._client, client))
            except Unavailable as error:
                self._turn_away(client, error)

    @staticmethod
    def _turn_away(client: socket.socket, error: Error) -> None:
        """The one client for which there is no thread; the accept loop waits for nobody."""
        log.warning("a client was turned away: {}", error)
        with client, contextlib.suppress(OSError):
            client.setblocking(False)
            framing.send(client, _error(error))

    @property
    def clients(self) -> int:
        return self._threads.busy

    def _client(self, client: socket.socket) -> None:
        self.last_active = time.monotonic()
        handed = False
        fds: list[int] = []
        try:
            pid, uid, gid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            client.settimeout(HELLO_SECONDS)
            reader = framing.Reader(client)
            frame = reader.next()
            reader.close()
            client.settimeout(None)
            if frame is None:
                return
            hello, fds = frame
            refusal = self._refuse(hello)
            if refusal is not None:
                framing.send(client, refusal)
                return
            connection = Connection(client, hello, tuple(fds), uid, gid, pid)
            handed = True
            self._hand_over(connection)
        except (framing.FrameError, OSError) as error:
            log.debug("a client was dropped: {}", error)
        finally:
            self.last_active = time.monotonic()
            if not handed:
                for fd in fds:
                    os.close(fd)
                client.close()

    def _refuse(self, hello: dict[str, Any]) -> dict[str, Any] | None:
        if hello.get("version") != wherry.__version__:
            return {"mismatch": wherry.__version__}
        name = hello.get("frontend")
        if name != "api" and name not in self._frontends:
            there = ", ".join(["api", *self._frontends])
            return _error(
                NotFound(
                    f'front end "{name}"', "the engine does not run it", f"it runs {there}: see [engine] frontends"
                )
            )
        return self._other_place(hello)

    def _other_place(self, hello: dict[str, Any]) -> dict[str, Any] | None:
        """Refuses a client that names another config or root than this engine's: it would be surprised later."""
        given, environ = (value if isinstance(value := hello.get(key), dict) else {} for key in ("given", "environ"))
        cwd = str(hello.get("cwd") or "/")
        config = given.get("config") or hello.get("config") or environ.get("WHERRY_CONFIG")
        if config and not (self._config and _same(Path(cwd, str(config)), Path(self._config))):
            return _error(
                FailedPrecondition(
                    f'config file "{config}"',
                    f"the running engine uses {self._config or 'the built-in defaults'}",
                    f"restart it: wherry --config {config} engine restart",
                )
            )
        root = given.get("root") or environ.get("WHERRY_ROOT")
        if root and not _same(Path(cwd, str(root)), self._root):
            return _error(
                FailedPrecondition(
                    f'root "{root}"',
                    f'the engine of "{self._run}" has the root "{self._root}"',
                    "use another --run for it",
                )
            )
        return None

    def _hand_over(self, connection: Connection) -> None:
        if connection.hello.get("frontend") == "api":
            from wherry.rpc import wire

            for fd in connection.fds:
                os.close(fd)
            with connection.socket:
                framing.send(connection.socket, {"wherry": 1, "version": wherry.__version__})
                wire.serve(Engine, self._engine, connection.socket)
        else:
            self._frontends[connection.hello["frontend"]].handle(connection)

    def close(self) -> None:
        """Stops to accept; clients that are being served go on until the process ends. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            with contextlib.suppress(OSError):
                (self._run / "engine.sock").unlink()
        self._threads.close()


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.resolve() == other.resolve()
    return False


def _error(error: Error) -> dict[str, Any]:
    """One frame that both kinds of client understand: text and exit code for the command line, the class for others."""
    return {"err": f"wherry: {error}\n", "error": encode_error(error), "exit": error.exit_code}


@contextlib.contextmanager
def short_path(directory: Path, name: str) -> Iterator[str]:
    """A path to name that fits into sockaddr_un (unix(7)), through /proc/self/fd where the plain one is too long."""
    plain = str(directory / name)
    if len(os.fsencode(plain)) <= _PATH_LIMIT:
        yield plain
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
