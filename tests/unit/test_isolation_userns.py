"""What isolation/userns does otherwise than isolation/namespaces, without a user namespace around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.api import FailedPrecondition
from wherry.linux import cgroup, pidfd
from wherry_plugins.isolation.userns import UsernsConfig
from wherry_plugins.isolation.userns.driver import UsernsDriver
from wherry_plugins.isolation.userns.processes import ProcessGroup

UNIFIED = cgroup.Layout({}, "/sys/fs/cgroup/one.scope", ("memory", "pids"))
SPEC: dict[str, Any] = {"linux": {"cgroupsPath": "/wherry-1/abc"}}


def driver(directory: Path, monkeypatch: pytest.MonkeyPatch, layout: cgroup.Layout) -> UsernsDriver:
    monkeypatch.setattr(cgroup, "detect", lambda: layout)
    for name in ("root", "run"):
        (directory / name).mkdir(exist_ok=True)
    shim = SimpleNamespace(list=lambda id="": iter(()))
    return UsernsDriver(UsernsConfig(), SimpleNamespace(root=directory / "root", run=directory / "run", shim=shim))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_a_group_is_where_it_was_whatever_the_new_shim_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = driver(tmp_path, monkeypatch, UNIFIED)
    before = made.group("abc", SPEC, fresh=True).directories
    made._group_note("abc").write_text(before[0])
    again = driver(tmp_path, monkeypatch, cgroup.Layout({}, "/sys/fs/cgroup/two.scope", ("memory", "pids")))
    assert again.group("abc", SPEC, fresh=False).directories == before == ("/sys/fs/cgroup/one.scope/wherry-1/abc",)
    again._group_note("abc").unlink()  # the twin: without the note it would be looked for in the new one
    assert again.group("abc", SPEC, fresh=False).directories == ("/sys/fs/cgroup/two.scope/wherry-1/abc",)


def test_ping_is_for_the_groups_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = driver(tmp_path, monkeypatch, UNIFIED)
    name = "net.ipv4.ping_group_range"
    for rows, last in (([(0, 1000, 1)], 0), ([(0, 1000, 1), (1, 5000, 100)], 100), ([(0, 1000, 1), (50, 5000, 9)], 0)):
        made._gids = rows
        fitted = made.with_defaults({"linux": {"sysctl": {name: "0 2147483647", "a": "b"}}})
        assert fitted["linux"]["sysctl"] == {name: f"0 {last}", "a": "b"}
    own = {"linux": {"sysctl": {name: "5 6"}}}
    assert made.with_defaults(own) == own


def test_a_score_that_only_root_may_give_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = driver(tmp_path, monkeypatch, UNIFIED)
    made._score = 100
    assert made.with_defaults({"process": {"oomScoreAdj": 99}})["process"]["oomScoreAdj"] is None
    assert made.with_defaults({"process": {"oomScoreAdj": 100}})["process"]["oomScoreAdj"] == 100


@pytest.mark.parametrize("key", ["memory", "cpu", "pids", "blockIO", "hugepageLimits", "unified"])
def test_no_limit_is_forgotten_without_a_word(tmp_path: Path, key: str) -> None:
    group = ProcessGroup("abc", tmp_path / "note", fresh=True)
    group.create({})
    with pytest.raises(FailedPrecondition, match="no control groups"):
        group.create({key: {"limit": 1}})
    with pytest.raises(FailedPrecondition):
        group.freeze(True)


def test_the_first_process_is_found_again_and_no_other(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    note = tmp_path / "note"
    group = ProcessGroup("abc", note, fresh=True)
    assert group.delete()
    group.follow(process.pid)
    again = ProcessGroup("abc", note, fresh=False)
    assert again.pids() == (process.pid,)
    assert again.stats()["pids.current"] == 1
    assert not again.delete()
    note.write_text(f"{process.pid} {pidfd.start_time(process.pid) + 1}\n")  # the number was used again
    other = ProcessGroup("abc", note, fresh=False)
    assert not other.known
    other.kill(signal.SIGKILL)
    assert process.poll() is None
    again.kill(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert again.delete()
    assert not note.exists()


def test_a_process_that_ended_is_not_followed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    child.wait(60)
    group = ProcessGroup("abc", tmp_path / "note", fresh=True)
    group.follow(child.pid)
    assert not group.known
    assert not os.path.exists(tmp_path / "note")
