"""Engine, shim and client killed at any step of reserve, attach, detach, connect and disconnect: after doctor nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wherry
from support.engines import EngineDirs
from support.network_life import ADDRESS, IMAGE, REQUEST
from support.running import run
from wherry.api import NetworkConfig

TESTS = Path(__file__).resolve().parents[1]
ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))
#: Where in the life of a container, as parts of a thousand; it has less than 125 steps.
PLACES = range(0, 1000, 8) if ALL else range(40, 1000, 300)


def prepare(dirs: EngineDirs) -> None:
    with wherry.Engine(root=dirs.root, run=dirs.run) as engine:
        engine.create_network(NetworkConfig("lab", subnets=("10.90.0.0/24",)))
        engine.create_network(NetworkConfig("side", subnets=("10.91.0.0/24",)))
        assert run(engine, "/bin/busybox", "true", image=IMAGE, network="lab").code == 0


def live(dirs: EngineDirs, step: int, victim: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "support.network_life", str(dirs.root), str(dirs.run), str(step), victim]
    return subprocess.run(argv, cwd=TESTS, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many there are in a life, by who is killed; the number differs by a few with what the shim has in reserve."""
    top = tmp_path_factory.mktemp("counted")
    dirs = EngineDirs(top / "root", top / "run")
    prepare(dirs)
    found = {}
    for victim in ("engine", "client"):
        counted = live(dirs, 0, victim)
        assert counted.returncode == 0, counted.stderr
        assert counted.stderr == ""
        found[victim] = int(counted.stdout)
    wherry.Engine(root=dirs.root, run=dirs.run).close()  # takes the shim along that a resident engine leaves
    assert max(found.values()) < 125
    return {**found, "shim": found["engine"]}


@pytest.mark.parametrize("victim", ["engine", "shim", "client"])
@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_step(engine_dirs: EngineDirs, steps: dict[str, int], place: int, victim: str) -> None:
    prepare(engine_dirs)
    step = 1 + steps[victim] * place // 1000
    done = live(engine_dirs, step, victim)
    if victim != "engine" or done.returncode == 0:  # a life of fewer steps than the one that was counted
        assert done.returncode == 0, done.stderr
        assert victim != "engine" or int(done.stdout) < step
    else:
        assert done.returncode == -9, done.stderr
    own = Path("/proc/self/ns/net").stat().st_ino
    with wherry.Engine(root=engine_dirs.root, run=engine_dirs.run) as engine:
        engine.doctor(repair=True)
        assert engine.doctor(repair=True) == ()
        for container in engine.containers(all=True):
            if container.status == "running":
                assert Path(f"/proc/{container.pid}/ns/net").stat().st_ino != own
                told = {one: engine.network(one).attachments for one in container.networks}
                assert all(told.values())
                assert {*container.ports} == {port for (one,) in told.values() for port in one.reservation.ports}
            engine.remove(container.id, force=True)
        for name in ("lab", "side"):
            assert engine.network(name).attachments == ()
        again = engine.run(REQUEST)  # its address, its names: nothing holds them
        assert again.addresses[0] == f"{ADDRESS}/24"
        assert again.networks == ("lab", "side")
        engine.remove(again.id, force=True)
        for name in ("lab", "side"):
            engine.remove_network(name)
        assert engine.doctor() == ()
