"""Verbs that find a container while it is made, started or undone: they wait for whoever is at work on it, and then see
what came of it. Each with a twin that lacks the one step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support.fakes import CHAIN, World, engine
from wherry.api import AlreadyExists, FailedPrecondition, InUse, NotFound, RunRequest, Stdio, Unavailable
from wherry.engine.assembly import Parts
from wherry.engine.containers.containers import Containers
from wherry.engine.containers.create import Creator
from wherry.engine.containers.index import ContainerIndex

BOUND = 30.0
REQUEST = RunRequest(image="x", name="one", command=("sleep",))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def parts(tmp_path: Path, world: World) -> Iterator[Parts]:
    made = engine(tmp_path, world)
    yield made
    world.fail.clear()
    made.close()


class Beside:
    """A verb on container "one" by another thread, begun at a moment that is given to ``now``, which goes on once the verb is
    over, or waits for the container's lock."""

    def __init__(self, parts: Parts, verb: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._parts, self._verb = parts, verb
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            self._verb()
        except Exception as error:
            self.error = error
        self._settled.set()

    def now(self) -> None:
        record: Any = self._parts.state.registry.find("one")
        record.lock = _Door(record.lock, self._settled)
        self._thread.start()
        assert self._settled.wait(BOUND)

    def over(self) -> None:
        self._thread.join(BOUND)
        assert not self._thread.is_alive()


class _Door:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, lock: Any, waits: threading.Event) -> None:
        self._lock, self._waits = lock, waits

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if blocking:
            self._waits.set()
        return bool(self._lock.acquire(blocking, timeout)) if blocking else False

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()


def removal(parts: Parts, *, force: bool = False) -> Beside:
    return Beside(parts, lambda: parts.lifecycle.remove("one", force=force))


def nothing_is_left(world: World, parts: Parts) -> None:
    assert (world.tasks, world.sandboxes, world.snapshots) == ({}, {}, {CHAIN: ""})
    assert len(parts.state.registry) == 0
    for table in ("containers", "leases", "sandboxes"):
        assert parts.state.database.all(f"SELECT count(*) FROM {table}") == [(0,)]


def with_another_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a container holds a lock that is not the container's."""
    begin = Creator.begin

    def beginning(self: Creator, request: Any, id: str, _lock: Any, *, undo: Any) -> Any:
        return begin(self, request, id, threading.RLock(), undo=undo)

    monkeypatch.setattr(Creator, "begin", beginning)


# rm beside create


def rm_beside_create(world: World, parts: Parts) -> None:
    rm = removal(parts)
    world.meanwhile["prepare"] = rm.now
    made = parts.lifecycle.create(REQUEST)
    rm.over()
    assert rm.error is None
    with pytest.raises(NotFound):
        parts.state.registry.find(made.id)
    nothing_is_left(world, parts)


def test_what_is_being_created_is_removed_when_it_is_whole(world: World, parts: Parts) -> None:
    rm_beside_create(world, parts)


def test_twin_a_removal_in_the_middle_of_a_create(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    with_another_lock(monkeypatch)
    with pytest.raises(AssertionError):
        rm_beside_create(world, parts)


# rm beside run


def rm_before_a_run_goes_on(world: World, parts: Parts) -> None:
    """Right after the container can be found by its name."""
    rm = removal(parts, force=True)
    registry = parts.state.registry
    reserve = registry.reserve

    def reserving(record: Any) -> None:
        reserve(record)
        rm.now()

    registry.reserve = reserving  # type: ignore[method-assign]
    parts.lifecycle.run(REQUEST, Stdio())
    rm.over()
    assert rm.error is None
    nothing_is_left(world, parts)


def test_what_is_about_to_run_is_removed_when_it_runs(world: World, parts: Parts) -> None:
    rm_before_a_run_goes_on(world, parts)


def test_twin_a_run_that_is_found_before_it_is_held(
    world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_another_lock(monkeypatch)
    with pytest.raises(FailedPrecondition, match="is being removed"):
        rm_before_a_run_goes_on(world, parts)


def rm_that_waited_for_a_run(world: World, parts: Parts) -> None:
    rm = removal(parts)
    world.meanwhile["isolation.create"] = rm.now
    parts.lifecycle.run(REQUEST, Stdio())
    rm.over()
    assert isinstance(rm.error, InUse)
    assert parts.state.registry.find("one").live
    assert [task.status for task in world.tasks.values()] == ["running"]


def test_what_runs_by_now_is_not_removed_without_force(world: World, parts: Parts) -> None:
    rm_that_waited_for_a_run(world, parts)


def test_twin_a_removal_that_looks_but_once(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Containers, "_must_be_forced", staticmethod(lambda record, force: None))
    with pytest.raises(AssertionError):
        rm_that_waited_for_a_run(world, parts)


# start beside a run that is being undone


def start_beside_an_undo(world: World, parts: Parts) -> None:
    start = Beside(parts, lambda: parts.lifecycle.start("one", Stdio()))
    world.fail["isolation.create"] = Unavailable("isolation", "planted")

    def undone() -> None:
        world.fail.clear()
        start.now()

    world.meanwhile["isolation.delete"] = undone
    with pytest.raises(Unavailable, match="planted"):
        parts.lifecycle.run(REQUEST, Stdio())
    start.over()
    assert start.error is None
    one = parts.state.registry.find("one")
    assert one.live
    assert list(world.sandboxes) == [one.id]
    assert [task.status for task in world.tasks.values()] == ["running"]


def test_a_start_waits_for_the_undo_of_the_one_before(world: World, parts: Parts) -> None:
    start_beside_an_undo(world, parts)


def test_twin_a_start_in_the_middle_of_an_undo(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    with_another_lock(monkeypatch)
    with pytest.raises(AssertionError):
        start_beside_an_undo(world, parts)


# who waited for what never came to be


def test_what_came_to_nothing_is_gone_for_who_waited(world: World, parts: Parts) -> None:
    rm = removal(parts)
    waiting = threading.Thread(target=parts.lifecycle.wait, args=("one", "", None), daemon=True)
    world.fail["prepare"] = Unavailable("snapshotter", "planted")

    def meanwhile() -> None:
        waiting.start()
        rm.now()

    world.meanwhile["prepare"] = meanwhile
    with pytest.raises(Unavailable, match="planted"):
        parts.lifecycle.create(REQUEST)
    rm.over()
    assert rm.error is None
    waiting.join(BOUND)
    assert not waiting.is_alive()
    nothing_is_left(world, parts)


# create beside rename


def create_beside_a_rename(parts: Parts) -> None:
    """While the new name is not written down yet, the old one is still taken."""
    parts.lifecycle.create(REQUEST)
    renaming = threading.Thread(target=parts.changing.rename, args=("one", "two"), daemon=True)
    with parts.state.database.transaction(durable=False):
        renaming.start()
        until_found(parts, "two")
        with pytest.raises(AlreadyExists):
            parts.lifecycle.create(REQUEST)
    renaming.join(BOUND)
    assert not renaming.is_alive()
    assert parts.state.registry.find("two").name == "two"
    parts.lifecycle.create(REQUEST)
    names = parts.state.database.all("SELECT name FROM containers ORDER BY name")
    assert names == [("one",), ("two",)]


def until_found(parts: Parts, name: str) -> None:
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with suppress(NotFound):
            parts.state.registry.find(name)
            return
        time.sleep(0.001)
    raise AssertionError("it was never found")


def test_a_name_is_free_once_the_new_one_is_written(parts: Parts) -> None:
    create_beside_a_rename(parts)


def test_twin_a_name_that_is_free_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def renamed(index: ContainerIndex, record: Any, name: str) -> Iterator[None]:
        del index._names[record.name]
        record.apply({"name": name})
        index._names[name] = record
        yield

    monkeypatch.setattr(ContainerIndex, "renamed", renamed)
    with pytest.raises(Unavailable, match="UNIQUE"):
        create_beside_a_rename(parts)
