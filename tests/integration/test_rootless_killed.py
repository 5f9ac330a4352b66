"""An ordinary user's engine, shim and both, killed while containers start and end: nothing acknowledged is lost, nothing is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest

from support.engines import Wherry
from support.running import until

IMAGE = "host:/bin/sh,/bin/sleep"
SEEDS = range(6 if os.environ.get("WHERRY_TESTS_ALL") else 1)
pytestmark = pytest.mark.parametrize("who", ["user"], indirect=True)


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victims", [("engine",), ("shim",), ("shim", "engine")], ids="+".join)
def test_killed_in_the_middle_of_runs(wherry: Wherry, victims: tuple[str, ...], seed: int) -> None:
    chance = random.Random(f"{seed}{victims}")
    wherry("run", "-d", "--name", "stays", "--network", "none", IMAGE, "sleep", "1000")
    info = json.loads(wherry("info", "--json").stdout)
    pid = int(wherry("inspect", "-f", "{{.State.Pid}}", "stays").stdout)
    loop = f"i=0; while [ $i -lt 4 ]; do i=$((i + 1)); {wherry.program} run --rm --network none {IMAGE} sh -c 'exit 3'; done"
    running = [wherry_shell(wherry, loop) for _ in range(3)]
    try:
        time.sleep(chance.random() * 0.6)  # whichever moment this is, what follows has to hold
        for name in victims:
            os.kill(info[name]["pid"], signal.SIGKILL)
        for child in running:
            child.wait(100)
    finally:
        for child in running:
            child.kill()
            child.wait()
    until(lambda: all(ended(info[name]["pid"]) for name in victims), 30)
    until(lambda: wherry("exec", "stays", "sh", "-c", "exit 5", code=None).returncode == 5, 30)
    assert int(wherry("inspect", "-f", "{{.State.Pid}}", "stays").stdout) == pid
    wherry("doctor", "--repair", code=None)
    assert wherry("doctor").stdout == "all is well\n"
    until(lambda: wherry("ps", "-q").stdout.split() == wherry("ps", "-q", "--filter", "name=stays").stdout.split(), 30)
    assert wherry("run", "--rm", "--network", "none", IMAGE, "sh", "-c", "exit 4", code=4).stdout == ""
    left = wherry("ps", "-aq").stdout.split()
    wherry("rm", "-f", *left)
    assert wherry("doctor").stdout == "all is well\n"


def wherry_shell(wherry: Wherry, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        env=wherry.dirs.environ, **wherry.identity,
    )  # fmt: skip
