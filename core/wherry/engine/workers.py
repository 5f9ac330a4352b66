"""The pool of workers: short-lived processes that unpack, diff and measure, so that no thread of the engine has to.

A worker is a bare interpreter (``-I -S``) started by posix_spawn(3): the engine itself never forks, unshares or mounts. What a
worker does is in ``wherry.layers.worker``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from wherry.api import ApartLayer, Descriptor, Digest, Error, IdMap, Mount, Unavailable
from wherry.errors import CLASSES
from wherry.layers.worker import ANSWER, REQUEST, STREAM

_FIRST_FREE = 10  # descriptors below are renumbered in the worker
_START = "import sys; sys.path[:0] = sys.argv[1:]; from wherry.layers.worker import main; main()"


class WorkerPool:
    """Implements ``wherry.api.Workers``; at most one worker per CPU, the others wait their turn."""

    def __init__(self, run: Path) -> None:
        self._point = run / "worker"
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._pids: set[int] = set()
        self._closed = False
        self._devices = _may_make_devices()

    def unpack(
        self,
        mounts: tuple[Mount, ...],
        layer: Descriptor,
        stream: BinaryIO,
        idmap: IdMap = IdMap(),
        *,
        sync: bool = True,
    ) -> Digest:
        return Digest(str(self._unpack(mounts, layer, stream, idmap, "", sync)["diff_id"]))

    def unpack_apart(
        self, mounts: tuple[Mount, ...], layer: Descriptor, stream: BinaryIO, marks: str, *, sync: bool = True
    ) -> ApartLayer:
        done = self._unpack(mounts, layer, stream, IdMap(), marks, sync)
        return ApartLayer(Digest(str(done["diff_id"])), bool(done["root"]), tuple(done["removals"]))

    def _unpack(
        self, mounts: tuple[Mount, ...], layer: Descriptor, stream: BinaryIO, idmap: IdMap, marks: str, sync: bool
    ) -> Any:
        request = {
            "digest": layer.digest,
            "uids": idmap.uids,
            "gids": idmap.gids,
            "devices": self._devices,
            "marks": marks,
            "sync": sync,
        }
        return self._run("unpack", request, [mounts], stream)

    def diff(self, lower: tuple[Mount, ...], upper: tuple[Mount, ...], sink: BinaryIO, media_type: str) -> Descriptor:
        sink.flush()
        done = self._run("diff", {"media_type": media_type}, [lower, upper], sink)
        return Descriptor(media_type, Digest(done["digest"]), done["size"], {"diff-id": done["diff_id"]})

    def populate(self, volume: tuple[Mount, ...], mounts: tuple[Mount, ...], path: str, spool: BinaryIO) -> int:
        return int(self._run("populate", {"path": path, "devices": self._devices}, [mounts, volume, ()], spool))

    def usage(self, mounts: tuple[Mount, ...]) -> tuple[int, int]:
        size, inodes = self._run("usage", {}, [mounts], None)
        return int(size), int(inodes)

    def close(self) -> None:
        """Kills what still works; later calls raise Unavailable."""
        with self._lock:
            self._closed = True
            for pid in self._pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)  # not yet reaped, hence still ours

    def _run(
        self, job: str, details: Mapping[str, Any], roots: Sequence[tuple[Mount, ...]], stream: BinaryIO | None
    ) -> Any:
        # Without the map of an idmapped mount: on disk files have the ids of the image, and so they are in a layer.
        plain = [[(mount.type, mount.source, mount.target, mount.options) for mount in mounts] for mounts in roots]
        request = {"job": job, "parent": os.getpid(), "point": str(self._point), "roots": plain, **details}
        with self._slots:
            self._point.mkdir(mode=0o700, exist_ok=True)
            text = self._ask(json.dumps(request).encode(), stream)
        try:
            answer = json.loads(text)
        except ValueError:
            raise Unavailable(f"worker ({job})", "it ended without an answer", "see the engine's log") from None
        if "ok" in answer:
            return answer["ok"]
        if "errno" in answer:
            raise OSError(answer["errno"], answer["text"], answer["path"] or None)
        name, what, cause, hint = answer["error"]
        raise CLASSES.get(name, Error)(what, cause, hint)

    def _ask(self, request: bytes, stream: BinaryIO | None) -> bytes:
        """Starts a worker, gives it the request and answers what it wrote before it ended."""
        with contextlib.ExitStack() as theirs:

            def lend(fd: int) -> int:
                """A copy above the numbers that a worker's descriptors have, so that dup2 overwrites none of them."""
                copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
                theirs.callback(os.close, copy)
                return copy

            memory = os.memfd_create("wherry-request", os.MFD_CLOEXEC)  # a pipe might not hold all of it
            theirs.callback(os.close, memory)
            os.write(memory, request)
            os.lseek(memory, 0, os.SEEK_SET)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            ours = open(reader, "rb", buffering=0)  # noqa: SIM115 - a descriptor, closed below
            theirs.callback(os.close, writer)
            actions = [(os.POSIX_SPAWN_DUP2, lend(memory), REQUEST), (os.POSIX_SPAWN_DUP2, lend(writer), ANSWER)]
            if stream is not None:
                fd = stream.fileno()
                with contextlib.suppress(OSError, ValueError):
                    os.lseek(fd, stream.tell(), os.SEEK_SET)  # what Python has read ahead is the worker's to read
                actions.append((os.POSIX_SPAWN_DUP2, lend(fd), STREAM))
            try:
                pid = self._spawn(actions)
            except BaseException:
                ours.close()
                raise
        with ours:
            try:
                return b"".join(iter(lambda: ours.read(1 << 16), b""))
            finally:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                with self._lock:
                    self._pids.discard(pid)
                    os.waitpid(pid, 0)

    def _spawn(self, actions: Sequence[tuple[int, int, int]]) -> int:
        argv = [sys.executable, "-I", "-S", "-c", _START, *_search_path()]
        with self._lock:
            if self._closed:
                raise Unavailable("worker", "the engine is stopping")
            pid = os.posix_spawn(sys.executable, argv, {"LC_ALL": "C.UTF-8"}, file_actions=actions, setsigmask=())
            self._pids.add(pid)
        return pid


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


def _may_make_devices() -> bool:
    """Device nodes can't be made inside a user namespace, even by its root (user_namespaces(7))."""
    try:
        return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]
    except OSError:
        return os.geteuid() == 0


__all__ = ["WorkerPool"]
