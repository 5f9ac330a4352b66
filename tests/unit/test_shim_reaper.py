"""Ends of children that nobody asked for yet: they belong to that child, never to a later one with the same pid."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.linux import pidfd
from wherry.linux.loop import Loop
from wherry.shim import reaper as module
from wherry.shim.reaper import Reaper

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def reaper() -> Iterator[Reaper]:
    loop = Loop()
    before, wakeup = signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)
    made = Reaper(loop)
    yield made
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, before)
    loop.remove(made._reader)
    loop.close()
    os.close(made._reader)
    os.close(made._writer)


def born(code: int | None, pid: int = 0) -> int:
    """A child, with that pid if one is given: it ends with code, or waits to be killed when that is None."""
    if pid:
        try:
            _LAST_PID.write_text(str(pid - 1))
        except OSError as error:
            pytest.skip(f"pids cannot be chosen here: {error}")
    child = os.fork()
    if child == 0:
        if code is not None:
            os._exit(code)
        while True:
            signal.pause()
    return child


def collected(reaper: Reaper, pid: int) -> None:
    """Waits for the end of a child and lets the reaper collect it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    reaper.collect()


def reuse(reaper: Reaper, told: list[int]) -> None:
    """A child ends unasked for, another one gets its pid and is asked for while it lives."""
    first = born(0)
    collected(reaper, first)
    second = born(None, first)
    if second != first:  # somebody was quicker
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
        pytest.skip("the pid was taken meanwhile")
    handle = pidfd.open(second)
    try:
        reaper.expect(second, lambda _subject, code: told.append(code), handle=handle)
        early = list(told)
        os.kill(second, signal.SIGKILL)
        collected(reaper, second)
    finally:
        os.close(handle)
    assert early == []


def test_an_old_end_is_not_a_new_child_s(reaper: Reaper) -> None:
    told: list[int] = []
    reuse(reaper, told)
    assert told == [128 + signal.SIGKILL]


def test_an_old_end_is_not_a_new_child_s_twin(reaper: Reaper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_collected", lambda _handle: True)
    with pytest.raises(AssertionError):
        reuse(reaper, [])


def test_the_end_of_a_child_that_was_collected_before_its_pid_was_known(reaper: Reaper) -> None:
    told: list[int] = []
    pid = born(5)
    handle = pidfd.open(pid)
    collected(reaper, pid)
    reaper.expect(pid, lambda _subject, code: told.append(code), handle=handle)
    os.close(handle)
    assert told == [5]
