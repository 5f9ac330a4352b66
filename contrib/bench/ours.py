"""Wherry under test: a resident engine and shim of its own, by API and by command line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peers import Engine
from world import ENVIRON, IMAGE, AbsentError, World, memory_of, processes

import wherry
from wherry.api import ExecRequest, RunRequest

TRUE = RunRequest(image=IMAGE, command=("true",), remove=True, network="none")
SLEEP = RunRequest(image=IMAGE, command=("sleep", "100000"), detach=True, network="none")


class WherryApi:
    """``wherry.connect()``, or ``wherry.Engine`` in this process when local."""

    def __init__(self, world: World, name: str, *, local: bool) -> None:
        self.name = name
        self.root, self.run_directory = world.base / name, world.run / name
        make = wherry.Engine if local else wherry.connect
        self.engine = make(root=self.root, run=self.run_directory)
        self.engine.load(f"archive:{world.archive}")
        self.held = ""
        self.kept: list[str] = []
        self.once()

    def once(self) -> float:
        began = time.perf_counter()
        container = self.engine.run(TRUE)
        ended = self.engine.wait(container.id)
        elapsed = time.perf_counter() - began
        if ended is None or ended.code != 0:
            raise RuntimeError(f"{self.name}: true ended with {ended}")
        return elapsed

    def hold(self) -> None:
        self.held = self.engine.run(SLEEP).id

    def execute(self) -> float:
        began = time.perf_counter()
        exec_id = self.engine.exec(self.held, ExecRequest(("true",)))
        ended = self.engine.wait(self.held, exec_id)
        elapsed = time.perf_counter() - began
        if ended is None or ended.code != 0:
            raise RuntimeError(f"{self.name}: exec true ended with {ended}")
        return elapsed

    def drop(self) -> None:
        self.engine.remove(self.held, force=True)

    def idle(self, count: int) -> None:
        self.kept += [self.engine.run(SLEEP).id for _ in range(count)]

    def drop_idle(self) -> None:
        for id in self.kept:
            self.engine.remove(id, force=True)
        self.kept = []

    def own_processes(self) -> list[int]:
        info = self.engine.info()
        shim = info.shim.pid
        children = [pid for pid, (parent, name) in processes().items() if parent == shim and name != "sleep"]
        return sorted({info.engine.pid, shim, *children})

    def helpers(self) -> tuple[int, int]:
        pids = self.own_processes()
        return memory_of(pids), len(pids)

    def together(self, count: int) -> tuple[float, list[float]]:
        """All from threads of one client."""
        began = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            each = list(pool.map(lambda _: self.once(), range(count)))
        return time.perf_counter() - began, each

    def close(self) -> None:
        info = self.engine.info()
        for container in self.engine.containers(all=True):
            self.engine.remove(container.id, force=True)
        own = [pid for pid in self.own_processes() if pid != os.getpid()]
        self.engine.close()
        if info.engine.pid != os.getpid():
            for pid in own:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if pid == info.engine.pid else signal.SIGKILL)
            while any(Path(f"/proc/{pid}").exists() for pid in own):
                time.sleep(0.01)


class WherryCli(Engine):
    """The command line, on the engine that an API client started."""

    name = "wherry"
    options = ()

    def __init__(self, world: World, api: WherryApi) -> None:
        program = Path(sys.executable).parent / "wherry"
        if not program.exists():
            raise AbsentError("the command wherry is not beside the interpreter")
        self.command = [str(program)]
        self.spawner = world.spawner
        places = {"WHERRY_ROOT": str(api.root), "WHERRY_RUN": str(api.run_directory), "HOME": str(world.base)}
        self.environ = {**ENVIRON, **places}
        self.once()

    def close(self) -> None:
        """The engine is the API's to stop."""
