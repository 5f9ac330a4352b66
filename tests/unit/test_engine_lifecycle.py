"""The engine's own part of a container's life, over drivers in memory: order, undo, records, events, recovery."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fakes import CHAIN, World, crash, engine
from wherry.api import (
    AlreadyExists,
    CommandNotFound,
    Event,
    ExecRequest,
    FailedPrecondition,
    InUse,
    Invalid,
    NotFound,
    Port,
    RunRequest,
    Stdio,
    Unavailable,
)
from wherry.engine.assembly import Parts
from wherry.engine.containers.records import ContainerRecord
from wherry.engine.state.undo import Undo


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def parts(tmp_path: Path, world: World) -> Iterator[Parts]:
    made = engine(tmp_path, world)
    yield made
    made.close()


def clean(world: World, parts: Parts) -> None:
    """Nothing is left of any container."""
    assert world.tasks == {}
    assert world.sandboxes == {}
    assert world.cgroups == set()
    assert world.snapshots == {CHAIN: ""}
    assert list(parts.state.bundles.iterdir()) == []
    assert list((parts.state.run / "network" / "none").iterdir()) == []
    assert parts.state.attached == {}
    assert parts.state.database.all("SELECT count(*) FROM leases") == [(0,)]
    assert parts.state.database.all("SELECT count(*) FROM sandboxes") == [(0,)]


def topics(parts: Parts) -> list[str]:
    return [event.topic for event in parts.state.database.events_after(0)]


def test_run_and_remove_goes_in_order_and_leaves_nothing(world: World, parts: Parts) -> None:
    container = parts.lifecycle.run(RunRequest(image="x", remove=True), Stdio())
    exit = parts.lifecycle.wait(container.id, "", 5)
    assert exit is not None
    assert exit.code == 0
    order = [
        "create_sandbox",
        "prepare",
        "isolation.create",
        "isolation.start",
        "isolation.delete",
        "snapshotter.remove",
    ]
    assert [step for step in world.journal if step in order] == order
    assert len(parts.state.registry) == 0
    clean(world, parts)
    assert topics(parts) == [
        "container.created", "network.attached", "task.started", "network.detached", "task.exited", "container.removed",
    ]  # fmt: skip
    sequences = [event.sequence for event in parts.state.database.events_after(0)]
    assert sequences == list(range(1, len(sequences) + 1))
    assert world.acked == 1


def test_a_kept_container_starts_again_on_the_same_snapshot(world: World, parts: Parts) -> None:
    container = parts.lifecycle.run(RunRequest(image="x", name="one"), Stdio())
    assert parts.lifecycle.wait("one", "", 5).code == 0  # type: ignore[union-attr]
    stopped = parts.state.registry.find("one").view()
    assert (stopped.status, stopped.exit_code, stopped.pid) == ("stopped", 0, 0)
    assert container.id in world.snapshots
    assert world.sandboxes == {}
    parts.lifecycle.start("one", Stdio())
    assert parts.lifecycle.wait("one", "", 5).code == 0  # type: ignore[union-attr]
    assert world.journal.count("prepare") == 1
    assert parts.views.inspect("one")["RestartCount"] == 1
    parts.lifecycle.remove("one", force=False)
    clean(world, parts)
    assert world.logs == set()


STEPS = ["prepare", "create_sandbox", "validate", "isolation.create", "isolation.start"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("remove", [True, False])
def test_a_failing_step_undoes_what_came_before(world: World, parts: Parts, step: str, remove: bool) -> None:
    world.fail[step] = Unavailable(step, "planted")
    with pytest.raises(Unavailable, match="planted"):
        parts.lifecycle.run(RunRequest(image="x", name="one", remove=remove), Stdio())
    world.fail.clear()
    if remove or step == "prepare":
        assert len(parts.state.registry) == 0
        assert parts.state.database.all("SELECT count(*) FROM containers") == [(0,)]
    else:
        kept = parts.state.registry.find("one")
        assert (kept.status, kept.exit_code, kept.error) == ("created", 125, f"{step}: planted")
        parts.lifecycle.start("one", Stdio())
        assert parts.lifecycle.wait("one", "", 5) is not None
        parts.lifecycle.remove("one", force=True)
    clean(world, parts)


def test_a_failed_commit_of_the_start_takes_the_container_down(
    world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parts.state.database.transaction

    def transaction(durable: bool = True) -> object:
        if world.journal and world.journal[-1] == "isolation.start" and not monkeypatched.is_set():
            monkeypatched.set()
            raise Unavailable("database", "disk is full")
        return real(durable)

    monkeypatched = threading.Event()
    monkeypatch.setattr(parts.state.database, "transaction", transaction)
    with pytest.raises(Unavailable, match="disk is full"):
        parts.lifecycle.run(RunRequest(image="x", command=("sleep",), remove=True), Stdio())
    clean(world, parts)


def test_a_command_that_is_not_there_exits_127_and_keeps_the_container(world: World, parts: Parts) -> None:
    with pytest.raises(CommandNotFound) as caught:
        parts.lifecycle.run(RunRequest(image="x", name="one", command=("missing",)), Stdio())
    assert caught.value.exit_code == 127
    assert parts.state.registry.find("one").exit_code == 127
    assert [c.name for c in parts.views.list(True, {"status": ["created"]})] == ["one"]
    parts.lifecycle.remove("one", force=False)
    clean(world, parts)


def test_bad_requests_leave_nothing(world: World, parts: Parts) -> None:
    bad = [
        (NotFound, RunRequest(image="absent")),
        (NotFound, RunRequest(image="x", network="blue")),
        (NotFound, RunRequest(image="x", network="container:nobody")),
        (NotFound, RunRequest(image="x", variant="nope")),
        (NotFound, RunRequest(image="x", log="nope")),
        (Invalid, RunRequest(image="x", ports=(Port(80),))),
        (Invalid, RunRequest(image="x", name="-x")),
        (Invalid, RunRequest(image="x", cap_add=("NET_ADMON",))),
        (Invalid, RunRequest(image="x", memory=1)),
        (Invalid, RunRequest(image="x", stop_signal="TURM")),
        (Invalid, RunRequest(image="x", hostname="a b")),
    ]
    for error, request in bad:
        for make in (parts.lifecycle.create, lambda r: parts.lifecycle.run(r, Stdio())):
            with pytest.raises(error):
                make(request)
            for record in list(parts.state.registry):
                parts.lifecycle.remove(record.id, force=True)
    clean(world, parts)


def test_ports_say_how_to_get_them(parts: Parts) -> None:
    with pytest.raises(Invalid, match='the network driver "none" cannot publish ports') as caught:
        parts.lifecycle.create(RunRequest(image="x", ports=(Port(80),)))
    assert "--publish" in caught.value.hint
    assert "wherry info" in caught.value.hint, "a user without pasta sees there what is missing"


def test_names_are_taken_once_and_found_by_prefix(parts: Parts) -> None:
    one = parts.lifecycle.create(RunRequest(image="x", name="one"))
    with pytest.raises(AlreadyExists):
        parts.lifecycle.create(RunRequest(image="x", name="one"))
    assert parts.state.registry.find(one.id[:12]).id == one.id
    assert parts.state.registry.find("/one").id == one.id
    other = parts.lifecycle.create(RunRequest(image="x"))
    assert "_" in other.name
    for id in ("c0ffee" + "0" * 58, "c0ffee" + "1" * 58):
        parts.state.registry.reserve(ContainerRecord(id=id, name=id[6:20], image="x"))
    with pytest.raises(Invalid, match="2 ids begin so"):
        parts.state.registry.find("c0ffee")
    assert parts.state.registry.find("c0ffee1").id == "c0ffee" + "1" * 58
    for name in ("nobody", ""):
        with pytest.raises(NotFound):
            parts.state.registry.find(name)


def test_stop_sends_the_signal_then_kills(world: World, parts: Parts) -> None:
    parts.lifecycle.run(RunRequest(image="x", name="soft", command=("sleep",)), Stdio())
    assert parts.lifecycle.stop("soft", None, "").exit_code == 128 + 15
    parts.lifecycle.run(RunRequest(image="x", name="hard", command=("stubborn",), stop_signal="INT"), Stdio())
    assert parts.lifecycle.stop("hard", 0.05, "").exit_code == 137
    assert "kill 2" in world.journal
    assert parts.lifecycle.stop("hard", None, "").status == "stopped"


def test_kill_pause_and_wrong_states(world: World, parts: Parts) -> None:
    parts.lifecycle.run(RunRequest(image="x", name="one", command=("sleep",)), Stdio())
    parts.lifecycle.pause("one")
    assert parts.state.registry.find("one").status == "paused"
    with pytest.raises(FailedPrecondition):
        parts.lifecycle.pause("one")
    with pytest.raises(FailedPrecondition):
        parts.execs.exec("one", ExecRequest(("true",)), Stdio())
    with pytest.raises(InUse):
        parts.lifecycle.remove("one", force=False)
    parts.lifecycle.resume("one")
    parts.lifecycle.kill("one", "SIGUSR1", "")
    assert parts.lifecycle.wait("one", "", 5).code == 128 + 10  # type: ignore[union-attr]
    for call in (parts.lifecycle.pause, parts.lifecycle.resume, lambda n: parts.lifecycle.kill(n, "KILL", "")):
        with pytest.raises(FailedPrecondition):
            call("one")
    parts.lifecycle.remove("one", force=False)


def test_exec_has_an_exit_of_its_own(world: World, parts: Parts) -> None:
    one = parts.lifecycle.run(RunRequest(image="x", name="one", command=("sleep",), env=("A=1",)), Stdio())
    id = parts.execs.exec("one", ExecRequest(("true",), env=("B=2",), workdir="/tmp"), Stdio())
    assert parts.lifecycle.wait("one", id, 5).code == 0  # type: ignore[union-attr]
    process = world.processes[one.id, id]
    assert process["env"] == ["PATH=/bin", f"HOSTNAME={one.id[:12]}", "A=1", "B=2"]
    assert process["cwd"] == "/tmp"
    assert parts.lifecycle.wait("one", "", 0.05) is None
    with pytest.raises(CommandNotFound):
        parts.execs.exec("one", ExecRequest(("missing",)), Stdio())
    with pytest.raises(NotFound):
        parts.lifecycle.wait("one", "nobody", 0)
    parts.lifecycle.remove("one", force=True)
    clean(world, parts)


def test_force_removes_what_runs(world: World, parts: Parts) -> None:
    parts.lifecycle.run(RunRequest(image="x", name="one", command=("stubborn",)), Stdio())
    parts.lifecycle.remove("one", force=True)
    clean(world, parts)
    parts.lifecycle.run(RunRequest(image="x", name="two", command=("stubborn",), remove=True), Stdio())
    parts.lifecycle.remove("two", force=True)
    clean(world, parts)


def test_a_joined_sandbox_stays_until_its_last_member_goes(world: World, parts: Parts) -> None:
    one = parts.lifecycle.run(RunRequest(image="x", name="one", command=("sleep",)), Stdio())
    two = parts.lifecycle.run(RunRequest(image="x", name="two", command=("sleep",), network="container:one"), Stdio())
    assert two.sandbox_id == one.id
    with pytest.raises(Invalid):
        parts.lifecycle.create(RunRequest(image="x", network="container:one", hostname="h"))
    parts.lifecycle.remove("one", force=True)
    assert list(world.sandboxes) == [one.id]
    parts.lifecycle.remove("two", force=True)
    clean(world, parts)


def test_filters(parts: Parts) -> None:
    parts.lifecycle.run(
        RunRequest(image="busybox", name="web", command=("sleep",), labels={"tier": "a", "x": ""}), Stdio()
    )
    parts.lifecycle.create(RunRequest(image="redis:7", name="cache", labels={"tier": "b"}))

    def names(**filters: list[str]) -> list[str]:
        return [container.name for container in parts.views.list(True, filters)]

    assert [container.name for container in parts.views.list(False, {})] == ["web"]
    assert names() == ["cache", "web"]
    assert names(status=["running"]) == ["web"]
    assert names(label=["tier"]) == ["cache", "web"]
    assert names(label=["tier=b"]) == ["cache"]
    assert names(label=["tier=a", "x"]) == ["web"]
    assert names(name=["ac"]) == ["cache"]
    assert names(name=["^/?web$", "^cach$"]) == ["web"]
    assert names(name=["("]) == []
    assert names(publish=["80"]) == []
    assert names(volume=["data"]) == []
    with pytest.raises(Invalid, match="not PORT"):
        names(publish=["http"])
    assert names(ancestor=["redis"]) == ["cache"]
    assert names(since=["web"]) == ["cache"]
    assert names(network=["none"]) == ["web"]
    with pytest.raises(Invalid, match="no such filter"):
        names(colour=["red"])
    parts.lifecycle.remove("web", force=True)


def test_rename(tmp_path: Path, world: World, parts: Parts) -> None:
    one = parts.lifecycle.run(RunRequest(image="x", name="one", command=("sleep",)), Stdio())
    parts.lifecycle.create(RunRequest(image="x", name="two"))
    for name, wrong in (("two", AlreadyExists), ("one", AlreadyExists), ("/", Invalid)):
        with pytest.raises(wrong):
            parts.changing.rename("one", name)
    assert parts.changing.rename("one", "new").name == "new"
    assert parts.state.registry.find("new").id == one.id
    with pytest.raises(NotFound):
        parts.state.registry.find("one")
    (told,) = [event for event in _events(parts) if event.topic == "container.renamed"]
    assert (told.attributes["name"], told.attributes["old_name"]) == ("new", "one")
    parts.lifecycle.create(RunRequest(image="x", name="one"))
    crash(parts)
    again = engine(tmp_path, world)
    assert again.state.registry.find("new").id == one.id
    assert again.state.request_of(again.state.registry.find("new")).name == "new"
    again.close()


def test_a_rename_that_is_not_stored_is_none(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.lifecycle.create(RunRequest(image="x", name="one"))
    with monkeypatch.context() as patch:
        patch.setattr(parts.state.database, "transaction", _full)
        with pytest.raises(OSError, match="no space"):
            parts.changing.rename("one", "new")
    assert parts.state.registry.find("one").view().name == "one"
    assert parts.changing.rename("one", "new").name == "new"


def test_update(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = parts.lifecycle.run(RunRequest(image="x", name="one", command=("sleep",), memory=64 << 20), Stdio())
    idle = parts.lifecycle.create(RunRequest(image="x", name="idle"))
    parts.changing.update("one", memory=128 << 20, pids_limit=7)
    assert world.limits == {one.id: {"memory": {"limit": 128 << 20, "swap": 256 << 20}, "pids": {"limit": 7}}}
    parts.changing.update("one", memory=0)
    assert world.limits[one.id] == {"memory": {"limit": -1, "swap": -1}}
    parts.changing.update("one", memory_reservation=32 << 20)
    assert world.limits[one.id] == {"memory": {"limit": -1, "swap": -1, "reservation": 32 << 20}}
    parts.changing.update("one", memory_reservation=0)
    assert world.limits[one.id] == {"memory": {"limit": -1, "swap": -1, "reservation": -1}}
    parts.changing.update("idle", cpus=0.5)
    assert idle.id not in world.limits
    assert parts.views.inspect("idle")["HostConfig"]["NanoCpus"] == 500_000_000
    for wrong in ({}, {"memory": 1}, {"cpuset": "x"}, {"pids_limit": -2}):
        with pytest.raises(Invalid):
            parts.changing.update("one", **wrong)
    world.limits.clear()
    with monkeypatch.context() as patch:
        patch.setattr(parts.state.database, "transaction", _full)
        with pytest.raises(OSError, match="no space"):
            parts.changing.update("one", pids_limit=9)
    assert world.limits == {one.id: {"pids": {"limit": 7}}}
    assert parts.views.inspect("one")["HostConfig"]["PidsLimit"] == 7


def _full(*_args: object, **_options: object) -> None:
    raise OSError(errno.ENOSPC, "no space")


def _events(parts: Parts) -> list[Event]:
    return list(parts.state.bus.follow(parts.state.database, 0, follow=False))


def test_inspect_tells_who_set_what(parts: Parts) -> None:
    parts.lifecycle.run(
        RunRequest(
            image="x", name="one", command=("sleep",), read_only=True, options={"stamp": "s"}, env=("A=\udc80",)
        ),
        Stdio(),
    )
    data = parts.views.inspect("one")
    assert data["State"]["Running"] is True
    assert data["spec"]["root"]["readonly"] is True
    owners = data["owners"]
    assert owners[""] == "defaults"
    assert owners["/root/readonly"] == "request"
    assert owners["/process/args"] == "request"
    assert owners["/process/env/0"] == "image"
    assert owners["/annotations/stamp"] == "adjust.stamp"
    assert data["Config"]["Env"][-1] == "A=\udc80"
    parts.lifecycle.remove("one", force=True)


def test_many_at_once(world: World, parts: Parts) -> None:
    errors: list[BaseException] = []

    def one() -> None:
        try:
            for _ in range(10):
                container = parts.lifecycle.run(RunRequest(image="x", remove=True), Stdio())
                assert parts.lifecycle.wait(container.id, "", 10).code == 0  # type: ignore[union-attr]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    clean(world, parts)
    assert world.acked == 80


# a new engine


def test_restart_finds_what_runs_and_how_the_rest_ended(tmp_path: Path, world: World) -> None:
    first = engine(tmp_path, world)
    for name in ("stays", "ends", "lost", "gone"):
        first.lifecycle.run(RunRequest(image="x", name=name, command=("sleep",), remove=name == "gone"), Stdio())
    ids = {name: first.state.registry.find(name).id for name in ("stays", "ends", "lost", "gone")}
    exec_id = first.execs.exec("stays", ExecRequest(("sleep",)), Stdio())
    crash(first)
    world.exit(ids["ends"], 7)
    world.exit(ids["gone"], 0)
    del world.tasks[ids["lost"], ""]
    second = engine(tmp_path, world)
    assert second.state.registry.find("stays").status == "running"
    assert second.lifecycle.wait("ends", "", 5).code == 7  # type: ignore[union-attr]
    lost = second.lifecycle.wait("lost", "", 5)
    assert lost is not None
    assert lost.code is None
    with pytest.raises(NotFound):
        second.state.registry.find("gone")
    world.exit(ids["stays"], 3, exec_id)
    assert second.lifecycle.wait("stays", exec_id, 5).code == 3  # type: ignore[union-attr]
    second.execs.exec("stays", ExecRequest(("true",)), Stdio())
    world.exit(ids["stays"], 4)
    assert second.lifecycle.wait("stays", "", 5).code == 4  # type: ignore[union-attr]
    assert topics(second).count("task.exited") == 4
    for name in ("stays", "ends", "lost"):
        second.lifecycle.remove(name, force=True)
    clean(world, second)
    second.close()


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_in_the_middle_of_a_run_leaves_nothing(
    tmp_path: Path, world: World, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    first = engine(tmp_path, world)
    world.fail[step] = Crash()  # type: ignore[assignment]
    monkeypatch.setattr(Undo, "run", lambda self: [])  # a dead engine takes nothing back
    with pytest.raises(Crash):
        first.lifecycle.run(RunRequest(image="x", name="one", command=("sleep",)), Stdio())
    monkeypatch.undo()
    crash(first)
    world.fail.clear()
    second = engine(tmp_path, world)
    assert len(second.state.registry) == 0
    clean(world, second)
    assert second.system.doctor(repair=False) == ()
    second.close()


def test_another_boot_voids_what_ran(tmp_path: Path, world: World) -> None:
    first = engine(tmp_path, world)
    first.lifecycle.run(RunRequest(image="x", name="kept", command=("sleep",)), Stdio())
    first.lifecycle.run(RunRequest(image="x", name="own", command=("sleep",), remove=True), Stdio())
    first.state.database.set("boot", "another")
    crash(first)
    world.tasks.clear()
    world.sandboxes.clear()
    world.cgroups.clear()
    second = engine(tmp_path, world)
    kept = second.state.registry.find("kept")
    assert (kept.status, kept.exit_code) == ("stopped", None)
    with pytest.raises(NotFound):
        second.state.registry.find("own")
    second.lifecycle.remove("kept", force=False)
    clean(world, second)
    second.close()


def test_doctor_repairs_and_converges(world: World, parts: Parts) -> None:
    from wherry.api import Sandbox, TaskState

    stray = "f" * 64
    world.tasks[stray, ""] = TaskState(stray, "", "running", 9, 9, stray)
    world.sandboxes[stray] = Sandbox(stray)
    world.snapshots[stray] = CHAIN
    world.cgroups.add((stray, ""))
    (parts.state.bundles / stray).mkdir()
    (parts.state.run / "network" / "none" / stray).write_text("{}")
    found = parts.system.doctor(repair=False)
    assert len(found) >= 4
    assert {finding.repair for finding in found} == {""}
    assert stray in world.sandboxes
    repaired = parts.system.doctor(repair=True)
    assert all(finding.repair for finding in repaired)
    clean(world, parts)
    assert parts.system.doctor(repair=True) == ()
