"""Programs that a driver has the shim run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shims import Shimmed, eventually, shimmed
from wherry.api import CommandNotExecutable, CommandNotFound, DeadlineExceeded
from wherry.kit import programs as module
from wherry.kit.programs import Programs

DRIVER = "network.test"
OWNER = f"{DRIVER}.program"


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as made:
        yield made


@pytest.fixture
def programs(made: Shimmed) -> Programs:
    return Programs(made.client, DRIVER)


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_it_prints_and_how_it_ends(made: Shimmed, programs: Programs) -> None:
    done = programs.run(sh("cat; echo $WORD >&2; exit 7"), env={"WORD": "well"}, stdin=b"in" * 100_000, seconds=60)
    assert (done.code, done.stdout, done.text) == (7, b"in" * 100_000, "well")
    assert done.command.startswith("/bin/sh -c 'cat;")
    assert programs.run(sh("kill -9 $$"), seconds=60).code == 128 + 9
    assert not list(made.client.list(OWNER)), "it is forgotten"


def test_what_cannot_be_run(made: Shimmed, programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(CommandNotFound):
        programs.run(["/no/such/program"], seconds=60)
    (tmp_path / "text").write_text("no program")
    with pytest.raises(CommandNotExecutable):
        programs.run([str(tmp_path / "text")], seconds=60)
    assert not list(made.client.list(OWNER))


def hang(programs: Programs, tmp_path: Path) -> int:
    """A program that hangs, with a child that has left its session; the child's pid."""
    note = tmp_path / "pid"
    with pytest.raises(DeadlineExceeded, match="did not end within 3 seconds"):
        programs.run(sh(f"setsid sleep 1000 & echo $! > {note}; exec sleep 1000"), seconds=3)
    return int(note.read_text())


def test_the_deadline_ends_all_of_it(made: Shimmed, programs: Programs, tmp_path: Path) -> None:
    assert not alive(hang(programs, tmp_path))
    assert not list(made.client.list(OWNER))


def test_without_the_mark_a_child_would_stay(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "kill_marked", lambda name: None)
    pid = hang(programs, tmp_path)
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def test_what_holds_its_output_is_ended_and_a_daemon_is_not(programs: Programs, tmp_path: Path) -> None:
    holds, daemon = tmp_path / "holds", tmp_path / "daemon"
    done = programs.run(sh(f"sleep 1000 & echo $! > {holds}; echo out"), seconds=60)
    assert (done.code, done.stdout) == (0, b"out\n")
    assert not alive(int(holds.read_text()))
    programs.run(sh(f"setsid sleep 1000 >/dev/null 2>&1 & echo $! > {daemon}"), seconds=60)
    pid = int(daemon.read_text())
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def test_one_that_stays_and_is_ended(made: Shimmed, programs: Programs) -> None:
    task = programs.start("one", sh("sleep 1000"))
    assert task.status == "running"
    found = programs.find("one")
    assert found is not None
    assert found.pid == task.pid
    programs.end("one")
    programs.end("one")
    assert not alive(task.pid)
    assert programs.find("one") is None


def test_sweep_ends_what_nobody_names(made: Shimmed, programs: Programs) -> None:
    for name in ("one", "two"):
        programs.start(name, sh("sleep 1000"))
    made.client.spawn("c", "", module.Plan(how="spawn", argv=sh("exec sleep 1000")), module.Stdio())
    assert Programs(made.client, DRIVER).sweep(lambda: {"two"}) == 1
    assert [task.exec_id for task in made.client.list(OWNER)] == ["two"]
    assert Programs(made.client, DRIVER).sweep() == 1
    assert [task.id for task in made.client.list()] == ["c"]
    made.end("c")


def test_one_that_the_shim_has_lost(made: Shimmed, programs: Programs) -> None:
    task = programs.start("one", sh("sleep 1000"))
    other = Programs(made.client, "network.other")
    other.end("one", task.pid, task.start_time + 1)
    eventually(lambda: not alive(task.pid))  # by its environment, which goes a moment before the process does
    stranger = made.client.spawn("c", "", module.Plan(how="spawn", argv=sh("exec sleep 1000")), module.Stdio())
    other.end("gone", stranger.pid, stranger.start_time + 1)
    assert alive(stranger.pid), "another process has that pid"
    other.end("gone", stranger.pid, stranger.start_time)
    eventually(lambda: not alive(stranger.pid))
    made.exit("c")
    programs.end("one")
