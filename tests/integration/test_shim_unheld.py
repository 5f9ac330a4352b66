"""Plans that are not held: created and started by one request, or nothing of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shims import Shimmed, read_all, shimmed
from wherry.api import CommandNotExecutable, CommandNotFound, Error, Sandbox, Stdio


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as it:
        yield it


def test_it_runs_when_spawn_returns(made: Shimmed) -> None:
    reader, writer = os.pipe()
    state = made.container("c", "echo out; exit 3", Stdio(stdout=writer), start=True)
    os.close(writer)
    assert (state.status, state.exit, state.pid > 0) == ("running", None, True)
    assert read_all(reader) == b"out\n"
    os.close(reader)
    event = made.exit("c")
    assert (event.attributes["code"], event.attributes["pid"]) == ("3", str(state.pid))
    made.client.forget("c", "")


def test_many_short_ones_answer_as_running(made: Shimmed) -> None:
    for number in range(30):
        assert made.container(f"c{number}", "", argv=("/bin/true",), start=True).status == "running"
    for number in range(30):
        assert made.exit(f"c{number}").attributes["code"] == "0"
        made.client.forget(f"c{number}", "")


def test_a_repeat_answers_what_the_first_did(made: Shimmed) -> None:
    first = made.container("c", "exec sleep 1000", start=True)
    assert made.container("c", "exit 1", start=True) == first
    made.end("c")


@pytest.mark.parametrize(("command", "error"), [("/nowhere", CommandNotFound), ("/etc/passwd", CommandNotExecutable)])
def test_one_that_can_not_run_was_never_there(made: Shimmed, command: str, error: type[Error]) -> None:
    with pytest.raises(error):
        made.container("c", "", argv=(command,), start=True)
    assert list(made.client.list()) == []
    made.container("c", "exit 7", start=True)
    assert made.exit("c").attributes["code"] == "7", "the one before it told of no end"
    made.client.forget("c", "")


def test_hooks_hold_it_all_the_same(made: Shimmed) -> None:
    hooks = {"createRuntime": [{"path": "/bin/true"}]}
    assert made.container("c", "exec sleep 1000", hooks=hooks, start=True).status == "created"
    made.client.start("c", "")
    made.end("c")


def test_the_spare_process_takes_one(made: Shimmed) -> None:
    made.client.create_sandbox(Sandbox("s"))
    for number in range(6):
        state = made.container(f"c{number}", "", argv=("/bin/sleep", "1000"), sandbox="s", start=True)
        assert Path(f"/proc/{state.pid}/comm").read_text() == "sleep\n"
    for number in range(6):
        made.end(f"c{number}")
    made.client.remove_sandbox("s")
