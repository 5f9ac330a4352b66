"""save: images as one tar stream that other tools load."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from wherry.api import Descriptor, Error, Image, Invalid, NotFound, Store
from wherry.engine.images.content import Content, Documents
from wherry.engine.images.references import NAMELESS, normalize, repository
from wherry.interfaces.images import ArchiveFormat
from wherry.spec.distribution import INDEX, Index
from wherry.spec.layout import IMAGE_NAME, LAYOUT, REF_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.engine.images.lookup import ImageLookup
    from wherry.engine.state.leases import Lease

_CHUNK = 1 << 20


@frozen
class _Chosen:
    """target is what the archive's index points at; names are full ones."""

    target: Descriptor
    content: Content
    names: tuple[str, ...]


class Saver:
    """lease keeps an image and all that it leads to, or raises NotFound."""

    def __init__(
        self, documents: Documents, catalogue: ImageLookup, lease: Callable[[Lease, Store, Image], None]
    ) -> None:
        self._documents = documents
        self._catalogue = catalogue
        self._lease = lease

    def save(
        self, store: Store, names: Collection[str], form: ArchiveFormat, platform: str, lease: Lease
    ) -> Iterator[bytes]:
        """The archive in pieces. NotFound and Invalid come before the first of them."""
        if form not in ("docker-archive", "oci-archive"):
            raise Invalid(f'format "{form}"', "is neither docker-archive nor oci-archive")
        chosen: dict[str, _Chosen] = {}
        for name in names:
            for image, kept in self._find(store, name):
                self._lease(lease, store, image)
                found = self._choose(store, image, platform)
                known = chosen.get(found.target.digest)
                tags = (*(known.names if known else ()), *kept)
                chosen[found.target.digest] = _Chosen(found.target, found.content, tuple(dict.fromkeys(tags)))
        if not chosen:
            raise Invalid("save", "no image was named")
        yield from self._archive(store, tuple(chosen.values()), form)

    def _find(self, store: Store, name: str) -> Sequence[tuple[Image, tuple[str, ...]]]:
        """Images and the names under which they are saved. A repository without a tag means all of its tags, as for docker."""
        images = self._catalogue.find(store, name) if not _is_repository(name) else ()
        if images:
            by_name = self._catalogue.by_name(store, name)
            named = by_name is not None and not by_name.name.startswith(NAMELESS)
            return [(images[0], (images[0].name,) if named else ())]
        wanted = repository(normalize(name))
        found = [image for image in store.list(wanted) if repository(image.name) == wanted and "@" not in image.name]
        if found:
            return [(image, (image.name,)) for image in found]
        images = self._catalogue.find(store, name)
        return [(images[0], ())]

    def _choose(self, store: Store, image: Image, platform: str) -> _Chosen:
        """All platforms of an image where all are here and none was asked for; else the one manifest."""
        content = self._documents.content(store, image.target, platform)
        document = self._documents.target(store, image.target)
        target = content.target
        if isinstance(document, Index) and not platform and self._is_whole(store, image.target):
            target = image.target
        return _Chosen(target, content, ())

    def _is_whole(self, store: Store, target: Descriptor) -> bool:
        try:
            for item in self._documents.references(store, target):
                store.info(item.digest)
        except NotFound:
            return False
        return True

    def _archive(self, store: Store, chosen: Sequence[_Chosen], form: ArchiveFormat) -> Iterator[bytes]:
        blobs: dict[str, Descriptor] = {}
        for one in chosen:
            for item in self._documents.references(store, one.target):
                blobs.setdefault(item.digest, item)
        yield _header("blobs/", 0, directory=True)
        yield _header("blobs/sha256/", 0, directory=True)
        for digest in sorted(blobs):
            yield from _blob(store, blobs[digest])
        yield from _file("oci-layout", LAYOUT)
        manifests = [entry for one in chosen for entry in _entries(one, form)]
        yield from _file("index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
        if form == "docker-archive":
            yield from _file("manifest.json", [_docker(one) for one in chosen])
        yield bytes(2 * tarfile.BLOCKSIZE)


def _is_repository(name: str) -> bool:
    """A name without tag and digest that is no beginning of an id, and not a transport's own words."""
    try:
        normalize(name)
    except Invalid:
        return False
    rest = name.rpartition("/")[2]
    return ":" not in rest and "@" not in rest and not (len(name) >= 4 and not name.strip("0123456789abcdef"))


def _entries(one: _Chosen, form: ArchiveFormat) -> Iterator[dict[str, Any]]:
    """Of index.json (image-spec, image-layout.md): one a name. docker writes the tag alone as the reference's name."""
    entry: dict[str, Any] = {
        "mediaType": one.target.media_type,
        "digest": one.target.digest,
        "size": one.target.size,
    }
    for name in one.names or ("",):
        tag = name.rpartition(":")[2] if form == "docker-archive" else name
        yield {**entry, "annotations": {IMAGE_NAME: name, REF_NAME: tag}} if name else entry


def _docker(one: _Chosen) -> dict[str, Any]:
    """Of manifest.json: the image for one platform."""
    return {
        "Config": _path(one.content.manifest.config.digest),
        "RepoTags": list(one.names) or None,  # whole: podman takes a short one for localhost's
        "Layers": [_path(layer.digest) for layer in one.content.manifest.layers],
    }


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    """Without times and owners, so that the same images give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if directory else 0o444
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT)


def _file(name: str, document: Any) -> Iterator[bytes]:
    data = json.dumps(document, separators=(",", ":")).encode()
    yield _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _blob(store: Store, target: Descriptor) -> Iterator[bytes]:
    with store.open(target.digest) as stream:
        yield _header(_path(target.digest), target.size)
        left = target.size
        while left:
            data = stream.read(min(_CHUNK, left))
            if not data:
                raise Error(f'blob "{target.digest}"', f"lacks its last {left} bytes", "run wherry doctor")
            left -= len(data)
            yield data
        yield bytes(-target.size % tarfile.BLOCKSIZE)


__all__ = ["Saver"]
