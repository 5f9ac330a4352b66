"""The resident engine killed with a hundred live containers: none is lost, nor a byte of their logs, and their codes are right."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import wherry as package
from support.engines import Wherry
from support.running import HOST, until
from wherry.api import Bind, Engine, RunRequest

_COUNT = 100
_LINES = 120
#: A burst of lines, a gate (a FIFO whose writer comes and goes), a burst more, and so on; the last word is an exit code.
_SCRIPT = f"""
burst() {{ n=0; while [ $n -lt {_LINES} ]; do echo "$1 $n of $2"; n=$((n + 1)); done; }}
burst before $1
read gone < /gates/first
burst without $1
read gone < /gates/second
burst after $1
exit $2
"""


def expected(number: int, *bursts: str) -> bytes:
    return b"".join(f"{burst} {line} of {number}\n".encode() for burst in bursts for line in range(_LINES))


def code(number: int) -> int:
    return number * 2 + 1


def log(engine: Engine, id: str) -> bytes:
    return b"".join(line.data for line in engine.logs(id))


def opened(gate: Path) -> None:
    """Whoever waits for a writer goes on."""
    os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))


def waiting(pid: int) -> bool:
    """Whether a process, which has written all it had to, sleeps: it waits at a gate."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_hundred_live_containers(wherry: Wherry, tmp_path: Path) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    first, second = gates / "first", gates / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    with package.connect(wherry.dirs.root, wherry.dirs.run) as engine:

        def begin(number: int) -> str:
            command = ("/bin/sh", "-c", _SCRIPT, "sh", str(number), str(code(number)))
            return engine.run(RunRequest(HOST, command, mounts=(Bind("bind", str(gates), "/gates"),))).id

        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(begin, range(_COUNT)))
        pids = {id: engine.container(id).pid for id in ids}
        for number, id in enumerate(ids):
            until(lambda id=id, number=number: log(engine, id) == expected(number, "before"))  # type: ignore[misc]
            until(lambda id=id: waiting(pids[id]))  # type: ignore[misc]
        os.kill(engine.info().engine.pid, signal.SIGKILL)
    opened(first)  # they write while there is no engine
    with package.connect(wherry.dirs.root, wherry.dirs.run) as engine:
        there = {container.id: container for container in engine.containers()}
        assert set(there) == set(ids)
        assert {id: container.pid for id, container in there.items()} == pids
        assert {container.status for container in there.values()} == {"running"}
        for number, id in enumerate(ids):
            until(lambda id=id, number=number: log(engine, id) == expected(number, "before", "without"))  # type: ignore[misc]
            until(lambda id=id: waiting(pids[id]))  # type: ignore[misc]
        opened(second)
        for number, id in enumerate(ids):
            exit = engine.wait(id, timeout=20)
            assert exit is not None
            assert exit.code == code(number)
            assert log(engine, id) == expected(number, "before", "without", "after")
        assert engine.doctor() == ()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(engine.remove, ids))
