"""Drivers that fail or hang in the middle of a run: a typed error, nothing left, and the engine goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

import wherry
from support.engines import EngineDirs
from support.running import HOST, run, until
from wherry.api import DeadlineExceeded, Engine, RunRequest, Unavailable

CALLS = [
    "store.resolve",
    "snapshotter.stat",
    "snapshotter.prepare",
    "network.reserve",
    "isolation.create",
    "network.attach",
    "isolation.start",
]
ENDS = ["isolation.delete", "network.detach", "snapshotter.remove"]


def engine_with(dirs: EngineDirs, tmp_path: Path, rule: str, deadline: float = 20.0) -> Engine:
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
version = 1
[engine]
deadline = {deadline}
log = "json-file"
[variant.faulty]
extends = "standard"
decorate = ["inject"]
[[plugin.decorate.inject.rules]]
{rule}
"""
    )
    return wherry.Engine(root=dirs.root, run=dirs.run, config=config)


@pytest.fixture
def place(engine_dirs: EngineDirs) -> EngineDirs:
    with wherry.Engine(root=engine_dirs.root, run=engine_dirs.run) as first:
        assert run(first, "true").code == 0  # the image is there
    return engine_dirs


@pytest.mark.parametrize("call", CALLS)
def test_an_error_at_each_call_of_a_start(place: EngineDirs, tmp_path: Path, call: str) -> None:
    rule = f'call = "{call}"\naction = "error"\nerror = "OSError"\nerrno = "EIO"'
    with engine_with(place, tmp_path, rule) as engine:
        with pytest.raises(OSError, match="injected"):
            run(engine, "true", variant="faulty")
        assert engine.containers(all=True) == ()
        assert engine.doctor() == ()
        with pytest.raises(OSError, match="injected"):
            run(engine, "true", variant="faulty", remove=False, name="kept")
        for container in engine.containers(all=True):
            assert (container.status, container.exit_code) == ("created", 125)
            engine.remove(container.id)
        assert engine.doctor() == ()
        assert run(engine, "true").code == 0


@pytest.mark.parametrize("call", ENDS)
def test_an_error_at_the_end_is_told_and_mended(place: EngineDirs, tmp_path: Path, call: str) -> None:
    rule = f'call = "{call}"\naction = "error"\nerror = "OSError"\nerrno = "EIO"\nnth = 1'
    with engine_with(place, tmp_path, rule) as engine:
        id = engine.run(RunRequest(HOST, ("/bin/sh", "-c", "exit 3"), variant="faulty", remove=True)).id
        assert engine.wait(id, timeout=20).code == 3  # type: ignore[union-attr]
        engine.doctor(repair=True)
        assert engine.doctor() == ()
        assert engine.containers(all=True) == ()


def mended(engine: Engine) -> bool:
    """After the breaker has closed again, doctor finds all that a hang left."""
    try:
        engine.doctor(repair=True)
        return engine.doctor() == () and run(engine, "true").code == 0
    except Unavailable:
        return False


@pytest.mark.parametrize("call", ["snapshotter.stat", "store.info", "store.resolve"])
def test_a_driver_that_hangs_is_given_up(place: EngineDirs, tmp_path: Path, call: str) -> None:
    rule = f'call = "{call}"\naction = "hang"\nseconds = 2\nnth = 1'
    with engine_with(place, tmp_path, rule, deadline=0.5) as engine:
        with pytest.raises(DeadlineExceeded, match=r"did not return within") as caught:
            run(engine, "true", variant="faulty")
        assert caught.value.plugin.partition(".")[0] == call.partition(".")[0]
        until(lambda: mended(engine), 30)
        assert engine.containers(all=True) == ()


def test_a_hang_at_the_end_does_not_hide_the_exit(place: EngineDirs, tmp_path: Path) -> None:
    rule = 'call = "isolation.delete"\naction = "hang"\nseconds = 2\nnth = 1'
    with engine_with(place, tmp_path, rule, deadline=0.5) as engine:
        id = engine.run(RunRequest(HOST, ("/bin/sh", "-c", "exit 3"), variant="faulty", name="slow")).id
        exit = engine.wait(id, timeout=20)
        assert exit is not None
        assert exit.code == 3
        assert engine.container("slow").status == "stopped"
        until(lambda: mended(engine), 30)
        engine.remove("slow")
