"""The root of a container that removes itself is never synced, and only its."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import engine_of_a_module
from support.running import HOST, sh
from wherry.api import Bind, Engine
from wherry.kit.snapshots.stacked import StackedSnapshotter

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


@pytest.mark.parametrize(("script", "quick"), [("true", True), ("echo x > /file", False)])
def test_what_its_mount_leaves_is_deleted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, script: str, quick: bool
) -> None:
    """Also by the way that is quick where nothing was written, which knows the names of what the kernel makes."""
    engine.gc()  # what tests before this one have left
    found: list[bool] = []
    real = StackedSnapshotter._erase_empty

    def noted(directory: str) -> bool:
        found.append(real(directory))
        return found[-1]

    monkeypatch.setattr(StackedSnapshotter, "_erase_empty", staticmethod(noted))
    assert sh(engine, script, image=HOST, remove=True).code == 0
    engine.gc()
    assert found == [quick]
    top = engine.root / "snapshotter/overlayfs/snapshots"  # type: ignore[attr-defined]
    assert len(list(top.iterdir())) == 1, "the image's layer"
