"""An engine's directories, its command line, and the end of whatever is left of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import wherry
from support import leaks
from support.isolation import isolated
from support.rootless import User
from support.running import SLOW
from wherry.api import Engine


class EngineDirs(NamedTuple):
    """An engine's two directories, on paths short enough for a socket's name (unix(7): 108 bytes). user: whose it is, if not root's."""

    root: Path
    run: Path
    user: User | None = None

    @property
    def environ(self) -> dict[str, str]:
        """An environment in which ``wherry`` uses these, and no config of the user's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHERRY_", "XDG_"))}
        return {**kept, "WHERRY_ROOT": str(self.root), "WHERRY_RUN": str(self.run), "HOME": str(self.root.parent)}


@contextmanager
def engine_of_a_module(directories: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine in this process, in directories of its own, for all tests of a module; what is left in it goes at the end."""
    top = directories.mktemp("engine")
    with wherry.Engine(root=top / "root", run=top / "run") as made:
        yield made
        clear(made)


def clear(engine: Engine) -> None:
    """Removes all containers, with the volumes that have no name."""
    for container in engine.containers(all=True):
        engine.remove(container.id, force=True, volumes=True)


def cgroups(run: Path) -> list[Path]:
    """The cgroups of the engine that uses this run directory, in every hierarchy, the innermost first."""
    name = "wherry-" + hashlib.sha256(os.fsencode(run)).hexdigest()[:8]
    # os.walk goes on where somebody else's goes away meanwhile; glob of Path in Python 3.11 does not
    paths = (Path(directory) for directory, _inner, _files in os.walk("/sys/fs/cgroup"))
    return sorted((path for path in paths if name in path.parts), key=lambda path: -len(path.parts))


def alive(run: Path) -> list[str]:
    """Processes that have the run directory in their command line, and cgroups."""
    running = [f"process {entry}" for entry in leaks.processes([run]) if str(run) in entry]
    return running + [f"cgroup {group}" for group in cgroups(run)]


def stop_all(run: Path, patience: float = 0) -> list[str]:
    """Gives what is left of an engine, its shim and its containers some seconds to end; then SIGKILL, and says what there was."""
    deadline = time.monotonic() + patience
    while (left := alive(run)) and time.monotonic() < deadline:
        time.sleep(0.02)
    deadline = time.monotonic() + 5
    while (now := alive(run)) and time.monotonic() < deadline:
        pids = [int(entry.split()[1]) for entry in now if entry.startswith("process ")]
        for pid in pids + [pid for group in cgroups(run) for pid in _inside(group)]:
            leaks.kill(pid)
        for group in cgroups(run):
            try:
                group.rmdir()
            except OSError:
                pass  # not empty yet: once more
        time.sleep(0.01)
    unplug(run)
    return left


def unplug(run: Path) -> None:
    """Takes away what an engine that was killed has left of its built-in network: bridge and rules."""
    bridge = "whb" + hashlib.sha256(f"{run}/network/bridge\0bridge".encode()).hexdigest()[:10]
    if isolated() and bridge in leaks.links():
        table = "wherry-" + hashlib.sha256(os.fsencode(run)).hexdigest()[:8]
        for command in (["ip", "link", "delete", bridge], ["nft", "delete", "table", "inet", table]):
            subprocess.run(command, check=False, capture_output=True, timeout=30)


def _inside(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split() if pid != "0"]
    except OSError:
        return []


class Wherry:
    """Calls the command line: ``wherry("run", "--rm", image, "true")`` answers the finished process, texts decoded."""

    def __init__(self, dirs: EngineDirs) -> None:
        self.dirs = dirs
        self.program = dirs.user.program if dirs.user else Path(sys.executable).parent / "wherry"
        self.options: tuple[str, ...] = ()
        """Before each command: --config FILE."""
        self.identity: dict[str, Any] = dirs.user.identity if dirs.user else {}

    def __call__(
        self,
        *argv: str | os.PathLike[str],
        code: int | None = 0,
        input: str | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """code: the exit code that is asserted, None for any."""
        command = [os.fspath(arg) for arg in (self.program, *self.options, *argv)]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout * SLOW,
            env={**self.dirs.environ, **(env or {})},
            cwd=cwd or (self.dirs.root.parent if self.dirs.user else None),
            check=False,
            **self.identity,
        )
        if code is not None:
            assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def popen(self, *argv: str | os.PathLike[str], **options: Any) -> subprocess.Popen[str]:
        """The same, not waited for; the caller ends it."""
        options.setdefault("env", self.dirs.environ)
        options.update(self.identity)
        return subprocess.Popen([os.fspath(arg) for arg in (self.program, *self.options, *argv)], text=True, **options)

    def stop(self) -> None:
        """Removes the containers and ends engine and shim, as a user would."""
        ids = self("ps", "-aq", code=None).stdout.split()
        if ids:
            self("rm", "-f", *ids, code=None)
        self("engine", "stop", code=None)
