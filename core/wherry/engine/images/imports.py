"""import: a tree in a tar becomes an image of one layer, with a config that the caller changes."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO

from wherry.api import Descriptor, Digest, Invalid, NamedImage, Transport
from wherry.spec.changes import changed
from wherry.spec.distribution import MANIFEST, Manifest, parse_target
from wherry.spec.document import DOCUMENT_MAX, parse
from wherry.spec.image import parse_config


class ReconfiguredTransport:
    """A transport that answers one image of another one's with a config of its own; its layers are fetched from there."""

    def __init__(
        self, source: Transport, reference: str, platform: str, changes: tuple[str, ...], message: str
    ) -> None:
        self._source = source
        self._documents: dict[str, bytes] = {}
        found = source.resolve(reference, platform)
        if len(found) != 1:
            raise Invalid(f'image "{reference}"', f"stands for {len(found)} images, only one can be imported")
        self._named = found[0]
        manifest = parse_target(self._read(reference, found[0].target), found[0].target)
        if not isinstance(manifest, Manifest):
            raise Invalid(f'image "{reference}"', "is an index, not one image")
        config = parse(self._read(reference, manifest.config), f'image config "{manifest.config.digest}"')
        now = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        inner = config.get("config")
        document = {
            **config,
            "created": now,
            "config": changed(inner if isinstance(inner, dict) else {}, changes),
            "history": [{"created": now, "comment": message or "Imported from -"}],
        }
        target = self._add(document, manifest.config.media_type)
        parse_config(self._documents[target.digest], target)  # Invalid: a change that no container could start with
        described = [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in manifest.layers
        ]
        whole = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": target.media_type, "digest": target.digest, "size": target.size},
            "layers": described,
        }
        self._named = NamedImage("", self._add(whole, MANIFEST))

    def resolve(self, reference: str, platform: str) -> tuple[NamedImage, ...]:
        return (self._named,)

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        own = self._documents.get(descriptor.digest)
        return self._source.fetch(reference, descriptor, offset) if own is None else io.BytesIO(own[offset:])

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        raise Invalid(f'image "{reference}"', "can't be pushed to")

    def _read(self, reference: str, target: Descriptor) -> bytes:
        with self._source.fetch(reference, target, 0) as stream:
            data = stream.read(DOCUMENT_MAX + 1)
        if len(data) != target.size or f"sha256:{hashlib.sha256(data).hexdigest()}" != target.digest:
            raise Invalid(f'document "{target.digest}"', "is not what its descriptor says")
        return data

    def _add(self, document: Mapping[str, Any], media_type: str) -> Descriptor:
        data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
        self._documents[digest] = data
        return Descriptor(media_type, digest, len(data))


__all__ = ["ReconfiguredTransport"]
