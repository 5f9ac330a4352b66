"""Children, ends and requests of the shim in the worst order; each with a twin that lacks the one step."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.api import Plan, Stdio
from wherry.engine.shim import connection as links
from wherry.engine.shim.client import ShimClient
from wherry.engine.shim.connection import ShimConnection
from wherry.linux import framing
from wherry.linux.loop import Loop
from wherry.shim import engine_supervisor, server
from wherry.shim import replace as replacing
from wherry.shim import tasks as module
from wherry.shim.server import Shim
from wherry.shim.streams import TaskStreams
from wherry.shim.task import Task
from wherry.shim.tasks import Tasks

BOUND = 30.0


class Said:
    """A request's answer."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[Any] = []

    def ok(self, value: Any, _fds: Any = ()) -> None:
        self.answers.append(value)

    def fail(self, error: Any) -> None:
        self.errors.append(error)


def shim() -> Any:
    """What Tasks needs of one, recording the events that it tells."""
    told: list[str] = []
    made = SimpleNamespace(
        told=told,
        loop=SimpleNamespace(remove=lambda _fd: None, add=lambda *_args: None),
        reaper=SimpleNamespace(expected=[], expect=lambda pid, *_args, **_kwargs: made.reaper.expected.append(pid)),
        events=SimpleNamespace(
            publish=lambda _topic, id, attributes, _time: told.append(f"{id}/{attributes['exec_id']}")
        ),
        ledger=SimpleNamespace(note=lambda **_line: None),
        keeper=SimpleNamespace(streams={}),
        note_task=lambda _task: None,
    )
    return made


# ends


def ends_of_a_container_and_its_exec() -> list[str]:
    """The container's output has arrived, that of its exec is held up."""
    around = shim()
    tasks = Tasks(around)
    container, exec = Task("c", "", ""), Task("c", "x", "")
    for task in (container, exec):
        task.status, task.code = "stopped", 137
        tasks.add(task)
    exec.held = SimpleNamespace(cancel=lambda: None)  # type: ignore[assignment]
    tasks._publish(container, drained=True)
    tasks._late(exec)
    told: list[str] = around.told
    return told


def test_the_ends_of_execs_come_before_that_of_their_container() -> None:
    assert ends_of_a_container_and_its_exec() == ["c/x", "c/"]


def test_twin_ends_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "any", lambda _found: False, raising=False)
    assert ends_of_a_container_and_its_exec() == ["c/", "c/x"]


# children


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        yield made
    finally:
        made.kill()
        made.wait(BOUND)


def ends_of_one_whose_end_was_said_too() -> list[str]:
    """An exec's process has been collected, and what the process that had it spawned said of that end is still unread."""
    around = shim()
    around.reaper.unexpect = lambda _pid: None
    around.reserve = SimpleNamespace(used=lambda: None)
    tasks, task = Tasks(around), Task("c", "x", "")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        task.channel, task.status, task.direct, task.pid = ours, "running", True, 1 << 30
        tasks.add(task)
        theirs.send(json.dumps({"ended": 7}).encode())
        tasks.ended(task, 7)
    assert (task.status, task.code) == ("stopped", 7)
    told: list[str] = around.told
    return told


def test_an_end_that_is_said_and_seen_is_told_once() -> None:
    assert ends_of_one_whose_end_was_said_too() == ["c/x"]


def test_twin_an_end_that_is_said_and_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tasks._packet

    def unnoticed(self: Tasks, task: Task) -> None:
        real(self, task)
        task.status = "running"

    monkeypatch.setattr(Tasks, "_packet", unnoticed)
    assert ends_of_one_whose_end_was_said_too() == ["c/x", "c/x"]


def a_child_that_cannot_be_looked_at(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Its pidfd was lost on the way, and by the time that is seen it has said that it is ready."""

    def no_more(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(module.pidfd, "open", no_more)
    monkeypatch.setattr(module, "report", lambda: None)
    around, reply = shim(), Said()
    tasks = Tasks(around)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    task = Task("c", "", "")
    task.channel, task.waiting = ours, (reply,)  # type: ignore[assignment]
    tasks.add(task)
    try:
        for message in ({"pid": child.pid}, {"created": {"user": ""}}):
            theirs.send(json.dumps(message).encode())
        for _ in range(2):
            tasks._packet(task)
        assert child.wait(BOUND) == -signal.SIGKILL
        if around.reaper.expected == [child.pid]:
            tasks.ended(task, 137)
    finally:
        theirs.close()
        ours.close()
    return reply


def scores_given_back(monkeypatch: pytest.MonkeyPatch, *, protected: bool) -> list[int]:
    """The pids whose score of the OOM killer was reset, when a child's pid comes by a packet: it was born of another one."""
    given: list[int] = []
    monkeypatch.setattr(module, "reset_oom", given.append)
    monkeypatch.setattr(module.pidfd, "open", lambda _pid: -1)
    tasks, task = Tasks(shim()), Task("c", "", "")
    task.protected = protected
    tasks._said(task, {"pid": os.getpid()}, array.array("i"))
    return given


def test_a_child_of_an_intermediate_is_not_spared_by_the_oom_killer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scores_given_back(monkeypatch, protected=True) == [os.getpid()]


def test_twin_a_child_whose_plan_says_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scores_given_back(monkeypatch, protected=False) == []


def test_a_child_that_is_to_go_is_not_told_as_created(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = a_child_that_cannot_be_looked_at(child, monkeypatch)
    assert said.answers == []
    assert [error["errno"] for error in said.errors] == [errno.EMFILE]


def test_twin_a_child_whose_last_word_counts(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Tasks.failed

    def failing(tasks: Tasks, task: Task, record: dict[str, Any]) -> None:
        failed(tasks, task, record)
        task.error = None

    monkeypatch.setattr(Tasks, "failed", failing)
    assert a_child_that_cannot_be_looked_at(child, monkeypatch).answers != []


# tokens


def tokens_of_two_shims() -> set[str]:
    """A container's streams are attached to by a client of each; the second shim has followed the first, which was lost."""
    streams = TaskStreams("c/", 0, False, False, "")
    task = SimpleNamespace(streams=streams, name="c")
    found = set()
    for _ in range(2):
        reply = Said()
        around: Any = SimpleNamespace(
            _with_streams=lambda _message: task,
            keeper=SimpleNamespace(attach=lambda streams, token, part: streams.attached.setdefault(token, part)),
        )
        Shim._attach(around, reply, {"stdio": {}}, [])  # type: ignore[arg-type]
        found.add(reply.answers[0])
    assert set(streams.attached) == {f"a{token}" for token in found}
    return found


def test_tokens_do_not_begin_again_with_the_next_shim() -> None:
    assert len(tokens_of_two_shims()) == 2


def test_twin_tokens_that_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.os, "urandom", bytes)
    assert len(tokens_of_two_shims()) == 1


def test_a_token_of_the_callers_own() -> None:
    streams = TaskStreams("c/", 0, False, False, "")
    streams.attached = {"s1": {}, "hmine": {}, "": {}}
    assert [streams.token(name) for name in ("1", "mine", "", "other")] == ["s1", "hmine", "", None]
    around: Any = SimpleNamespace(_with_streams=lambda _message: SimpleNamespace(streams=streams, name="c"))
    with pytest.raises(Exception, match="AlreadyExists"):
        Shim._attach(around, Said(), {"stdio": {"token": "mine"}}, [])  # type: ignore[arg-type]


# the engine's side


def handed_over_twice(monkeypatch: pytest.MonkeyPatch, *, early: bool) -> list[str]:
    """What a new shim is asked when the first hand-over breaks off in the middle."""
    asked: list[str] = []
    client = ShimClient.__new__(ShimClient)
    client._root, client._instance, client._pidfds, client._boxes = None, "lost", {}, {}

    def call(op: str, _fields: Any, _fds: Any) -> Any:
        asked.append(op)
        if early and op == "recover":
            client._instance = "new"
        if asked.count("recover") == 1 and op == "recover":
            raise ConnectionResetError
        if op == "hello":
            return {"ok": {"version": "0", "pid": 1, "start_time": 1, "instance": "new"}}, []
        return {"ok": {"tasks": [], "next": None} if op == "pidfds" else []}, []

    link: Any = SimpleNamespace(call=call)
    with pytest.raises(ConnectionResetError):
        client._greet(link)
    client._greet(link)
    return asked


def test_a_hand_over_counts_once_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handed_over_twice(monkeypatch, early=False) == [
        "hello",
        "recover",
        "hello",
        "recover",
        "pidfds",
        "sandboxes",
    ]


def test_twin_a_hand_over_that_counts_as_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handed_over_twice(monkeypatch, early=True) == ["hello", "recover", "hello"]


def spawned_by_a_lost_shim() -> list[Any]:
    """What its successor is told, which had taken over before the answer to a spawn was read."""
    told: list[Any] = []
    client = ShimClient.__new__(ShimClient)
    client._guard, client._pidfds, client._root, client._encoded = threading.Lock(), {}, None, None
    lost: Any = SimpleNamespace(instance="lost")
    now: Any = SimpleNamespace(
        instance="new", call=lambda op, fields, fds: told.append((op, fields["tasks"], len(fds)))
    )
    state = {
        "id": "c", "exec_id": "", "status": "created", "pid": 1, "start_time": 1, "sandbox_id": "", "exit": None, "user": "",
    }  # fmt: skip

    def exchange(_op: str, _fds: Any, _fields: Any) -> Any:
        client._link = now
        return state, [os.open("/dev/null", os.O_RDONLY)], lost

    client._exchange = exchange  # type: ignore[method-assign]
    client.spawn("c", "", Plan(), Stdio())
    for _state, fd in client._pidfds.values():
        os.close(fd)
    return [(op, [task["id"] for task in tasks], count) for op, tasks, count in told]


def test_a_spawn_that_a_lost_shim_answered_is_handed_over() -> None:
    assert spawned_by_a_lost_shim() == [("recover", ["c"], 1)]


def test_twin_a_spawn_that_the_snapshot_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShimClient, "_hand_over_late", lambda *_arguments: None)
    assert spawned_by_a_lost_shim() == []


def in_flight_beside_a_bad_descriptor() -> Any:
    """The answer to a request, while which another one was made with a descriptor that is none."""
    near, far = socket.socketpair()
    far.settimeout(BOUND)
    link = ShimConnection(near)
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(link.call("first", {}, ())[0]["ok"])
        except OSError as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    try:
        asking.start()
        frame = framing.Reader(far).next()
        assert frame is not None
        with pytest.raises(OSError, match="Bad file descriptor|the connection was lost"):
            link.call("second", {}, (1 << 20,))
        try:
            framing.send(far, {"id": frame[0]["id"], "ok": "answered"})
        except BrokenPipeError:
            pass
        asking.join(BOUND)
        return found[0]
    finally:
        link.close()
        far.close()


def test_a_bad_descriptor_is_its_own_requests_fault() -> None:
    assert in_flight_beside_a_bad_descriptor() == "answered"


def test_twin_a_bad_descriptor_taken_for_a_lost_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_OWN_FAULT", frozenset())
    assert isinstance(in_flight_beside_a_bad_descriptor(), ConnectionResetError)


# another's engine


def restarted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A restart, while an engine that a lost shim had started ends by itself just before it is told to; what was done about it."""
    gone = subprocess.Popen(["/bin/true"])
    handle = os.pidfd_open(gone.pid)
    gone.wait(BOUND)
    done: list[str] = []
    loop = Loop()
    options = SimpleNamespace(python="python", config="", run="/nowhere")
    made = engine_supervisor.EngineSupervisor(options, loop, SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_other", lambda: gone.pid)
    monkeypatch.setattr(made, "_start", lambda: done.append("started"))
    monkeypatch.setattr(engine_supervisor.pidfd, "open", lambda _pid: handle)
    try:
        with contextlib.suppress(ProcessLookupError):
            made.engine(Said(), restart=True)  # type: ignore[arg-type]
            loop.turn()
        if not done:
            made.engine(Said(), restart=True)  # type: ignore[arg-type]  # whoever asks again
    finally:
        if not done:  # else it has been closed
            os.close(handle)
        loop.close()
    return done


def test_an_engine_that_ends_before_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert restarted(monkeypatch)[:1] == ["started"]


def test_twin_an_engine_that_ends_before_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The restart never comes to its end, nor does any later one."""
    monkeypatch.setattr(engine_supervisor, "signal_if_there", engine_supervisor.pidfd.send_signal)
    assert restarted(monkeypatch) == []


# a successor that can't be


def after_a_failed_exec(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, int]:
    """Version and interpreter that a shim says it is of, and the errors it told, once it could not become another one."""

    def execute() -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), options.exe)

    options = SimpleNamespace(core="/a", version="1", exe="/a/python", listener=-1, state=-1, execute=execute)
    around = SimpleNamespace(
        options=options, clients=(), keeper=SimpleNamespace(channel=None), listener=SimpleNamespace(fileno=lambda: -1)
    )
    monkeypatch.setattr(replacing, "collect", lambda _shim, _reply: {})
    monkeypatch.setattr(replacing, "numbers", lambda _state: [])
    reply = Said()
    replacing.replace(around, reply, {"version": "2", "exe": "/gone/python"})  # type: ignore[arg-type]
    return options.version, options.exe, len(reply.errors)


def test_a_shim_that_stays_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert after_a_failed_exec(monkeypatch) == ("1", "/a/python", 1)


def test_twin_a_shim_that_stays_says_what_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    real = replacing._choose
    once = iter([real])
    monkeypatch.setattr(replacing, "_choose", lambda options, values: next(once, lambda *_args: None)(options, values))
    assert after_a_failed_exec(monkeypatch) == ("2", "/gone/python", 1)


# what is not held


def let_go(at: str) -> list[str]:
    """What happens, in order, when the child of a plan that is not held is ready: it is noted in the ledger, then it hears of it."""
    order: list[str] = []
    around = shim()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)

        def note(task: Task) -> None:
            with contextlib.suppress(BlockingIOError):
                order.append(theirs.recv(16).decode())
            order.append(f"noted as {task.status}")

        around.note_task = note
        tasks = Tasks(around)
        task = Task("c", "", "")
        task.channel, task.direct = ours, True
        tasks.add(task)
        tasks._said(task, {at: {"user": "0:0"}}, array.array("i"))
        with contextlib.suppress(BlockingIOError):
            order.append(theirs.recv(16).decode())
        task.channel = None
    return order


def test_a_successor_knows_of_a_child_before_it_runs() -> None:
    assert let_go("created") == ["noted as created", "s"]


def test_twin_it_runs_before_anybody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tasks._note

    def late(self: Tasks, task: Task) -> None:
        if not task.starting:
            self._let_go(task)
        real(self, task)

    monkeypatch.setattr(Tasks, "_note", late)
    assert let_go("created") != ["noted as created", "s"]


def failed_start(*, direct: bool) -> tuple[list[str], list[Any], bool]:
    """(ends told, errors answered, whether its id is free) of a child whose execve failed."""
    around = shim()
    tasks = Tasks(around)
    task, reply = Task("c", "", ""), Said()
    task.status, task.pid, task.direct, task.starting = "created", 1 << 30, direct, True
    task.waiting = (reply,)  # type: ignore[assignment]
    tasks.add(task)
    tasks.failed(task, {"class": "CommandNotFound"})  # there is no such pid: it has ended
    return around.told, reply.errors, tasks.find("c", "") is None


def test_what_is_not_held_starts_or_never_was() -> None:
    assert failed_start(direct=True) == ([], [{"class": "CommandNotFound"}], True)


def test_twin_what_is_held_tells_its_end() -> None:
    assert failed_start(direct=False) == (["c/"], [{"class": "CommandNotFound"}], False)
