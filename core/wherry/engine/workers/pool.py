"""The pool of workers: short-lived processes that unpack, read, diff and measure, so that no thread of the engine has to.

What a worker does is in ``wherry.layers.worker``, how it is started in ``wherry.engine.workers.zygote``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from wherry.api import ApartLayer, Descriptor, Digest, IdMap, Mount, Unavailable
from wherry.engine.workers.zygote import Zygote
from wherry.errors import decode_error
from wherry.spec.distribution import LAYER

_NICE = 5  # of what nobody waits for


class WorkerPool:
    """Implements ``wherry.api.Workers``; at most one worker per CPU, the others wait their turn."""

    def __init__(self, run: Path) -> None:
        self._point = run / "worker"
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._pids: dict[int, int] = {}  # with their pidfds
        self._nursery = Zygote()
        self._devices = _may_make_devices()

    def unpack(
        self,
        mounts: tuple[Mount, ...],
        layer: Descriptor,
        stream: BinaryIO,
        idmap: IdMap = IdMap(),
        *,
        sync: bool = True,
        feed: BinaryIO | None = None,
    ) -> Digest:
        return Digest(str(self._unpack(mounts, layer, stream, idmap, "", sync, feed)["diff_id"]))

    def unpack_apart(
        self, mounts: tuple[Mount, ...], layer: Descriptor, stream: BinaryIO, marks: str, *, sync: bool = True,
        feed: BinaryIO | None = None,
    ) -> ApartLayer:  # fmt: skip
        done = self._unpack(mounts, layer, stream, IdMap(), marks, sync, feed)
        return ApartLayer(Digest(str(done["diff_id"])), bool(done["root"]), tuple(done["removals"]))

    def _unpack(
        self, mounts: tuple[Mount, ...], layer: Descriptor, stream: BinaryIO, idmap: IdMap, marks: str, sync: bool,
        feed: BinaryIO | None,
    ) -> Any:  # fmt: skip
        request = {
            "digest": layer.digest,
            "uids": idmap.uids,
            "gids": idmap.gids,
            "devices": self._devices,
            "marks": marks,
            "sync": sync,
            "grows": feed is not None,
            "nice": 0,
        }
        return self._run("unpack", request, [mounts], stream, feed)

    def diff(self, lower: tuple[Mount, ...], upper: tuple[Mount, ...], sink: BinaryIO, media_type: str) -> Descriptor:
        sink.flush()
        done = self._run("diff", {"media_type": media_type}, [lower, upper], sink)
        return Descriptor(media_type, Digest(done["digest"]), done["size"], {"diff-id": done["diff_id"]})

    def describe(self, stream: BinaryIO) -> Descriptor:
        done = self._run("describe", {"nice": 0}, [], stream)
        media_type = LAYER + (f"+{done['compression']}" if done["compression"] else "")
        return Descriptor(media_type, Digest(done["digest"]), done["size"], {"diff-id": done["diff_id"]})

    def entries(self, stream: BinaryIO, spool: BinaryIO) -> int:
        return int(self._run("list", {"nice": 0}, [], stream, spool))

    def populate(self, volume: tuple[Mount, ...], mounts: tuple[Mount, ...], path: str, spool: BinaryIO) -> int:
        return int(self._run("populate", {"path": path, "devices": self._devices}, [mounts, volume, ()], spool))

    def copy(
        self, mounts: tuple[Mount, ...], source: str, target: str, idmap: IdMap = IdMap(), *, reflink: bool = True
    ) -> None:
        request = {
            "source": source, "target": target, "uids": idmap.uids, "gids": idmap.gids, "reflink": reflink, "nice": 0,
        }  # fmt: skip
        self._run("copy", request, [mounts], None)

    def usage(self, mounts: tuple[Mount, ...]) -> tuple[int, int]:
        size, inodes = self._run("usage", {}, [mounts], None)
        return int(size), int(inodes)

    def close(self) -> None:
        """Kills what still works; later calls raise Unavailable."""
        with self._lock:
            for pidfd in self._pids.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self._nursery.close()

    def _run(
        self, job: str, details: Mapping[str, Any], roots: Sequence[tuple[Mount, ...]], stream: BinaryIO | None,
        other: BinaryIO | None = None,
    ) -> Any:  # fmt: skip
        # Without the map of an idmapped mount: on disk files have the ids of the image, and so they are in a layer.
        plain = [[(mount.type, mount.source, mount.target, mount.options) for mount in mounts] for mounts in roots]
        request = {"job": job, "point": str(self._point), "roots": plain, "nice": _NICE, **details}
        # One that reads what comes from elsewhere would keep others from working for as long as that takes.
        with contextlib.nullcontext() if details.get("grows") else self._slots:
            self._point.mkdir(mode=0o700, exist_ok=True)
            text = self._ask(json.dumps(request).encode(), stream, other)
        try:
            answer = json.loads(text)
        except ValueError:
            raise Unavailable(f"worker ({job})", "it ended without an answer", "see the engine's log") from None
        if "ok" in answer:
            return answer["ok"]
        raise decode_error(answer["error"])

    def _ask(self, request: bytes, stream: BinaryIO | None, other: BinaryIO | None) -> bytes:
        """Starts a worker, gives it the request and answers what it wrote before it ended."""
        with contextlib.ExitStack() as ours:
            memory = os.memfd_create("wherry-request", os.MFD_CLOEXEC)  # a pipe might not hold all of it
            ours.callback(os.close, memory)
            os.write(memory, request)
            os.lseek(memory, 0, os.SEEK_SET)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            answer = ours.enter_context(open(reader, "rb", buffering=0))
            theirs = [memory, writer]
            if stream is not None:
                theirs.append(stream.fileno())
                with contextlib.suppress(OSError, ValueError):
                    os.lseek(stream.fileno(), stream.tell(), os.SEEK_SET)  # what Python has read ahead is the worker's
            if other is not None:
                theirs.append(other.fileno())
            try:
                worker = ours.enter_context(self._nursery.worker(theirs))
            finally:
                os.close(writer)
            with self._lock:
                self._pids[worker.pid] = worker.pidfd
            try:
                text = b"".join(iter(lambda: answer.read(1 << 16), b""))
                _wait(worker.pidfd)
            finally:
                with self._lock:
                    del self._pids[worker.pid]
            return text


def _wait(pidfd: int) -> None:
    """Until the process has ended, and its mounts with it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()


def _may_make_devices() -> bool:
    """Device nodes can't be made inside a user namespace, even by its root (user_namespaces(7))."""
    try:
        return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]
    except OSError:
        return os.geteuid() == 0


__all__ = ["WorkerPool"]
