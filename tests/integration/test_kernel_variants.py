"""Variants with real containers: every driver in a process of its own, decorators, faults on purpose, drivers that die."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wherry
from support.distributions import eventually
from support.engines import EngineDirs
from wherry.api import DeadlineExceeded, Engine, Invalid, NotFound, RunRequest, Unavailable, trace_events

IMAGE = "host:/bin/sh,/bin/echo,/bin/sleep"

Start = Callable[[str], Engine]


@pytest.fixture
def start(engine_dirs: EngineDirs) -> Iterator[Start]:
    engines: list[Engine] = []

    def start(text: str) -> Engine:
        path = engine_dirs.root.parent / "config.toml"
        path.write_text(text)
        engines.append(wherry.Engine(root=engine_dirs.root, run=engine_dirs.run, config=path))
        return engines[-1]

    yield start
    for engine in engines:
        for container in engine.containers(all=True):
            engine.remove(container.id, force=True)
        engine.close()


def says(engine: Engine, text: str, **more: object) -> str:
    """Runs echo and gives what the log has of it."""
    request = RunRequest(image=IMAGE, command=("/bin/echo", text), **more)  # type: ignore[arg-type]
    container = engine.run(request)
    exit = engine.wait(container.id, timeout=30)
    assert exit is not None
    assert exit.code == 0
    output = b"".join(line.data for line in engine.logs(container.id)).decode().strip()
    engine.remove(container.id)
    return output


def child(name: str) -> int:
    """The pid of a driver's own process, by what it has open below the engine's directories or as its only one."""
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and b"wherry.kernel.driver_main" in (entry / "cmdline").read_bytes()
        and int((entry / "stat").read_text().rpartition(") ")[2].split()[1]) == os.getpid()
    ]
    assert len(found) == 1, f"one process for {name}: {found}"
    return found[0]


ALL = """
[variant.standard]
snapshotter = "{snapshotter}"
"""
OWN = "[plugin.{}]\nprocess = true\n"


FUSE = pytest.mark.skipif(
    shutil.which("fuse-overlayfs") is None or not os.path.exists("/dev/fuse"), reason="fuse-overlayfs can't run here"
)


@pytest.mark.parametrize("snapshotter", ["vfs", "overlayfs", pytest.param("fuse-overlayfs", marks=FUSE)])
def test_every_driver_in_a_process_of_its_own(start: Start, snapshotter: str) -> None:
    drivers = [
        "store.local",
        f"snapshotter.{snapshotter}",
        "isolation.namespaces",
        "network.bridge",
        "log.json-file",
        "transport.host",
    ]
    engine = start(ALL.format(snapshotter=snapshotter) + "".join(map(OWN.format, drivers)))
    assert says(engine, "one") == "one"
    assert says(engine, "two") == "two"
    own = {f"{info.family}.{info.id}": info.state for info in engine.plugins() if info.process}
    assert own == dict.fromkeys(drivers, "ready")


def test_the_isolation_dies_and_the_container_lives(start: Start) -> None:
    engine = start(OWN.format("isolation.namespaces"))
    container = engine.run(RunRequest(image=IMAGE, command=("/bin/sleep", "60")))
    pid = child("isolation.namespaces")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}/exe").exists())
    assert engine.container(container.id).status == "running"
    eventually(lambda: _kills(engine, container.id))
    exit = engine.wait(container.id, timeout=30)
    assert exit is not None
    assert exit.code == 137


def _kills(engine: Engine, id: str) -> bool:
    """Whether the driver answers (again)."""
    try:
        engine.kill(id)
    except Unavailable as error:
        return error.plugin != "isolation.namespaces"
    return True


def test_a_research_variant(start: Start) -> None:
    engine = start('[variant.research]\nextends = "standard"\nsnapshotter = "vfs"\ndecorate = ["trace"]\n')
    container = engine.run(RunRequest(image=IMAGE, command=("/bin/echo", "x"), variant="research", trace=True))
    engine.wait(container.id, timeout=30)
    assert engine.container(container.id).drivers["snapshotter"] == "vfs"
    spans = engine.spans(container.id)
    inside = [span for span in spans if span.name == "vfs.prepare"]
    assert inside
    assert inside[0].attributes["layer"] == "decorate.trace"
    assert {event["cat"] for event in trace_events(spans)["traceEvents"] if event["ph"] == "X"} >= {
        "store",
        "snapshotter",
        "isolation",
        "network",
    }
    engine.remove(container.id)
    assert says(engine, "default") == "default"


def test_overrides_and_mistakes(start: Start) -> None:
    engine = start("")
    assert says(engine, "vfs", snapshotter="vfs") == "vfs"
    with pytest.raises(NotFound, match='snapshotter driver "overlays": not installed; did you mean "overlayfs"'):
        says(engine, "x", snapshotter="overlays")
    with pytest.raises(NotFound, match='variant "standart": not in the config; did you mean "standard"'):
        says(engine, "x", variant="standart")
    assert engine.containers(all=True) == ()


def test_a_bad_table_fails_its_own_driver_only(start: Start) -> None:
    engine = start('[variant.other]\nsnapshotter = "vfs"\n[plugin.snapshotter.overlayfs]\nmetacopi = true\n')
    with pytest.raises((Invalid, Unavailable), match=r"\[plugin.snapshotter.overlayfs\] metacopi: unknown key"):
        says(engine, "x", snapshotter="overlayfs")
    assert says(engine, "fine", variant="other") == "fine"


RULES = """
[engine]
deadline = 2
[variant.faulty]
decorate = ["inject"]
[[plugin.decorate.inject.rules]]
call = "{call}"
action = "{action}"
error = "OSError"
errno = "ENOSPC"
count = 1
seconds = 4
"""


@pytest.mark.parametrize(
    "call", ["snapshotter.prepare", "isolation.create", "isolation.start", "network.reserve", "network.attach"]
)
def test_an_injected_error_leaves_nothing_behind(start: Start, call: str) -> None:
    engine = start(RULES.format(call=call, action="error"))
    assert says(engine, "before") == "before"
    with pytest.raises(OSError, match="injected") as caught:
        says(engine, "x", variant="faulty", remove=True)
    assert caught.value.errno == errno.ENOSPC
    assert engine.containers(all=True) == ()
    assert says(engine, "again", variant="faulty") == "again"


def test_an_injected_hang_is_given_up(start: Start) -> None:
    engine = start(RULES.format(call="snapshotter.stat", action="hang"))
    with pytest.raises(DeadlineExceeded) as caught:
        says(engine, "x", variant="faulty", remove=True)
    assert caught.value.plugin == "snapshotter.overlayfs"
    assert engine.containers(all=True) == ()
    assert says(engine, "others work", snapshotter="vfs") == "others work"
