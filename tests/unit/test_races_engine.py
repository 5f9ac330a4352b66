"""Containers that come, go and are swept at the same time, in the worst order; each with a twin that lacks the one step."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.fakes import CHAIN, World, engine
from wherry.api import CommandNotFound, ExecRequest, FailedPrecondition, RunRequest, Stdio, Unavailable
from wherry.engine.assembly import Parts
from wherry.engine.containers.execs import Execs
from wherry.engine.containers.exits import ExitHandler
from wherry.engine.containers.sandboxes import SandboxMembers
from wherry.engine.networks.attach import Attacher
from wherry.engine.state.sweeping import SweepLock

BOUND = 30.0
SLEEP = ("sleep",)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def parts(tmp_path: Path, world: World) -> Iterator[Parts]:
    made = engine(tmp_path, world)
    yield made
    world.fail.clear()
    made.close()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def run(parts: Parts, name: str, **options: Any) -> Any:
    return parts.lifecycle.run(RunRequest(image="x", name=name, command=SLEEP, **options), Stdio())


def over(parts: Parts, name: str) -> None:
    """Its end has been worked off."""
    assert parts.lifecycle.wait(name, "", BOUND) is not None


def nothing_runs(world: World, parts: Parts) -> None:
    until(lambda: world.tasks == {})
    assert world.sandboxes == {}
    assert parts.state.attached == {}
    assert parts.state.database.all("SELECT count(*) FROM sandboxes") == [(0,)]
    assert list((parts.state.run / "network" / "none").iterdir()) == []


def by_what_runs(parts: Parts) -> Callable[[SandboxMembers, Any], bool]:
    """The count that ``SandboxMembers`` replaces: of containers that run at the moment."""

    def leave(_memberships: SandboxMembers, record: Any) -> bool:
        members = parts.state.registry.members(record.sandbox_id)
        return not any(other is not record and other.live for other in members)

    return leave


# sandboxes that are shared


def one_joins_while_the_owner_ends(world: World, parts: Parts) -> None:
    one = run(parts, "one")

    def ends() -> None:
        world.exit(one.id, 0)
        over(parts, "one")

    world.meanwhile["prepare"] = ends
    run(parts, "two", network="container:one")
    assert list(world.sandboxes) == [one.id]
    assert [place.network for place in parts.state.attached[one.id]] == ["none"]
    parts.lifecycle.remove("two", force=True)
    nothing_runs(world, parts)


def test_one_that_joins_while_the_owner_ends_keeps_its_network(world: World, parts: Parts) -> None:
    one_joins_while_the_owner_ends(world, parts)


def test_twin_one_that_joins_is_not_counted_yet(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SandboxMembers, "leave", by_what_runs(parts))
    with pytest.raises(AssertionError):
        one_joins_while_the_owner_ends(world, parts)


def two_end_together(world: World, parts: Parts) -> None:
    one = run(parts, "one")
    two = run(parts, "two", network="container:one")
    both = threading.Barrier(2, timeout=BOUND)
    delete = parts.state.kernel.parts["isolation", "fake"].delete  # type: ignore[attr-defined]

    def deleting(id: str, exec_id: str = "", *, force: bool = False) -> None:
        both.wait()  # each has looked for others, none has taken anything down
        delete(id, exec_id, force=force)

    parts.state.kernel.parts["isolation", "fake"].delete = deleting  # type: ignore[attr-defined]
    world.exit(one.id, 0)
    world.exit(two.id, 0)
    over(parts, "one")
    over(parts, "two")
    nothing_runs(world, parts)


def test_of_two_that_end_together_one_takes_the_sandbox_down(world: World, parts: Parts) -> None:
    two_end_together(world, parts)


def test_twin_two_that_count_each_other(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SandboxMembers, "leave", by_what_runs(parts))
    with pytest.raises(AssertionError):
        two_end_together(world, parts)


def the_last_one_fails_to_start(world: World, parts: Parts) -> None:
    one = run(parts, "one")

    def ends() -> None:
        world.exit(one.id, 0)
        over(parts, "one")
        world.fail["isolation.create"] = Unavailable("isolation", "planted")

    world.meanwhile["prepare"] = ends
    with pytest.raises(Unavailable, match="planted"):
        run(parts, "two", network="container:one", remove=True)
    nothing_runs(world, parts)


def test_one_that_joined_and_failed_takes_down_what_was_left_to_it(world: World, parts: Parts) -> None:
    the_last_one_fails_to_start(world, parts)


def test_twin_one_that_failed_just_leaves(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(starting: Attacher, record: Any, _pairs: Any) -> None:
        if starting._state.memberships.leave(record):
            starting._state.memberships.down(record)

    monkeypatch.setattr(Attacher, "_leave", leave)
    with pytest.raises(AssertionError):
        the_last_one_fails_to_start(world, parts)


def the_owner_comes_back_while_the_last_one_goes(
    world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    one = run(parts, "one")
    two = run(parts, "two", network="container:one")
    world.exit(one.id, 0)
    over(parts, "one")
    at_the_door, inside = threading.Event(), threading.Event()
    enter = SandboxMembers.enter

    def entering(self: SandboxMembers, record: Any) -> None:
        at_the_door.set()
        enter(self, record)

    monkeypatch.setattr(SandboxMembers, "enter", entering)
    errors: list[Exception] = []

    def start() -> None:
        try:
            parts.lifecycle.start("one", Stdio())
        except Exception as error:
            errors.append(error)
        inside.set()

    starter = threading.Thread(target=start, daemon=True)

    def comes() -> None:
        starter.start()
        assert (at_the_door if waits else inside).wait(BOUND)

    world.meanwhile["isolation.delete"] = comes
    world.exit(two.id, 0)
    over(parts, "two")
    starter.join(BOUND)
    assert errors == []
    assert parts.state.registry.find("one").live
    assert list(world.sandboxes) == [one.id]
    assert list(parts.state.attached) == [one.id]


def test_a_start_waits_for_the_end_of_its_sandbox(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    the_owner_comes_back_while_the_last_one_goes(world, parts, monkeypatch, waits=True)


def test_twin_a_start_in_a_sandbox_that_goes(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(set[str]):
        def add(self, _item: str) -> None:
            pass

    parts.state.memberships._going = Empty()
    with pytest.raises(AssertionError):
        the_owner_comes_back_while_the_last_one_goes(world, parts, monkeypatch, waits=False)


def test_members_are_counted_again_after_a_restart(tmp_path: Path, world: World, parts: Parts) -> None:
    one = run(parts, "one")
    run(parts, "two", network="container:one")
    parts.close()
    second = engine(tmp_path, world)
    second.lifecycle.remove("one", force=True)
    assert list(world.sandboxes) == [one.id]
    second.lifecycle.remove("two", force=True)
    nothing_runs(world, second)
    second.close()


# ends that can't be written down


@contextmanager
def full_disk(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def transaction(durable: bool = True) -> Any:
        raise Unavailable("database", "disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(parts.state.database, "transaction", transaction)
        yield


def an_end_on_a_full_disk(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch, *, remove: bool) -> None:
    one = run(parts, "one", remove=remove)
    record = parts.state.registry.find("one")
    with full_disk(parts, monkeypatch):
        world.exit(one.id, 7)
        exit = parts.lifecycle.wait(one.id, "", BOUND)
        assert exit is not None
        assert exit.code == 7
        assert world.sandboxes == {}
        assert parts.state.attached == {}
        assert world.acked == 0
        assert record.status == "stopped"
    until(lambda: world.acked == 1)
    rows = parts.state.database.all("SELECT count(*) FROM containers WHERE json_extract(data, '$.status') = 'stopped'")
    assert rows == [(0,)] if remove else rows == [(1,)]
    topics = [event.topic for event in parts.state.database.events_after(0)]
    assert topics.count("task.exited") == 1
    assert topics.count("network.detached") == 1
    nothing_runs(world, parts)
    until(lambda: not remove or (len(parts.state.registry) == 0 and world.snapshots == {CHAIN: ""}))


@pytest.mark.parametrize("remove", [False, True])
def test_an_end_that_cannot_be_written_is_told_and_written_later(
    world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch, remove: bool
) -> None:
    an_end_on_a_full_disk(world, parts, monkeypatch, remove=remove)


def test_twin_an_end_that_stops_where_it_cannot_be_written(
    world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(ending: ExitHandler, end: Any) -> None:
        ending._write(end, end.record.pack())
        ending.release(end, [])

    monkeypatch.setattr(ExitHandler, "_stop", stop)
    with pytest.raises(AssertionError):
        an_end_on_a_full_disk(world, parts, monkeypatch, remove=False)


def an_exec_that_ends_on_a_full_disk(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(parts, "one")
    exec_id = parts.execs.exec("one", ExecRequest(SLEEP), Stdio())
    with full_disk(parts, monkeypatch):
        world.exit(one.id, 3, exec_id)
        exit = parts.lifecycle.wait("one", exec_id, BOUND)
        assert exit is not None
        assert exit.code == 3
        until(lambda: (one.id, exec_id) not in world.tasks)
    world.exit(one.id, 0)
    over(parts, "one")
    until(lambda: world.acked == 2)


def test_an_exec_whose_end_cannot_be_written_holds_up_nobody(
    world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_exec_that_ends_on_a_full_disk(world, parts, monkeypatch)


def test_twin_an_exec_whose_end_has_to_be_written(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(_failures: Any, _name: str, step: Callable[[], object]) -> bool:
        step()
        return True

    monkeypatch.setattr("wherry.engine.containers.exits.attempt", strict)
    monkeypatch.setattr(sys.modules[__name__], "BOUND", 1.0)  # it will not come to it
    with pytest.raises(AssertionError):
        an_exec_that_ends_on_a_full_disk(world, parts, monkeypatch)


# sweeps


class Listed:
    """A driver before whose first answer to one call something happens."""

    def __init__(self, driver: Any, call: str, meanwhile: Callable[[], None]) -> None:
        self._driver, self._call, self._meanwhile = driver, call, meanwhile

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if name != self._call:
            return found

        def called(*arguments: Any) -> Any:
            meanwhile, self._meanwhile = self._meanwhile, lambda: None
            meanwhile()
            return found(*arguments)

        return called


def a_start_beside_a_sweep(parts: Parts, monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> None:
    """It comes after the sweep has asked what containers hold, and before the network driver gives back all else."""
    at_the_door = threading.Event()
    wait = SweepLock.wait

    def waiting(self: SweepLock) -> None:
        at_the_door.set()
        wait(self)

    monkeypatch.setattr(SweepLock, "wait", waiting)
    starter = threading.Thread(target=run, args=(parts, "one"), daemon=True)

    def meanwhile() -> None:
        starter.start()
        if waits:
            assert at_the_door.wait(BOUND)
        else:
            starter.join(BOUND)

    drivers = parts.state.kernel.parts  # type: ignore[attr-defined]
    drivers["network", "none"] = Listed(drivers["network", "none"], "gc", meanwhile)
    parts.system.doctor(repair=True)
    starter.join(BOUND)
    one = parts.state.registry.find("one")
    assert one.live
    assert one.id in [path.name for path in (parts.state.run / "network" / "none").iterdir()]


def test_a_start_waits_while_doctor_repairs(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    a_start_beside_a_sweep(parts, monkeypatch, waits=True)


def test_twin_a_start_that_does_not_wait(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SweepLock, "wait", lambda _self: None)
    with pytest.raises(AssertionError):
        a_start_beside_a_sweep(parts, monkeypatch, waits=False)


def a_create_beside_a_repair(world: World, parts: Parts) -> None:
    """It comes between the beginning of the search and the list of snapshots."""
    made: list[str] = []
    drivers = parts.state.kernel.parts  # type: ignore[attr-defined]

    def meanwhile() -> None:
        made.append(parts.lifecycle.create(RunRequest(image="x")).id)

    drivers["snapshotter", "fake"] = Listed(drivers["snapshotter", "fake"], "walk", meanwhile)
    parts.system.doctor(repair=True)
    assert made[0] in world.snapshots


def test_a_snapshot_that_is_made_meanwhile_stays(world: World, parts: Parts) -> None:
    a_create_beside_a_repair(world, parts)


def test_twin_owners_asked_before_the_list(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    held = parts.system.live()
    monkeypatch.setattr(parts.system, "live", lambda: held)
    with pytest.raises(AssertionError):
        a_create_beside_a_repair(world, parts)


# execs, and starts of what runs


def an_exec_that_ends_before_its_start(world: World, parts: Parts) -> int | None:
    one = run(parts, "one")
    record = parts.state.registry.find("one")

    def dies() -> None:
        (exec,) = record.execs.values()
        world.exit(one.id, 137, exec.id)
        until(lambda: (one.id, exec.id) not in world.tasks)

    world.meanwhile["isolation.start"] = dies
    exec_id = parts.execs.exec("one", ExecRequest(("sleep",)), Stdio())
    exit = parts.lifecycle.wait("one", exec_id, BOUND)
    return exit.code if exit is not None else None


def test_an_exec_that_ended_already_is_told_by_its_exit(world: World, parts: Parts) -> None:
    assert an_exec_that_ends_before_its_start(world, parts) == 137


def test_twin_an_exec_whose_end_is_not_asked_for(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry.engine.containers.execs.NotFound", ZeroDivisionError)
    with pytest.raises(Exception, match="no such process"):
        an_exec_that_ends_before_its_start(world, parts)


def test_an_exec_that_cannot_start_says_why(world: World, parts: Parts) -> None:
    run(parts, "one")
    with pytest.raises(CommandNotFound):
        parts.execs.exec("one", ExecRequest(("missing",)), Stdio())
    assert parts.state.registry.find("one").execs == {}
    assert isinstance(parts.execs, Execs)


def test_what_is_paused_is_not_started(parts: Parts) -> None:
    run(parts, "one")
    parts.lifecycle.pause("one")
    with pytest.raises(FailedPrecondition, match="is paused; unpause it instead"):
        parts.lifecycle.start("one", Stdio())


def test_streams_given_to_a_start_of_what_runs_are_attached(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(parts, "one")
    attached: list[Any] = []
    monkeypatch.setattr(parts.state.shim, "attach", lambda *arguments: attached.append(arguments))
    parts.lifecycle.start("one", Stdio())
    assert attached == []
    streams = Stdio(stdout=1)
    parts.lifecycle.start("one", streams)
    assert attached == [(one.id, "", streams)]
