"""What the shim weighs, and that a logger without work costs nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.shims import Shimmed, shimmed
from wherry.api import LogSink, Plan, Stdio

LIMIT = 16 << 20


def resident(pid: int) -> int:
    """RSS in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def ticks(pid: int) -> int:
    """CPU time in clock ticks (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def start(made: Shimmed, first: int, count: int, *, logged: bool) -> None:
    plan = Plan(how="spawn", argv=("/bin/sleep", "1000"), env=("PATH=/bin",))
    for number in range(first, first + count):
        log = LogSink("json-file", path=f"{made.run}/{number}.log") if logged else LogSink("none")
        made.client.spawn(f"c{number:060}", "", plan, Stdio(log=log))


@pytest.mark.parametrize("logged", [False, True], ids=["bare", "logged"])
def test_a_thousand_containers_fit_into_sixteen_megabytes(logged: bool) -> None:
    with shimmed() as made:
        start(made, 0, 1000, logged=logged)
        assert resident(made.client.pid) < LIMIT
        logger = made.client._call("hello")[0]["logger"]
        before = ticks(logger)
        time.sleep(1)
        assert ticks(logger) - before <= 1
        for state in made.client.list():
            made.client.signal(state.id, "", 9)
        for number in range(1000):
            made.exit(f"c{number:060}")
            made.client.forget(f"c{number:060}", "")
        after = resident(made.client.pid)
        made._exits.clear()
        start(made, 0, 200, logged=logged)
        for state in list(made.client.list()):
            made.end(state.id)
        assert resident(made.client.pid) <= after + (1 << 20)  # nothing is kept of those that are gone
