"""The resident engine killed at arbitrary moments of a run: nothing acknowledged is lost, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

import wherry as package
from support.engines import Wherry
from support.running import HOST, run, sh
from wherry.api import Engine, Error, RunRequest
from wherry.linux import cgroup


def groups(run_directory: str) -> list[str]:
    from pathlib import Path

    from wherry.engine.state.state import cgroup_parent

    layout = cgroup.detect()
    parent = cgroup_parent(Path(run_directory))
    found = []
    for mount in {*layout.v1.values(), layout.v2} - {""}:
        if os.path.isdir(mount + parent):
            found += [name for name in os.listdir(mount + parent) if os.path.isdir(f"{mount}{parent}/{name}")]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_killed_in_the_middle_of_runs(wherry: Wherry, seed: int) -> None:
    chance = random.Random(seed)
    with package.connect(wherry.dirs.root, wherry.dirs.run) as first:
        assert run(first, "true").code == 0
        pid = first.info().engine.pid
    told: list[str] = []
    kept: list[str] = []

    def work(engine: Engine, number: int) -> None:
        try:
            for round in range(100):
                name = f"k{number}-{round}"
                asked = RunRequest(HOST, ("/bin/sh", "-c", "exit 3"), name=name, remove=round % 2 == 0)
                container = engine.run(asked)
                told.append(container.id)
                if not asked.remove:
                    kept.append(container.id)
        except (Error, OSError):
            return  # the engine is gone

    clients = [package.connect(wherry.dirs.root, wherry.dirs.run) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(client, number)) for number, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    time.sleep(0.1 + chance.random() * 0.4)
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for client in clients:
        client.close()
    with package.connect(wherry.dirs.root, wherry.dirs.run) as engine:
        for id in kept:
            exit = engine.wait(id, timeout=20)
            assert exit is not None
            assert exit.code == 3
        there = {container.id for container in engine.containers(all=True)}
        assert set(kept) <= there
        assert not (set(told) - set(kept)) & {c.id for c in engine.containers(all=True) if c.status == "stopped"}
        engine.doctor(repair=True)
        assert engine.doctor(repair=True) == ()
        for id in there:
            engine.remove(id, force=True)
        assert groups(str(wherry.dirs.run)) == []
        assert sh(engine, "exit 4").code == 4
        engine.gc()
        numbers = [event.sequence for event in engine.events(0, follow=False)]
        assert numbers == list(range(1, len(numbers) + 1))
