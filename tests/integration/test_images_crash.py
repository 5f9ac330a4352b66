"""An engine killed in the middle of a pull: the next one finds a sound store, goes on, and can collect the rest."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.images_area import image_layout, pack, world
from support.layers import directory, member, tar

CODE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.images_area import world
with world(Path(sys.argv[2]), sys.argv[3]) as made:
    print("open", flush=True)
    made.images.ensure(sys.argv[4], made.drivers)
    made.images.remove(sys.argv[4])
    made.images.gc()
    print("done", flush=True)
"""


def check(root: Path) -> None:
    """What has to hold after any crash, looked at without the driver's code."""
    blobs = root / "store/local/blobs/sha256"
    for path in blobs.iterdir() if blobs.exists() else ():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, "a blob is what its name says"


@pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])
def test_killed_at_any_moment(tmp_path: Path, snapshotter: str) -> None:
    chance = random.Random(7)
    layers = [
        tar(directory(f"d{number}"), *(member(f"d{number}/{name}", data=os.urandom(20_000)) for name in range(20)))
        for number in range(4)
    ]
    image_layout(tmp_path / "l", layers)
    source = f"archive:{pack(tmp_path / 'l', tmp_path / 'x.tar')}"
    top = str(Path(__file__).parent.parent)
    finished = 0
    for _round in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", CODE, top, str(tmp_path / "w"), snapshotter, source],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n", "a store that was left in any state opens"
        time.sleep(chance.uniform(0, 0.5))
        child.send_signal(signal.SIGKILL)
        finished += "done" in child.stdout.read()
        child.wait()
        child.stdout.close()
        check(tmp_path / "w/root")
    with world(tmp_path / "w", snapshotter) as made:
        ready = made.images.ensure(source, made.drivers)
        (mount,) = made.drivers.snapshotter.prepare("c", ready.chain_id)
        assert mount
        made.drivers.snapshotter.remove("c")
        made.images.remove(source)
        made.images.gc()
        assert made.images.gc().blobs == (), "a second collection finds nothing"
        assert list(made.drivers.store.walk()) == []
        assert list(made.drivers.store.ingests()) == []
        assert list(made.drivers.snapshotter.walk()) == []
    assert os.listdir(tmp_path / "w/root/store/local/blobs/sha256") == []
    assert os.listdir(tmp_path / "w/root/store/local/ingest") == []
    assert os.listdir(tmp_path / f"w/root/snapshotter/{snapshotter}/snapshots") == []
    assert finished < 10, "not every round may end before it is killed"
