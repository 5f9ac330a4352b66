"""Limits, counters and the freezer of the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst), for root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.engines import Wherry, cgroups
from support.running import until

pytestmark = pytest.mark.timeout(600)  # an emulated processor
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/usr/bin/stat,/usr/bin/mknod"


def group(wherry: Wherry, id: str) -> Path:
    (found,) = [path for path in cgroups(wherry.dirs.run) if path.name == id]
    return found


def test_limits_counters_and_freezer(wherry: Wherry) -> None:
    options = ["--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "20"]
    id = wherry("run", "-d", "--network", "none", *options, IMAGE, "sleep", "600", timeout=300).stdout.strip()
    at = group(wherry, id)
    assert (at / "memory.max").read_text().strip() == str(64 << 20)
    assert (at / "memory.swap.max").read_text().strip() == "0"
    assert (at / "cpu.max").read_text().split() == ["50000", "100000"]
    assert (at / "pids.max").read_text().strip() == "20"
    text = wherry("stats", "--no-stream", "--json", id, timeout=300).stdout
    assert "memory.current" in text
    assert "cpu.usage_usec" in text
    assert "pids.current" in text
    wherry("pause", id, timeout=300)
    assert "frozen 1" in (at / "cgroup.events").read_text()
    wherry("unpause", id, timeout=300)
    assert "frozen 0" in (at / "cgroup.events").read_text()
    for _exec in range(3):  # the first and later ones are born in different ways
        inside = wherry("exec", id, "cat", "/proc/self/cgroup", timeout=300).stdout
        assert inside.strip() == "0::/", "a cgroup namespace of its own"
    wherry("kill", id, timeout=300)
    assert wherry("wait", id, timeout=300).stdout.strip() == "137"
    wherry("rm", id, timeout=300)
    until(lambda: not at.exists(), 60)


def test_out_of_memory_is_told(wherry: Wherry) -> None:
    eat = "x=x; while :; do x=$x$x; done"
    options = ["--name", "eater", "--network", "none", "--memory", "32m", "--memory-swap", "32m"]
    done = wherry("run", *options, IMAGE, "sh", "-c", eat, code=None, timeout=400)
    assert done.returncode == 137, done.stderr
    (seen,) = json.loads(wherry("inspect", "eater", timeout=300).stdout)
    assert '"oom_killed": true' in json.dumps(seen).lower().replace("oomkilled", "oom_killed")


def test_processes_are_limited(wherry: Wherry) -> None:
    script = "i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i+1)); done; echo all"
    done = wherry(
        "run", "--rm", "--network", "none", "--pids-limit", "8", IMAGE, "sh", "-c", script, code=None, timeout=400
    )
    assert "all" not in done.stdout, done.stderr
    assert "fork" in done.stderr.lower()


def test_devices_are_filtered(wherry: Wherry) -> None:
    script = "mknod /dev/mem2 c 1 1 && cat /dev/mem2; echo $?"
    done = wherry("run", "--rm", "--network", "none", IMAGE, "sh", "-c", script, code=None, timeout=400)
    assert "not permitted" in done.stderr.lower(), done.stderr
    assert done.stdout.strip() != "0"
