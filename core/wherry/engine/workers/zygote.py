"""Starts workers, by one process that has loaded what they need and forks them (``wherry.layers.zygote``). The engine never forks,
unshares or mounts."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from wherry.api import Unavailable

_START = "import sys; sys.path[:0] = sys.argv[1:]; from wherry.layers.zygote import main; main()"
#: What is inflated goes through pieces of a megabyte, whose memory is to be used again and not given back and faulted in (mallopt(3)).
_ENVIRON = {
    "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}  # fmt: skip
_LINGER = 10.0  # seconds that the stem waits for the next job
_PATIENCE = 30.0  # seconds for a fork: one who takes longer was stopped, and would hold up all jobs


@frozen
class Worker:
    """A worker that runs. pidfd is the caller's to close."""

    pid: int
    pidfd: int


class Zygote:
    """Has at most one stem, started with the first job and ended a while after the last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stem: tuple[int, socket.socket] | None = None
        self._busy = 0
        self._used = 0.0  # when the last job ended
        self._timer: threading.Timer | None = None
        self._closed = False

    @contextlib.contextmanager
    def worker(self, fds: Sequence[int]) -> Iterator[Worker]:
        """A worker with these descriptors, for the block. Unavailable where none can be had, or after ``close``."""
        with self._lock:
            self._busy += 1
        try:
            with self._lock:
                born = self._bear(fds)
            try:
                yield born
            finally:
                os.close(born.pidfd)
        finally:
            with self._lock:
                self._busy -= 1
                self._used = time.monotonic()
                if self._timer is None and not self._closed:
                    self._look_again(_LINGER)

    def close(self) -> None:
        """Ends the stem, and with it all workers. Later ones are refused. Idempotent."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._drop()

    def rest(self) -> None:
        """Ends the stem, if it has nothing to do; the next job starts another."""
        with self._lock:
            if not self._busy:
                self._drop()

    def _look_again(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            left = self._used + _LINGER - time.monotonic()
            if self._closed or self._stem is None:
                return
            if self._busy or left > 0:
                self._look_again(_LINGER if self._busy else left)
            else:
                self._drop()

    def _bear(self, fds: Sequence[int]) -> Worker:
        for _attempt in range(2):  # the stem of before may have been killed since
            if self._closed:
                raise Unavailable("worker", "the engine is stopping")
            fresh = self._stem is None
            if self._stem is None:
                self._stem = _spawn()
            answer, pidfd = _ask(self._stem[1], fds)
            word, _, number = answer.partition(" ")
            if word == "pid" and pidfd >= 0:
                return Worker(int(number), pidfd)
            if pidfd >= 0:
                os.close(pidfd)
            if word == "errno":
                raise OSError(int(number), os.strerror(int(number)), "fork")
            self._drop()
            if fresh:
                break
        raise Unavailable("worker", "it ended without an answer", "see the engine's log")

    def _drop(self) -> None:
        if self._stem is None:
            return
        pid, channel = self._stem
        self._stem = None
        channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # not yet reaped, hence still ours
        os.waitpid(pid, 0)


def _ask(channel: socket.socket, fds: Sequence[int]) -> tuple[str, int]:
    """(the stem's answer, a pidfd or -1); ("", -1) where there is no stem any more, or none that answers."""
    try:
        socket.send_fds(channel, [b"job"], list(fds))
        data, found, _flags, _address = socket.recv_fds(channel, 64, 1, socket.MSG_CMSG_CLOEXEC)
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        return "", -1
    return data.decode("ascii", "replace"), found[0] if found else -1


def _spawn() -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(_PATIENCE)
    with theirs:
        argv = [sys.executable, "-I", "-S", "-c", _START, *_search_path()]
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
        try:
            pid = os.posix_spawn(sys.executable, argv, _ENVIRON, file_actions=actions, setsigmask=())
        except BaseException:
            ours.close()
            raise
    return pid, ours


@functools.cache
def _search_path() -> tuple[str, ...]:
    """Where a worker finds wherry and the decompressors: their directories, and no other site directory."""
    found = []
    for name in ("wherry", "isal", "backports"):
        spec = importlib.util.find_spec(name)
        for location in (spec.submodule_search_locations if spec else None) or ():
            directory = str(Path(location).parent)
            if directory not in found:
                found.append(directory)
    return tuple(found)


__all__ = ["Worker", "Zygote"]
