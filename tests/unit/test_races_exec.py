"""An exec whose end is dealt with before its start has been: each interleaving forced, with a twin that lacks the one step."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.api import Event, Plan, Stdio
from wherry.engine.containers.records import Exec, ExitEvent
from wherry.engine.shim.client import ShimClient
from wherry.shim import replace, server
from wherry.shim.server import Shim
from wherry.shim.task import Task
from wherry.shim.tasks import Tasks


class Overtaken(ShimClient):
    """Its spawn is answered, and before this thread has the answer another one has heard of the end and forgotten the process."""

    def __init__(self) -> None:
        self._encoded = None
        self._fates = threading.Lock()
        self._spawning = {}
        self._pidfds = {}
        self.fd = os.open("/dev/null", os.O_RDONLY)

    def _exchange(self, op: str, fds: Sequence[int], fields: Mapping[str, Any]) -> tuple[Any, list[int], Any]:
        self._unremember(fields["container"], fields["exec_id"])
        state = {
            "id": "c",
            "exec_id": "x",
            "status": "running",
            "pid": 1,
            "start_time": 1,
            "sandbox_id": "",
            "user": "",
        }
        return {**state, "exit": None}, [self.fd], None

    def _hand_over_late(self, link: Any, state: dict[str, Any], fd: int) -> None:
        pass


def open_after_spawn(client: Overtaken) -> bool:
    client.spawn("c", "x", Plan(target="c", start=True), Stdio())
    assert bool(client._pidfds) == os.path.exists(f"/proc/self/fd/{client.fd}")
    assert not client._spawning
    return bool(client._pidfds)


def test_what_was_forgotten_before_its_answer_is_not_remembered() -> None:
    assert not open_after_spawn(Overtaken())


def test_what_was_forgotten_before_its_answer_is_not_remembered_twin() -> None:
    class Unmarked(Overtaken):
        def _unremember(self, id: str, exec_id: str) -> None:
            if (known := self._pidfds.pop((id, exec_id), None)) is not None:
                os.close(known[1])

    client = Unmarked()
    assert open_after_spawn(client)
    os.close(client.fd)


def told(*, first: bool) -> list[str]:
    """The end comes while the start waits to be told. first: whether whoever tells the end tells the start before."""
    exec = Exec("x", ExitEvent())
    exec.untold.append(Event("exec.started", "c", 1))
    topics: list[str] = []

    def publish(event: Event) -> None:
        topics.append(event.topic)

    if first:
        exec.tell(publish)
    publish(Event("exec.exited", "c", 2))
    exec.tell(publish)  # the thread that was to tell the start
    return topics


def test_the_end_is_told_after_the_start() -> None:
    assert told(first=True) == ["exec.started", "exec.exited"]


def test_the_end_is_told_after_the_start_twin() -> None:
    assert told(first=False) == ["exec.exited", "exec.started"]


def a_version_that_waits_for_a_stopped_exec(monkeypatch: pytest.MonkeyPatch, *, late: bool) -> tuple[int, list[str]]:
    """A container has stopped what was being born in it when the shim is to become the next version: (how often that begins within ten
    looks, what the exec's caller is told). late: whether patience is over by then."""
    begun: list[str] = []
    told: list[str] = []
    again: list[Any] = []
    monkeypatch.setattr(replace, "replace", lambda *_args: begun.append("it"))
    monkeypatch.setattr(server.time, "monotonic", lambda: 100.0)
    around: Any = SimpleNamespace(
        replacing=(SimpleNamespace(), {}),
        patience=99.0 if late else 101.0,
        supervisor=SimpleNamespace(busy=lambda: False),
        loop=SimpleNamespace(later=lambda _seconds, call: again.append(call), remove=lambda _fd: None),
        keeper=SimpleNamespace(streams={}),
    )
    tasks = around.tasks = Tasks(around)
    around._give_up, around._replace = (lambda: Shim._give_up(around)), (lambda: Shim._replace(around))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        task = Task("c", "x", "")
        task.channel, task.direct = ours, True
        task.waiting = (SimpleNamespace(fail=lambda error: told.append(error["class"])),)  # type: ignore[assignment]
        tasks.add(task)
        around._replace()
        for _look in range(9):
            if again:
                again.pop()()
    return len(begun), told


def test_a_stopped_exec_does_not_keep_the_next_version_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_version_that_waits_for_a_stopped_exec(monkeypatch, late=False) == (0, [])
    assert a_version_that_waits_for_a_stopped_exec(monkeypatch, late=True) == (1, ["Unavailable"])


def test_a_stopped_exec_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shim, "_give_up", lambda _self: None)
    assert a_version_that_waits_for_a_stopped_exec(monkeypatch, late=True) == (0, [])
