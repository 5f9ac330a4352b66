"""The drivers that an ordinary user has keep their contracts in that user's namespaces."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from support import rootless
from support.drivers import uplink

ISOLATION = """
from wherry.testing import IsolationContract

class TestUserns(IsolationContract):
    plugin = "wherry_plugins.isolation.userns"
    must_run = True
"""
SNAPSHOTTER = """
from wherry.testing import SnapshotterContract

class TestSnapshotter(SnapshotterContract):
    plugin = "wherry_plugins.snapshotter.{}"
    must_run = True
"""
STORE = """
from wherry.testing import StoreContract

class TestStore(StoreContract):
    plugin = "wherry_plugins.store.local"
    must_run = True
"""
NETWORK = """
from wherry.testing import NetworkContract

class TestNetwork(NetworkContract):
    plugin = "wherry_plugins.network.{}"
    must_run = True
"""


@pytest.mark.parametrize(
    ("suite", "least"),
    [
        (ISOLATION, 30),
        (SNAPSHOTTER.format("overlayfs"), 35),
        (SNAPSHOTTER.format("vfs"), 35),
        (SNAPSHOTTER.format("fuse_overlayfs") + "    depth = 16\n", 35),
        (NETWORK.format("pasta"), 12),
        (NETWORK.format("slirp4netns"), 12),
        (NETWORK.format("bridge"), 7),
        (NETWORK.format("none"), 8),
        (NETWORK.format("host"), 8),
        (STORE, 20),
    ],
    ids=["isolation", "overlayfs", "vfs", "fuse-overlayfs", "pasta", "slirp4netns", "bridge", "none", "host", "store"],
)
@pytest.mark.timeout(400)
def test_the_suite_passes(suite: str, least: int) -> None:
    """least: clauses that pass; what is skipped says why."""
    if reason := rootless.refused():
        pytest.skip(reason)
    # each clause makes a hub and its way out; all of them run in a hub of root's besides (test_bridge.py)
    some = "bridge" in suite and not os.environ.get("WHERRY_TESTS_ALL")
    chosen = ("-k", "reopening or idempotent or gc or published or several or two_networks") if some else ()
    program = next((name for name in ("pasta", "slirp4netns", "fuse-overlayfs") if name.replace("-", "_") in suite), "")
    if program and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if program == "fuse-overlayfs" and not os.path.exists("/dev/fuse"):
        pytest.skip("this kernel has no fuse")
    with (
        uplink() if "network" in suite else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="wh", dir="/tmp") as top,
    ):
        file = Path(top, "test_suite.py")
        file.write_text(suite)
        with rootless.made(Path(top), rootless.installed()) as user:
            done = rootless.inside(
                user, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--basetemp={top}/t", *chosen, str(file),
                timeout=380,
            )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= least, done.stdout[-4000:]
