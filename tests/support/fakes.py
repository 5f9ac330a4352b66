"""Drivers and a shim in memory, for what the engine itself does: order, undo, records, events, recovery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wherry.api import (
    Capabilities,
    CommandNotFound,
    Descriptor,
    Error,
    Event,
    Exit,
    ImageInfo,
    InUse,
    LogSink,
    Mount,
    NotFound,
    PluginInfo,
    Sandbox,
    TaskState,
)
from wherry.engine.assembly import Parts, combine
from wherry.engine.state.database import EngineDatabase
from wherry.engine.state.events import EventBus
from wherry.engine.state.leases import Leases
from wherry.engine.state.state import State
from wherry.kernel.config import LoadedConfig
from wherry_plugins.network.host import HostConfig, HostNetwork
from wherry_plugins.network.none import NoneConfig, NoneNetwork

DIGEST = "sha256:" + "1" * 64
CHAIN = "sha256:" + "2" * 64


class World:
    """What outlives an engine: the shim's side, the snapshots, and a journal of everything that was asked."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.meanwhile: dict[str, Callable[[], object]] = {}
        """What happens elsewhere at the moment of a step, once."""
        self.tasks: dict[tuple[str, str], TaskState] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.snapshots: dict[str, str] = {CHAIN: ""}
        self.cgroups: set[tuple[str, str]] = set()
        self.logs: set[str] = set()
        self.limits: dict[str, Mapping[str, Any]] = {}
        self.events: list[Event] = []
        self.acked = 0
        self.changed = threading.Condition()
        self.pids = 100
        self.processes: dict[tuple[str, str], Mapping[str, Any]] = {}

    def note(self, what: str, id: str) -> None:
        self.journal.append(what)
        if (happening := self.meanwhile.pop(what, None)) is not None:
            happening()
        if (error := self.fail.get(what)) is not None:
            raise error

    def exit(self, id: str, code: int | None, exec_id: str = "") -> None:
        """The process ends."""
        with self.changed:
            task = self.tasks[id, exec_id]
            if task.status == "stopped":
                return
            end = Exit(code, time.time_ns())
            self.tasks[id, exec_id] = TaskState(id, exec_id, "stopped", 0, task.start_time, task.sandbox_id, end)
            text = "" if code is None else str(code)
            details = {"exec_id": exec_id, "code": text, "oom_killed": "false"}
            self.events.append(Event("task.exited", id, end.time, details, len(self.events) + 1))
            self.changed.notify_all()


class FakeShim:
    def __init__(self, world: World) -> None:
        self.world = world
        self.closed = False

    def create_sandbox_soon(self, sandbox: Sandbox) -> Any:
        self.world.note("create_sandbox", sandbox.id)
        self.world.sandboxes.setdefault(sandbox.id, sandbox)
        return lambda: sandbox

    def remove_sandbox_soon(self, id: str) -> Any:
        self.remove_sandbox(id)
        return lambda: None

    def remove_sandbox(self, id: str) -> None:
        self.world.note("remove_sandbox", id)
        if any(task.sandbox_id == id and task.status != "stopped" for task in self.world.tasks.values()):
            raise InUse(f"sandbox {id}", "has members")
        self.world.sandboxes.pop(id, None)

    def sandboxes(self) -> Iterator[Sandbox]:
        return iter(list(self.world.sandboxes.values()))

    def list(self, id: str = "") -> Iterator[TaskState]:
        return iter([task for task in self.world.tasks.values() if id in ("", task.id)])

    def events(self, after: int) -> Iterator[Event]:
        last = max(after, self.world.acked)
        while not self.closed:
            with self.world.changed:
                fresh = [event for event in self.world.events if event.sequence > last]
                if not fresh:
                    self.world.changed.wait(0.05)
            for event in fresh:
                last = event.sequence
                yield event

    def ack(self, sequence: int) -> None:
        self.world.acked = max(self.world.acked, sequence)

    ack_soon = ack

    def forget_soon(self, id: str, exec_id: str) -> None:
        self.world.tasks.pop((id, exec_id), None)

    pid, start_time, version = 1, 1, "0"

    def attach(self, id: str, exec_id: str, stdio: Any) -> str:
        return "token"

    def detach(self, id: str, exec_id: str, token: str) -> None:
        self.world.note("detach_stdio", id)

    def close(self) -> None:
        self.closed = True


class FakeIsolation:
    def __init__(self, world: World) -> None:
        self.world = world

    def _new(self, id: str, exec_id: str, sandbox_id: str) -> TaskState:
        self.world.pids += 1
        task = TaskState(id, exec_id, "created", self.world.pids, self.world.pids, sandbox_id)
        self.world.tasks[id, exec_id] = task
        self.world.cgroups.add((id, exec_id))
        return task

    def create(self, request: Any) -> TaskState:
        self.world.note("isolation.create", request.id)
        assert (request.bundle / "config.json").exists()
        assert (request.bundle.parent / request.sandbox_id / "hosts").exists()
        self.world.processes[request.id, ""] = request.spec["process"]
        return self._new(request.id, "", request.sandbox_id)

    def exec(self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Any) -> TaskState:
        self.world.note("isolation.exec", id)
        self.world.processes[id, exec_id] = process
        return self._new(id, exec_id, self.world.tasks[id, ""].sandbox_id)

    def start(self, id: str, exec_id: str = "") -> None:
        self.world.note("isolation.start", id)
        args = self.world.processes[id, exec_id]["args"]
        if args[0] == "missing":
            self.world.exit(id, 127, exec_id)
            raise CommandNotFound('exec "missing"', "executable file not found in $PATH")
        if (id, exec_id) not in self.world.tasks:
            raise NotFound(f"task {id}", "no such process")
        task = self.world.tasks[id, exec_id]
        self.world.tasks[id, exec_id] = TaskState(id, exec_id, "running", task.pid, task.start_time, task.sandbox_id)
        if args[0] == "true":
            self.world.exit(id, 0, exec_id)

    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        self.world.note(f"kill {signal}", id)
        if (id, exec_id) not in self.world.tasks:
            raise NotFound(f"task {id}", "no such task")
        if signal == 9 or self.world.processes[id, exec_id]["args"][0] != "stubborn":
            self.world.exit(id, 128 + signal, exec_id)

    def pause(self, id: str) -> None:
        self.world.note("pause", id)

    def resume(self, id: str) -> None:
        self.world.note("resume", id)

    def resize(self, id: str, rows: int, columns: int, exec_id: str = "") -> None:
        self.world.note(f"resize {rows}x{columns}", id)

    def update(self, id: str, resources: Mapping[str, Any]) -> None:
        self.world.note("update", id)
        self.world.limits[id] = resources

    def state(self, id: str) -> TaskState:
        return self.world.tasks[id, ""]

    def stats(self, id: str) -> Mapping[str, int]:
        return {"pids.current": 1}

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> None:
        self.world.note("isolation.delete", id)
        if force and (id, exec_id) in self.world.tasks:
            self.world.exit(id, 137, exec_id)
        self.world.cgroups.discard((id, exec_id))

    def adopt(self) -> Iterator[TaskState]:
        return iter(())


class FakeSnapshotter:
    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, key: str, parent: str, options: Any = None) -> tuple[Mount, ...]:
        self.world.note("prepare", key)
        self.world.snapshots[key] = parent
        return self.mounts(key)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        if key not in self.world.snapshots:
            raise NotFound(f"snapshot {key}", "no such snapshot")
        return (Mount("bind", f"/snapshots/{key}"),)

    def remove(self, name: str) -> None:
        self.world.note("snapshotter.remove", name)
        self.world.snapshots.pop(name, None)

    def walk(self) -> Iterator[Any]:
        return iter(
            SimpleNamespace(kind="committed" if name == CHAIN else "active", name=name, parent=parent)
            for name, parent in list(self.world.snapshots.items())
        )

    def cleanup(self) -> int:
        return 0


class FakeLog:
    def __init__(self, world: World) -> None:
        self.world = world

    def sink(self, id: str, options: Mapping[str, str]) -> LogSink:
        self.world.logs.add(id)
        return LogSink("json-file", f"/logs/{id}")

    def remove(self, id: str) -> None:
        self.world.logs.discard(id)


class FakeStore:
    """Holds nothing: images are faked above it."""

    def walk(self) -> Iterator[Any]:
        return iter(())


class FakeKernel:
    def __init__(self, world: World, run: Path, shim: FakeShim) -> None:
        self.world = world
        context: Any = SimpleNamespace(run=run / "network", shim=shim, publish=lambda event: None)
        for name in ("none", "host"):
            (run / "network" / name).mkdir(parents=True, exist_ok=True)
        self.parts: dict[tuple[str, str], Any] = {
            ("isolation", "fake"): FakeIsolation(world),
            ("snapshotter", "fake"): FakeSnapshotter(world),
            ("store", "fake"): FakeStore(),
            ("network", "none"): NoneNetwork(
                NoneConfig(), SimpleNamespace(**{**vars(context), "run": run / "network/none"})
            ),
            ("network", "host"): HostNetwork(
                HostConfig(), SimpleNamespace(**{**vars(context), "run": run / "network/host"})
            ),
        }
        self.holding: Any = lambda callback: nullcontext()
        self.notify: Any = lambda event: None

    def drop_spans(self, key: str) -> None:
        """There are none."""

    def variant(self, name: str = "", *, store: str = "", snapshotter: str = "", isolation: str = "") -> Any:
        if name not in ("", "standard"):
            raise NotFound(f"variant {name!r}", "no such variant")
        ids = {"store": "fake", "snapshotter": "fake", "isolation": "fake", "network": "none"}
        parts = {kind: self.parts[kind, id] for kind, id in ids.items()}
        return SimpleNamespace(name="standard", ids=ids, **parts)

    def driver(self, kind: str, id: str) -> Any:
        return self.parts[kind, id]

    def capabilities(self, kind: str, id: str) -> Capabilities:
        return Capabilities()

    def log(self, id: str) -> Any:
        if id != "fake":
            raise NotFound(f"log driver {id!r}", "no such driver")
        return FakeLog(self.world)

    def adjust(self, spec: dict[str, Any], request: Any) -> tuple[dict[str, Any], dict[str, str]]:
        if "stamp" in request.options:
            spec["annotations"]["stamp"] = request.options["stamp"]
            return spec, {"/annotations/stamp": "adjust.stamp"}
        return spec, {}

    def validate(self, spec: Any, owners: Any) -> None:
        self.world.note("validate", "")

    def together(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def plugins(self) -> tuple[PluginInfo, ...]:
        return tuple(PluginInfo(family, id, "tests", "0", "ready") for family, id in self.parts)

    def usable(self, family: str, *, used: bool = False) -> tuple[str, ...]:
        return tuple(id for kind, id in self.parts if kind == family)

    def at_work(self, family: str) -> tuple[str, ...]:
        return self.usable(family)

    def gc_roots(self) -> frozenset[str]:
        return frozenset()

    def tracing(self, key: str) -> Any:
        return nullcontext()

    def close(self) -> None:
        pass


class FakeImages:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def ensure(self, reference: str, drivers: Any, platform: str, pull: str) -> Any:
        if reference == "absent":
            raise NotFound(f"image {reference!r}", "no such image")
        target = Descriptor("application/vnd.oci.image.manifest.v1+json", DIGEST, 1)  # type: ignore[arg-type]
        image = ImageInfo("sha256:" + "3" * 64, (reference,), target, 0, 1, {}, "linux/amd64")
        return SimpleNamespace(image=image, config={"config": self.config}, chain_id=CHAIN)


def engine(tmp_path: Path, world: World, image: Mapping[str, Any] | None = None) -> Parts:
    """An engine over a world, recovered and listening; a second one over the same path and world is a restart."""
    root, run = tmp_path / "root", tmp_path / "run"
    for path in (root, run, run / "bundles"):
        path.mkdir(exist_ok=True)
    bus = EventBus()
    database = EngineDatabase(root / "wherry.db", bus.deliver)
    shim: Any = FakeShim(world)
    kernel: Any = FakeKernel(world, run, shim)
    images: Any = FakeImages(image or {"Cmd": ["true"], "Env": ["PATH=/bin", "FOO"]})
    state = State(
        root=root,
        run=run,
        loaded=LoadedConfig(),
        database=database,
        bus=bus,
        leases=Leases(database, str(id(database))),
        kernel=kernel,
        shim=shim,
        images=images,
    )
    parts = combine(state)
    parts.closers.callback(database.close)
    parts.closers.callback(shim.close)
    parts.recovery.load()
    parts.recovery.run()
    return parts


def crash(parts: Parts) -> None:
    """The engine is gone between one moment and the next: nothing is taken down."""
    parts.state.closing.set()
    parts.state.shim.closed = True  # type: ignore[attr-defined]
    parts.state.finishers.shutdown(wait=True)
    parts.state.database.close()


__all__ = ["CHAIN", "DIGEST", "Error", "FakeShim", "World", "crash", "engine"]
