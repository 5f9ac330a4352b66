"""Images by hand without an engine: a kernel of real drivers, and a shim that nobody asks."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.layers import digest
from wherry.api import Descriptor, Mount
from wherry.engine.images.images import Images
from wherry.engine.state.database import EngineDatabase
from wherry.engine.state.leases import Leases
from wherry.engine.workers.pool import WorkerPool
from wherry.kernel import Kernel
from wherry.kernel.config import load
from wherry.layers import mounts as worker_mounts

CONFIG = """
version = 1
default = "standard"
[engine]
transport = ""
[variant.standard]
store = "local"
snapshotter = "{snapshotter}"
isolation = ["namespaces", "userns"]
network = "none"
"""


class NoShim:
    """Images need none."""


class World:
    """A root and a run directory with what ``Images`` stands on."""

    def __init__(self, directory: Path, snapshotter: str = "overlayfs", more: str = "") -> None:
        self.root, self.run = directory / "root", directory / "run"
        for path in (self.root, self.run):
            path.mkdir(parents=True, exist_ok=True)
        file = directory / "config.toml"
        file.write_text(CONFIG.format(snapshotter=snapshotter) + more)
        self.workers = WorkerPool(self.run)
        self.kernel = Kernel(
            load(file, {}),
            root=self.root,
            run=self.run,
            shim=NoShim(),
            workers=self.workers,
            publish=lambda event: None,
        )  # type: ignore[arg-type]
        self.database = EngineDatabase(self.root / "wherry.db", lambda *args: None)
        self.leases = Leases(self.database, "test")
        self.images = Images(self.kernel, self.leases)
        self.drivers = self.kernel.variant()

    def close(self) -> None:
        self.images.close()
        self.workers.close()
        self.kernel.close()
        for driver in self.kernel._drivers.values():  # their databases hold the file system that a test unmounts
            getattr(driver._driver, "close", lambda: None)()
        self.database.close()


@contextlib.contextmanager
def world(directory: Path, snapshotter: str = "overlayfs", more: str = "") -> Iterator[World]:
    """more: further tables of the config."""
    made = World(directory, snapshotter, more)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def mounted(mounts: tuple[Mount, ...], at: Path) -> Iterator[Path]:
    """The mounts, made here; the test runs in a mount namespace of its own."""
    at.mkdir(parents=True, exist_ok=True)
    worker_mounts.make([(mount.type, mount.source, mount.target, mount.options) for mount in mounts], str(at))
    try:
        yield at
    finally:
        subprocess.run(["umount", "-R", str(at)], check=True)


def image_layout(
    directory: Path, layers: list[bytes], *, diff_ids: list[str] | None = None, **inner: Any
) -> Descriptor:
    """An OCI image-layout with one image of these uncompressed layers; its manifest's descriptor."""
    from wherry.spec.distribution import CONFIG as CONFIG_TYPE
    from wherry.spec.distribution import LAYER, MANIFEST

    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes) -> dict[str, Any]:
        (blobs / digest(data).partition(":")[2]).write_bytes(data)
        return {"digest": digest(data), "size": len(data)}

    described = [{"mediaType": LAYER, **put(layer)} for layer in layers]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG_TYPE, **put(json.dumps(config).encode())},
        "layers": described,
    }
    entry = {"mediaType": MANIFEST, **put(json.dumps(manifest).encode())}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [entry]}
    (directory / "index.json").write_text(json.dumps(index))
    return Descriptor(MANIFEST, entry["digest"], entry["size"])


def pack(directory: Path, archive: Path) -> Path:
    """A directory as an uncompressed archive."""
    subprocess.run(["tar", "-C", str(directory), "-cf", str(archive), "."], check=True)
    return archive
