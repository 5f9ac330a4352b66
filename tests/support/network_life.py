"""A container's whole life in two networks, in an engine that may be ended at any of its steps: run as a program.

    python -m support.network_life ROOT RUN STEP engine|shim

Prints how many steps there were. A step is a request to the kernel, to the shim or to netd, or a transaction; before the
one with number STEP (from 1; 0: never) the victim is killed. Networks "lab" and "side" are there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import wherry
from wherry.api import Engine, Error, Join, Port, RunRequest
from wherry.engine import database
from wherry.engine.shim import ShimClient
from wherry.layers.database import Database
from wherry.networks.netlink import Rtnl
from wherry_plugins.network.bridge.netd.client import Netd

IMAGE = "host:/bin/busybox"
ADDRESS = "10.90.0.5"
REQUEST = RunRequest(
    IMAGE, ("/bin/busybox", "sleep", "1000"), name="one", network="lab", addresses=(ADDRESS,), ports=(Port(80),),
    networks=(Join("side"),),
)  # fmt: skip
#: What counts as a step.
STEPS = (
    (Rtnl, "ask"),
    (Database, "write"),
    (database.Database, "transaction"),
    (ShimClient, "_call"),
    (ShimClient, "_post"),
    (Netd, "_exchange"),
)


class Steps:
    """Counts, and kills."""

    def __init__(self, target: int, victim: Callable[[], int]) -> None:
        self.target = target
        self.victim = victim
        self.count = 0

    def wrap(self, cls: Any, name: str) -> None:
        original = getattr(cls, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.target:
                os.kill(self.victim(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(cls, name, counted)


def life(engine: Engine) -> None:
    id = engine.run(REQUEST).id
    engine.disconnect(id, "side")
    engine.connect(id, Join("side"))
    engine.disconnect(id, "lab")  # its port moves to the other one
    engine.connect(id, Join("lab"))
    engine.remove(id, force=True)


def main() -> None:
    root, run, target, victim = sys.argv[1:]
    engine = wherry.Engine(root=root, run=run)
    steps = Steps(int(target), os.getpid if victim == "engine" else lambda: engine.state.shim.pid)
    for cls, name in STEPS:
        steps.wrap(cls, name)
    try:
        life(engine)
    except (Error, OSError) as error:
        print(error, file=sys.stderr)
    print(steps.count, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
