"""volume.local against what a container may leave in a volume."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry_plugins.volume import local

DEPTH = 1100


@pytest.fixture
def volumes(tmp_path: Path) -> Any:
    return local.LocalVolumes(local.LocalConfig(), SimpleNamespace(root=tmp_path))  # type: ignore[arg-type]


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As many as there are now, and some: those of an engine are all its containers'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(name) for name in os.listdir("/proc/self/fd")) + 200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def deep(volumes: Any) -> None:
    """A volume in which somebody went down and down."""
    fd = os.open(volumes.create("v", {}, {}).mountpoint, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_volume_that_is_deep_goes(volumes: Any, tmp_path: Path, few_descriptors: None) -> None:
    deep(volumes)
    volumes.remove("v")
    assert os.listdir(tmp_path) == []


def test_what_is_left_of_one_goes_with_the_next_engine(volumes: Any, tmp_path: Path, few_descriptors: None) -> None:
    deep(volumes)
    (tmp_path / "v").rename(tmp_path / ".gone-1")
    local.LocalVolumes(local.LocalConfig(), SimpleNamespace(root=tmp_path))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_volume_that_is_deep_goes_twin(
    volumes: Any, tmp_path: Path, few_descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep(volumes)
    with monkeypatch.context() as patched:
        patched.setattr(local, "remove", lambda fd, name: shutil.rmtree(name, dir_fd=fd))
        with pytest.raises((OSError, RecursionError)):
            volumes.remove("v")
    (left,) = os.listdir(tmp_path)
    volumes._erase(left)
