"""The root of a container that removes itself is never synced, and only its."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import engine_of_a_module
from support.running import HOST, sh
from wherry.api import Bind, Engine

ROOT = "while read -r line; do case $line in *' / / '*) echo \"$line\";; esac; done < /proc/self/mountinfo"

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        yield made


def options(engine: Engine, **request: Any) -> str:
    """The mount options of a container's root (proc_pid_mountinfo(5); newer kernels say "fsync=volatile")."""
    said = sh(engine, ROOT, image=HOST, **request)
    assert said.code == 0, said
    assert " overlay " in said.out, said
    return said.out


def test_one_that_removes_itself_is_volatile(engine: Engine) -> None:
    assert "volatile" in options(engine, remove=True)


def test_one_that_stays_is_not(engine: Engine) -> None:
    assert "volatile" not in options(engine, remove=False, name="stays")
    engine.remove("stays")


def test_one_that_a_worker_mounts_as_well_is_not(engine: Engine) -> None:
    volume = Bind("volume", "filled", "/bin")
    assert "volatile" not in options(engine, remove=True, mounts=(volume,))
    assert sh(engine, "true", image=HOST, remove=True, mounts=(volume,)).code == 0
    engine.remove_volume("filled")


def test_it_fails_and_starts_anew(engine: Engine) -> None:
    """What its mount left in the way goes with it."""
    for _ in range(3):
        assert sh(engine, "echo x > /file; exit 3", image=HOST, remove=True).code == 3
