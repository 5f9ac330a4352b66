"""Archives made to be spoilt, and what has to hold after whatever is hostile."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from support.cost import bounded
from support.images_area import World
from support.layers import digest, member, tar
from wherry.api import Invalid
from wherry.spec.distribution import CONFIG, LAYER, MANIFEST

A = tar(member("a", data=b"a" * 1000))


class Maker:
    """The members of an OCI archive, to be spoilt one by one."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.layer = self.add(A, LAYER)
        self.config = self.add(
            json.dumps(
                {
                    "os": "linux",
                    "architecture": "amd64",
                    "config": {},
                    "rootfs": {"type": "layers", "diff_ids": [digest(A)]},
                }
            ).encode(),
            CONFIG,
        )
        self.point(self.manifest())

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.members[f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def manifest(self, **changes: Any) -> dict[str, Any]:
        whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config, "layers": [self.layer], **changes}
        return self.add(json.dumps(whole).encode(), MANIFEST)

    def point(self, *targets: dict[str, Any]) -> None:
        self.members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": targets}).encode()

    def write(self, path: Path) -> str:
        with tarfile.open(path, "w") as archive:
            for name, data in self.members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return f"archive:{path}"


def nothing_is_left(made: World) -> None:
    assert list(made.drivers.store.list()) == []
    made.images.gc()
    assert list(made.drivers.store.walk()) == []
    assert list(made.drivers.store.ingests()) == []
    assert list(made.drivers.snapshotter.walk()) == []
    scratch = made.root / "transport/archive"
    assert not scratch.exists() or os.listdir(scratch) == []


def refused(made: World, source: str, *errors: type[Exception], match: str | None = None) -> None:
    """Loading it and running it both fail, within bounds."""
    for work in (lambda: made.images.load(source), lambda: made.images.ensure(source, made.drivers)):
        with bounded(), pytest.raises(errors or (Invalid,), match=match):
            work()
    nothing_is_left(made)


class Liar:
    """A hash that says what is wanted."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted

    def update(self, data: bytes) -> None:
        return

    def hexdigest(self) -> str:
        return self._wanted
