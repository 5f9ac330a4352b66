"""Layers in a user namespace, as an ordinary user's workers unpack them: overlayfs with marks in user.overlay.* and vfs agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.generated import Generator
from support.images_area import image_layout, mounted, world
from support.layers import tar, tree
top = Path(sys.argv[2])
for seed in range(3):
    image_layout(top / f"{seed}", [tar(*members) for members in Generator(seed).layers(5)])
    seen = {}
    for snapshotter in ("overlayfs", "vfs"):
        with world(top / snapshotter, snapshotter) as made:
            ready = made.images.ensure(f"layout:{top / str(seed)}", made.drivers)
            can = made.kernel.capabilities("snapshotter", "overlayfs").provides
            assert {"rebase", "userxattr"} <= can, can
            with mounted(made.drivers.snapshotter.view(f"look-{seed}", ready.chain_id), top / f"{snapshotter}-{seed}") as root:
                seen[snapshotter] = tree(root, times=True)
    assert seen["overlayfs"] == seen["vfs"], seed
    assert len(seen["vfs"]) > 5
print("the same")
"""


def test_overlayfs_and_vfs_agree_in_a_user_namespace(tmp_path: Path) -> None:
    argv = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]
    tried = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False, timeout=30)
    if tried.returncode:
        pytest.skip(f"no user namespace: {tried.stderr.strip()}")
    argv += [sys.executable, "-c", CODE, str(Path(__file__).parent.parent), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=110)
    assert done.stdout == "the same\n", done.stderr
