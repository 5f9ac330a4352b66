"""Documents of images out of a store: manifests and configs, parsed once and kept, for a digest never changes its meaning."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from attrs import frozen

from wherry.api import Descriptor, Digest, Invalid, NotFound, Store
from wherry.spec.distribution import (
    INDEX,
    INDEXES,
    MANIFEST,
    MANIFESTS,
    Index,
    Manifest,
    choose,
    host_platform,
    parse_target,
    split,
)
from wherry.spec.document import DOCUMENT_MAX, parse
from wherry.spec.image import ImageConfig, parse_config

T = TypeVar("T")
_KEPT = 4096
_INDEX_DEPTH = 4


@frozen
class Content:
    """One image for one platform, with everything that its documents say. target is its manifest's descriptor."""

    target: Descriptor
    manifest: Manifest
    config: ImageConfig

    @property
    def size(self) -> int:
        """Bytes of its blobs."""
        own = self.target.size + self.manifest.config.size
        return own + sum({layer.digest: layer.size for layer in self.manifest.layers}.values())


class Documents:
    """The parsed documents of all stores, the last 4096 used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parsed: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def content(self, store: Store, target: Descriptor, platform: str, name: str = "") -> Content:
        """The image for a platform. "" is this machine's, or that of an image which has but one. NotFound where a document is not in
        the store or no entry fits; its text calls the image by name, or by its digest."""
        key = (target.digest, platform)
        return self._once(key, lambda: self._content(store, target, platform, f'image "{name or target.digest}"', 0))

    def target(self, store: Store, target: Descriptor) -> Manifest | Index:
        """The parsed manifest or index."""
        key = (target.digest, target.media_type)
        return self._once(key, lambda: parse_target(read(store, target), target))

    def references(self, store: Store, target: Descriptor, depth: int = 0) -> Iterator[Descriptor]:
        """target and all that it leads to. What an index lists and the store does not have is passed over."""
        yield target
        if target.media_type not in MANIFESTS | INDEXES or depth > _INDEX_DEPTH:
            return
        try:
            document = self.target(store, target)
        except (NotFound, Invalid):
            return
        if isinstance(document, Manifest):
            yield document.config
            yield from document.layers
            return
        for item in document.manifests:
            yield from self.references(store, item, depth + 1)

    def unnamed(self, store: Store, digest: str) -> list[Descriptor]:
        """A descriptor for a blob that no name leads to; none where it is not here, or is no document."""
        try:
            store.info(Digest(digest))
        except (NotFound, Invalid):
            return []
        return self._once((digest, "unnamed"), lambda: _unnamed(store, digest))

    def forget(self, digest: str) -> None:
        """A blob went: what was parsed from it is no answer any more."""
        with self._lock:
            for key in [key for key in self._parsed if key[0] == digest]:
                del self._parsed[key]

    def _content(self, store: Store, target: Descriptor, platform: str, what: str, depth: int) -> Content:
        document = self.target(store, target)
        if isinstance(document, Index):
            if depth >= _INDEX_DEPTH:
                raise Invalid(f'image "{target.digest}"', "is an index of indexes without end")
            item = choose(document.manifests, platform or host_platform(), what)
            return self._content(store, item, platform, what, depth + 1)
        config = parse_config(read(store, document.config), document.config)
        if platform and split(config.platform)[:2] != split(platform)[:2]:
            raise NotFound(what, f"has nothing for the platform {platform}", f"it has: {config.platform}")
        if len(config.diff_ids) != len(document.layers):
            raise Invalid(
                f'image "{target.digest}"',
                f"its manifest has {len(document.layers)} layers, its config {len(config.diff_ids)} diff-ids",
            )
        return Content(target, document, config)

    def _once(self, key: tuple[str, str], make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._parsed:
                self._parsed.move_to_end(key)
                found: T = self._parsed[key]
                return found
        made = make()
        with self._lock:
            self._parsed[key] = made
            while len(self._parsed) > _KEPT:
                self._parsed.popitem(last=False)
        return made


def read(store: Store, target: Descriptor) -> bytes:
    """A whole document. Invalid when it is larger than documents may be or not as long as its descriptor says."""
    if target.size > DOCUMENT_MAX:
        raise Invalid(f'document "{target.digest}"', f"is announced with {target.size} bytes, more than {DOCUMENT_MAX}")
    with store.open(Digest(target.digest)) as file:
        data = file.read(target.size + 1)
    if len(data) != target.size:
        raise Invalid(f'document "{target.digest}"', f"is not {target.size} bytes long, as its descriptor says")
    return data


def bare(store: Store, digest: str) -> Descriptor:
    """A descriptor for a manifest that no name leads to: its own words say what it is, OCI's where it says nothing."""
    info = store.info(Digest(digest))
    with store.open(info.digest) as file:
        document = parse(file.read(DOCUMENT_MAX + 1), f'manifest "{digest}"')
    media_type = document.get("mediaType", INDEX if "manifests" in document else MANIFEST)
    if not isinstance(media_type, str):
        raise Invalid(f'manifest "{digest}"', "its mediaType is not a string")
    return Descriptor(media_type, info.digest, info.size)


def _unnamed(store: Store, digest: str) -> list[Descriptor]:
    with store.open(Digest(digest)) as file:
        if file.read(1) != b"{":  # a layer, most often: not to be read whole
            return []
    try:
        return [bare(store, digest)]
    except Invalid:
        return []


__all__ = ["Content", "Documents", "bare", "read"]
