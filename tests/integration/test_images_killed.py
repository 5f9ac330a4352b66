"""kill -9, or an error, at every durable step of the verbs on images: a sample by default, all with WHERRY_TESTS_ALL=1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize(
    ("verb", "victim", "snapshotter", "at_least"),
    [
        ("pull", "engine", "overlayfs", 50),
        ("load", "engine", "overlayfs", 25),
        ("unpack", "engine", "overlayfs", 15),
        ("import", "engine", "overlayfs", 12),
        ("gc", "engine", "overlayfs", 15),
        ("rmi", "engine", "overlayfs", 15),
        ("unpack", "engine", "vfs", 15),
        ("gc", "engine", "vfs", 15),
        ("pull", "errors", "overlayfs", 50),
        ("gc", "errors", "overlayfs", 15),
        ("unpack", "errors", "vfs", 15),
        ("rmi", "errors", "overlayfs", 12),
        ("import", "errors", "vfs", 12),
        ("unpack", "worker", "overlayfs", 16),
        ("unpack", "worker", "vfs", 16),
        ("unpack", "worker-errors", "overlayfs", 16),
        ("unpack", "worker-errors", "vfs", 16),
    ],
)
def test_killed_at_a_step(tmp_path: Path, verb: str, victim: str, snapshotter: str, at_least: int) -> None:
    """Resumed or collected, nothing lost: see ``support.killing.check``."""
    argv = [sys.executable, "-m", "support.killing", verb, victim, snapshotter, str(tmp_path), "0" if ALL else "5"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=3500 if ALL else 110, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["steps"] >= at_least, "as many steps as the verb has at least"
    least = 1 if "errors" in victim else report["steps"] // 2 if ALL else 3  # what only tidies up may bear an error
    assert report["killed"] >= least, report


def test_the_twin_is_caught(tmp_path: Path) -> None:
    """A store that does not look after a crash: the check finds a file without a row, or the reverse."""
    argv = [sys.executable, "-m", "support.killing", "load", "engine", "vfs", str(tmp_path), "0", "recovery"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr
