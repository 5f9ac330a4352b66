"""The first process of a shared pid namespace: what somebody who may look into others finds in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from wherry.oci.sandbox import make_sandbox
from wherry.shim import sandboxes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MAP = {"uids": ((0, 100000, 65536),), "gids": ((0, 100000, 65536),)}


@contextmanager
def pause(fds: Mapping[str, int]) -> Iterator[Path]:
    """Its directory in /proc."""
    pid, handle = sandboxes.make_pause(fds)
    try:
        yield Path(f"/proc/{pid}")
    finally:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
        os.waitpid(pid, 0)


@pytest.fixture(params=[{}, MAP], ids=["root", "userns"])
def fds(request: pytest.FixtureRequest) -> Iterator[dict[str, int]]:
    made = make_sandbox({"netns": "", "ipc": True, "uts": True, "idmap": request.param})
    yield made
    for fd in made.values():
        os.close(fd)


def rights(where: Path) -> set[int]:
    lines = (line.split() for line in (where / "status").read_text().splitlines())
    return {int(line[1], 16) for line in lines if line[0] in ("CapPrm:", "CapEff:", "CapBnd:", "CapInh:")}


def test_it_has_nothing_of_the_host_and_no_rights(fds: dict[str, int]) -> None:
    with pause(fds) as where:
        assert os.listdir(where / "root") == os.listdir(where / "cwd") == []
        assert len((where / "mountinfo").read_text().splitlines()) == 1
        assert rights(where) == {0}
        assert os.listdir(where / "fd") == []


def test_it_has_nothing_of_the_host_and_no_rights_twin(fds: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "_let_go", lambda: None)
    with pause(fds) as where:
        assert "etc" in os.listdir(where / "root")
        assert rights(where) != {0}


def test_it_is_in_the_sandbox(fds: dict[str, int]) -> None:
    """A shim that follows a lost one has the namespaces from it: they must not be the host's."""
    with pause(fds) as where:
        assert {type: os.stat(where / "ns" / type).st_ino for type in fds} == {
            type: os.fstat(fd).st_ino for type, fd in fds.items()
        }


def test_it_is_in_the_sandbox_twin(fds: dict[str, int]) -> None:
    with pause({type: fd for type, fd in fds.items() if type == "user"}) as where:
        assert os.stat(where / "ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
