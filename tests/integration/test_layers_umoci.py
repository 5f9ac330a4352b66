"""Layers made by chance unpack to the trees that umoci makes of them, under overlayfs and under vfs, with no difference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.generated import Generator
from support.images_area import image_layout, mounted, world
from support.layers import tar, tree

ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))
DEPTH = 5
IMAGES = 200 if ALL else 14
PARTS = 10 if ALL else 2

pytestmark = pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed: contrib/setup test")


def by_umoci(layout: Path, bundle: Path) -> Path:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps(index))
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:x", str(bundle)], check=True, capture_output=True, timeout=100
    )
    return bundle / "rootfs"


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {ours.get(name)} is not {theirs.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


@pytest.mark.parametrize("part", range(PARTS))
def test_the_trees_are_those_of_umoci(tmp_path: Path, part: int) -> None:
    found: list[str] = []
    layers = 0
    for seed in range(part, IMAGES, PARTS):
        top = tmp_path / str(seed)
        made = [tar(*members) for members in Generator(seed).layers(DEPTH)]
        layers += len(made)
        image_layout(top / "layout", made)
        theirs = tree(by_umoci(top / "layout", top / "bundle"), times=True)
        for snapshotter in ("overlayfs", "vfs"):
            with world(tmp_path / snapshotter, snapshotter) as ours:
                ready = ours.images.ensure(f"layout:{top / 'layout'}", ours.drivers)
                with mounted(ours.drivers.snapshotter.view("look", ready.chain_id), top / snapshotter) as root:
                    found += [f"{seed} {snapshotter} {line}" for line in differences(tree(root, times=True), theirs)]
                ours.drivers.snapshotter.remove("look")
        shutil.rmtree(top)
    assert not found, "\n".join(found[:20])
    assert layers == DEPTH * len(range(part, IMAGES, PARTS))
