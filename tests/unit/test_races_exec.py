"""An exec whose end is dealt with before its start has been: each interleaving forced, with a twin that lacks the one step."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.api import Event, Plan, Stdio
from wherry.engine.records import Exec, Gate
from wherry.engine.shim import ShimClient


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
    exec = Exec("x", Gate())
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
