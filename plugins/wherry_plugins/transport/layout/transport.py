"""Resolves ``layout:PATH`` and reads its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from attrs import frozen

from wherry.api import Descriptor, Invalid, NamedImage, NotFound
from wherry.kit.files import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, open_at
from wherry.spec.distribution import Index, choose, host_platform
from wherry.spec.document import DOCUMENT_MAX, check_digest
from wherry.spec.layout import IMAGE_NAME, REF_NAME, parse_layout


@frozen
class _LayoutReference:
    """A reference taken apart: tag and digest are "" where none is given."""

    path: Path
    tag: str
    digest: str

    @property
    def what(self) -> str:
        return f'image layout "{self.path}"'


class LayoutTransport:
    """Implements ``wherry.api.Transport``. Nothing is kept open: the directory may change between two calls."""

    def resolve(self, reference: str, platform: str) -> tuple[NamedImage, ...]:
        place = _place(reference)
        directory = _directory(place)
        try:
            index = _index(directory, place)
        finally:
            os.close(directory)
        found = [item for item in index.manifests if _is_meant(item, place)]
        if not found:
            names = sorted({item.annotations[REF_NAME] for item in index.manifests if REF_NAME in item.annotations})
            hint = f"it has: {', '.join(names)[:300]}" if names else "nothing in it has a tag"
            raise NotFound(
                place.what,
                f'has no image "{place.tag or place.digest}"' if place.tag or place.digest else "is empty",
                hint,
            )
        images = _choose(found, platform or host_platform(), place)
        if place.tag or place.digest:
            # Named by the reference that led here: a tag says nothing about whose it is.
            return tuple(NamedImage("", _bare(item)) for item in images[:1])
        return tuple(NamedImage(_name(item), _bare(item)) for item in images)

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        place = _place(reference)
        digest = check_digest(descriptor.digest, place.what)
        directory = _directory(place)
        try:
            file = _open(directory, f"blobs/sha256/{digest.partition(':')[2]}", place, f'blob "{digest}"')
        finally:
            os.close(directory)
        os.lseek(file, offset, os.SEEK_SET)
        return cast(BinaryIO, os.fdopen(file, "rb"))

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        raise Invalid(f'image layout "{reference}"', "can't be pushed to: this transport only reads")


def _place(reference: str) -> _LayoutReference:
    """Invalid for a relative path: it would be one of the engine's directory."""
    what = f'image layout "{reference[:300]}"'
    if not reference.startswith("/") or "\0" in reference:
        raise Invalid(what, "is not an absolute path")
    path, at, digest = reference.rpartition("@")
    if at and digest.startswith("sha256:"):
        return _LayoutReference(Path(path), "", check_digest(digest, what))
    path, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag and not os.path.isdir(reference):
        return _LayoutReference(Path(path), tag, "")
    return _LayoutReference(Path(reference), "", "")


def _directory(place: _LayoutReference) -> int:
    try:
        return os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(place.what, "does not exist") from None
    except NotADirectoryError:
        hint = f"for an archive write archive:{place.path}"
        raise Invalid(place.what, "is not a directory", hint) from None


def _open(directory: int, name: str, place: _LayoutReference, what: str) -> int:
    """A regular file of the layout. Links are followed as far as they stay in it."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        file = open_at(directory, name, flags, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        raise NotFound(what, f"is not in the {place.what}") from None
    except OSError as error:
        raise Invalid(what, f"can't be read in the {place.what}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Invalid(what, f"is not a regular file in the {place.what}")
    return file


def _document(directory: int, name: str, place: _LayoutReference) -> bytes:
    with os.fdopen(_open(directory, name, place, f'file "{name}"'), "rb") as file:
        data = file.read(DOCUMENT_MAX + 1)
    if len(data) > DOCUMENT_MAX:
        raise Invalid(place.what, f'its file "{name}" is larger than {DOCUMENT_MAX >> 20} MiB')
    return data


def _index(directory: int, place: _LayoutReference) -> Index:
    try:
        layout = _document(directory, "oci-layout", place)
    except NotFound:
        raise Invalid(place.what, "is no image layout: it has no file oci-layout") from None
    return parse_layout(layout, _document(directory, "index.json", place), place.what)


def _is_meant(item: Descriptor, place: _LayoutReference) -> bool:
    if place.digest:
        return item.digest == place.digest
    if not place.tag:
        return True
    name, ref = item.annotations.get(IMAGE_NAME, ""), item.annotations.get(REF_NAME, "")
    return place.tag == ref or any(text.endswith(f":{place.tag}") for text in (name, ref))


def _choose(found: Sequence[Descriptor], platform: str, place: _LayoutReference) -> Sequence[Descriptor]:
    """One entry for each name: several of one name are the platforms of one image. NotFound where none of them fits."""
    groups: dict[str, list[Descriptor]] = {}
    for item in found:
        name = item.annotations.get(IMAGE_NAME, "") or item.annotations.get(REF_NAME, "") or item.digest
        groups.setdefault(name, []).append(item)
    return [
        group[0] if len(group) == 1 else choose(group, platform, f'image "{name}" in the {place.what}')
        for name, group in groups.items()
    ]


def _name(item: Descriptor) -> str:
    """The name that a tool gave it; a tag alone, as umoci and skopeo write it, is none."""
    name = item.annotations.get(IMAGE_NAME, "") or item.annotations.get(REF_NAME, "")
    return name if "/" in name or ":" in name else ""


def _bare(item: Descriptor) -> Descriptor:
    return Descriptor(item.media_type, item.digest, item.size, platform=item.platform)
