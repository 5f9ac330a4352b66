"""pause and unpause that are broken off between the deed and its row: what is told stays what is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import wherry
from support.engines import EngineDirs
from support.running import execute, sleeper
from wherry.api import Engine, Unavailable
from wherry.engine.recovery import Recovery
from wherry.engine.state.database import EngineDatabase
from wherry.linux import cgroup

pytestmark = pytest.mark.skipif(not cgroup.detect().available(), reason="no control groups: nothing can be paused")
TURNS = {"pause": "paused", "resume": "running"}


def engine_at(dirs: EngineDirs) -> Engine:
    return wherry.Engine(root=dirs.root, run=dirs.run)


def broken_off(dirs: EngineDirs, verb: str) -> str:
    """A container whose engine ended after the driver had done it and before that was written; its id."""
    with engine_at(dirs) as engine:
        id = sleeper(engine)
        if verb == "resume":
            engine.pause(id)
        state = engine._parts.state  # type: ignore[attr-defined]
        getattr(state.isolation(state.registry.find(id)), verb)(id)
    return id


@pytest.mark.parametrize("verb", TURNS)
def test_the_next_engine_tells_what_is(engine_dirs: EngineDirs, verb: str) -> None:
    id = broken_off(engine_dirs, verb)
    with engine_at(engine_dirs) as engine:
        assert engine.container(id).status == TURNS[verb]
        if verb == "pause":
            engine.resume(id)
        assert execute(engine, id, "true").code == 0
        engine.remove(id, force=True)


@pytest.mark.parametrize("verb", TURNS)
def test_the_next_engine_tells_what_is_twin(
    engine_dirs: EngineDirs, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the row has it."""
    id = broken_off(engine_dirs, verb)
    real = Recovery._settle_live

    def believing(self: Recovery, record: Any, task: Any) -> None:
        if task is None or task.status == "stopped":
            real(self, record, task)

    monkeypatch.setattr(Recovery, "_settle_live", believing)
    with engine_at(engine_dirs) as engine:
        assert engine.container(id).status != TURNS[verb]
        engine.remove(id, force=True)


@pytest.mark.parametrize("verb", TURNS)
def test_one_that_cannot_be_written_is_taken_back(
    engine_dirs: EngineDirs, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_at(engine_dirs) as engine:
        id = sleeper(engine)
        if verb == "resume":
            engine.pause(id)
        before = engine.container(id).status
        state = engine._parts.state  # type: ignore[attr-defined]
        driver = state.isolation(state.registry.find(id))

        @contextmanager
        def full(_self: EngineDatabase, **_options: Any) -> Iterator[Any]:
            raise Unavailable("database", "disk full")
            yield

        with monkeypatch.context() as patched:
            patched.setattr(EngineDatabase, "transaction", full)
            with pytest.raises(Unavailable):
                getattr(engine, verb)(id)
        assert driver.state(id).status == engine.container(id).status == before
        # the twin: what is not taken back is seen
        getattr(driver, verb)(id)
        assert driver.state(id).status != engine.container(id).status
        engine.remove(id, force=True)
