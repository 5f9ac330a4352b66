"""Drivers that keep everything in memory; tests copy this file beside their plugins and change what they need."""

from __future__ import annotations

# ruff: noqa: F401 what plugins made by tests use
import io
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from wherry.api import *  # noqa: F403
from wherry.api import (
    BlobInfo,
    Capabilities,
    Event,
    Exit,
    Image,
    LogSink,
    Mount,
    NetworkConfig,
    NotFound,
    Plan,
    Registration,
    Reservation,
    SnapshotInfo,
    Stdio,
    TaskState,
    Unavailable,
    hookimpl,
)

__all__ = [name for name in dir() if not name.startswith("__")]


@frozen
class Options:
    size: int = 1
    name: str = "x"
    ratio: float = 0.5
    fast: bool = False
    words: tuple[str, ...] = ()
    table: Mapping[str, int] = field(factory=dict)


class Fake:
    def __init__(self, options: Any, context: Any) -> None:
        self.options = options
        self.context = context


class FakeSnapshotter(Fake):
    def stat(self, name):
        raise NotFound(f'snapshot "{name}"', "no such snapshot")

    def update(self, name, labels):
        return SnapshotInfo("active", name, "", {}, 1, 2)

    def relabel(self, names, labels):
        pass

    def usage(self, name):
        return (1, 2)

    def mounts(self, key):
        return (Mount("bind", "/tmp/" + key),)

    def prepare(self, key, parent, options=None):
        return (Mount("bind", "/tmp/" + key, options=("rw",)),)

    def view(self, key, parent, options=None):
        return ()

    def commit(self, name, key, labels):
        self.context.hold(f"snapshot/fake/{name}")

    def remove(self, name):
        pass

    def mark(self, names):
        return tuple(names)

    def unmark(self, names):
        pass

    def sweep(self):
        return ()

    def walk(self):
        for index in range(150):
            yield SnapshotInfo("active", f"s{index}", "", {}, index, index)

    def cleanup(self):
        return 0


class FakeIngest:
    def __init__(self, ref):
        self.ref, self.offset, self.data = ref, 0, b""

    def write(self, data):
        self.data += bytes(data)
        self.offset += len(data)
        return len(data)

    def reader(self):
        return io.BytesIO(self.data)

    def truncate(self):
        self.offset = 0

    def commit(self, size, digest, labels):
        return BlobInfo(digest, self.offset, 1, dict(labels))

    def close(self):
        pass


class FakeStore(Fake):
    def info(self, digest):
        return BlobInfo(digest, 1, 1, {})

    def open(self, digest):
        return io.BytesIO(b"content of " + digest.encode())

    def ingest(self, ref, expected=None):
        return FakeIngest(ref)

    def abort(self, ref):
        pass

    def ingests(self):
        return iter([("a", 1), ("b", 2)])

    def label(self, digest, labels):
        return self.info(digest)

    def delete(self, digest):
        pass

    def mark(self, digests):
        pass

    def unmark(self, digests):
        pass

    def sweep(self):
        return ()

    def walk(self):
        return iter(())

    def resolve(self, name):
        raise NotFound(f'image "{name}"', "no such image")

    def tag(self, name, target, labels, *, expected=None):
        return Image(name, target, labels, 1)

    def untag(self, name, *, expected=None):
        pass

    def list(self, prefix=""):
        return iter(())


class FakeIsolation(Fake):
    def create(self, request):
        return TaskState(request.id, "", "created", 1, 1)

    def start(self, id, exec_id=""):
        pass

    def exec(self, id, exec_id, process, stdio):
        return TaskState(id, exec_id, "created", 1, 1)

    def kill(self, id, signal, exec_id="", *, all=False):
        pass

    def pause(self, id):
        pass

    def resume(self, id):
        pass

    def resize(self, id, rows, columns, exec_id=""):
        pass

    def close_stdin(self, id, exec_id=""):
        pass

    def update(self, id, resources):
        pass

    def stats(self, id):
        return {"pids.current": 1}

    def pids(self, id):
        return (1, 2)

    def wait(self, id, exec_id="", timeout=None):
        return Exit(0, 1)

    def state(self, id, exec_id=""):
        return TaskState(id, exec_id, "running", 1, 1)

    def delete(self, id, exec_id="", *, force=False):
        return None

    def adopt(self):
        return iter(())


class FakeNetwork(Fake):
    def create(self, config):
        return config

    def remove(self, name):
        pass

    def list(self):
        return iter([NetworkConfig("n")])

    def inspect(self, name):
        return NetworkConfig(name), ()

    def reserve(self, request):
        return Reservation(request)

    def attach(self, reservation, sandbox):
        raise NotFound("sandbox", "gone")

    def detach(self, sandbox_id, network):
        pass

    def check(self, sandbox_id, network):
        pass

    def gc(self, live):
        return 0


__all__ += ["Fake", "FakeIngest", "FakeIsolation", "FakeNetwork", "FakeSnapshotter", "FakeStore", "Options"]
