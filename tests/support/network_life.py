"""A container's whole life in two networks, in an engine that may be ended at any of its steps: run as a program.

    python -m support.network_life ROOT RUN STEP engine|shim|client

Prints how many steps there were. A step is a request to the kernel, to the shim or to netd, or a transaction; before the
one with number STEP (from 1; 0: never) the victim is killed. Networks "lab" and "side" are there. A client is that of the command
line, of the command which is under way; the commands after it are given all the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wherry
from wherry.api import EndpointConfig, Engine, Error, Port, RunRequest
from wherry.engine import main as resident
from wherry.engine.shim.client import ShimClient
from wherry.kit.database import Database
from wherry.kit.networks.netlink import Rtnl
from wherry_plugins.network.bridge.netd.client import Netd

BOUND = 60
IMAGE = "host:/bin/busybox"
ADDRESS = "10.90.0.5"
REQUEST = RunRequest(
    IMAGE, ("/bin/busybox", "sleep", "1000"), name="one", network="lab", addresses=(ADDRESS,), ports=(Port(80),),
    networks=(EndpointConfig("side"),),
)  # fmt: skip
#: What counts as a step.
STEPS = (
    (Rtnl, "ask"),
    (Database, "write"),
    (ShimClient, "_call"),
    (ShimClient, "_post"),
    (Netd, "_exchange"),
)


class Steps:
    """Counts, and kills."""

    def __init__(self, target: int, kill: Callable[[], None]) -> None:
        self.target = target
        self.kill = kill
        self.count = 0
        for cls, name in STEPS:
            self.wrap(cls, name)

    def wrap(self, cls: Any, name: str) -> None:
        original = getattr(cls, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.target:
                self.kill()
            return original(*args, **kwargs)

        setattr(cls, name, counted)


def life(engine: Engine) -> None:
    id = engine.run(REQUEST).id
    engine.disconnect(id, "side")
    engine.connect(id, EndpointConfig("side"))
    engine.disconnect(id, "lab")  # its port moves to the other one
    engine.connect(id, EndpointConfig("lab"))
    engine.remove(id, force=True)


COMMANDS = (
    ("run", "-d", "--name", "one", "--network", "lab", "--ip", ADDRESS, "-p", "80", "--network", "side",
     IMAGE, "/bin/busybox", "sleep", "1000"),
    ("network", "disconnect", "side", "one"),
    ("network", "connect", "side", "one"),
    ("network", "disconnect", "lab", "one"),
    ("network", "connect", "lab", "one"),
    ("rm", "-f", "one"),
)  # fmt: skip


class Commands:
    """The same life by the command line, in a thread beside an engine as a process has it."""

    def __init__(self, root: str, run: str, target: int) -> None:
        self._argv = [str(Path(sys.executable).parent / "wherry"), "--root", root, "--run", run]
        self._target = target
        self._client: subprocess.Popen[bytes] | None = None
        self.codes: list[int] = []
        self.steps: Steps | None = None

    def kill(self) -> None:
        if self._client is not None:
            self._client.kill()

    def give(self, ready: int) -> None:
        try:
            assert os.read(ready, 100) == b"ready\n"
            self.steps = Steps(self._target, self.kill)
            for words in COMMANDS:
                with subprocess.Popen(
                    [*self._argv, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                ) as self._client:
                    self.codes.append(self._client.wait(BOUND))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def by_commands(root: str, run: str, target: int) -> int:
    """The number of steps."""
    ready, told = os.pipe()
    commands = Commands(root, run, target)
    thread = threading.Thread(target=commands.give, args=(ready,))
    thread.start()
    code = resident.main(["--root", root, "--run", run, "--ready-fd", str(told)])
    thread.join()
    assert code == 0
    assert len(commands.codes) == len(COMMANDS)
    assert target or not any(commands.codes), commands.codes
    assert commands.steps is not None
    return commands.steps.count


def main() -> None:
    root, run, target, victim = sys.argv[1:]
    if victim == "client":
        print(by_commands(root, run, int(target)), flush=True)
        return
    engine = wherry.Engine(root=root, run=run)
    steps = Steps(
        int(target), lambda: os.kill(os.getpid() if victim == "engine" else engine.state.shim.pid, signal.SIGKILL)
    )
    try:
        life(engine)
    except (Error, OSError) as error:
        print(error, file=sys.stderr)
    print(steps.count, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
