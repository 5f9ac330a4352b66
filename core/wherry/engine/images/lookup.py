"""What is in a store, by every way to name it: full and short names, digests, ids and the beginnings of ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from wherry.api import Image, ImageInfo, Invalid, NotFound, Store
from wherry.engine.images.content import Content, Documents
from wherry.engine.images.references import NAMELESS, familiar, normalize, split_transport

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})", re.ASCII)


class ImageLookup:
    """transports: the ids that a reference may have as its prefix."""

    def __init__(self, documents: Documents, transports: Callable[[], Collection[str]]) -> None:
        self._documents = documents
        self._transports = transports

    def list(self, store: Store, prefix: str = "") -> Sequence[ImageInfo]:
        """Every image of a store, by its first name. prefix is that of a name in its full or its short form."""
        names: dict[tuple[str, str], list[Image]] = {}
        for image in store.list():
            if not prefix or image.name.startswith(prefix) or familiar(image.name).startswith(prefix):
                names.setdefault((image.target.digest, image.target.platform), []).append(image)
        found = []
        for images in names.values():
            try:
                found.append(self.describe(store, images, ""))
            except (NotFound, Invalid):
                found.append(_unreadable(images))
        return found

    def info(self, store: Store, name: str, platform: str) -> ImageInfo:
        """The image that name means. NotFound; Invalid for an ambiguous beginning."""
        return self.describe(store, self.find(store, name), platform)

    def local(self, store: Store, reference: str) -> Image | None:
        """The image that a reference means among those here, None where there is none."""
        transport, _rest = split_transport(reference, self._transports())
        if transport:
            try:
                return store.resolve(reference)
            except NotFound:
                return None
        found = self.by_name(store, reference)  # the common case, and it asks for no list
        if found is not None:
            return found
        try:
            return self.find(store, reference)[0]
        except NotFound:
            return None

    def by_name(self, store: Store, name: str) -> Image | None:
        """The image of that name, in its full or its short form."""
        for candidate in _candidates(name):
            try:
                return store.resolve(candidate)
            except NotFound:
                continue
        return None

    def find(self, store: Store, name: str) -> Sequence[Image]:
        """All names of the image that name, digest, id or the beginning of one means."""
        exact = self.by_name(store, name)
        match = _HEX.fullmatch(name)
        if exact is not None:
            digest = exact.target.digest
            others = (image for image in store.list() if image.target.digest == digest and image.name != exact.name)
            return [exact, *others]
        if match is None:
            if not split_transport(name, self._transports())[0]:
                normalize(name)  # Invalid tells more than NotFound
            raise NotFound(f'image "{name}"', "no such image")
        found: dict[str, list[Image]] = {}
        for image in store.list():
            digests = [image.target.digest]
            try:
                digests.insert(0, self._documents.content(store, image.target, "").manifest.config.digest)
            except (NotFound, Invalid):
                pass
            meant = [digest for digest in digests if digest.removeprefix("sha256:").startswith(match[1])]
            if meant:  # by its id first: layers packed in another way make another manifest of the same image
                found.setdefault(meant[0], []).append(image)
        if not found:
            raise NotFound(f'image "{name}"', "no such image")
        if len(found) > 1:
            raise Invalid(f'image "{name}"', f"is the beginning of {len(found)} ids", "give more of it")
        return next(iter(found.values()))

    def held(self, store: Store, found: Iterable[tuple[Image, Content]]) -> tuple[ImageInfo, ...]:
        """Those whose documents are known, each image once: right also when another client takes a name away at this moment."""
        first: dict[str, tuple[Image, Content]] = {}
        for image, content in found:
            first.setdefault(image.target.digest, (image, content))
        others: dict[str, list[Image]] = {digest: [] for digest in first}
        for other in store.list():
            if other.target.digest in first and other.name != first[other.target.digest][0].name:
                others[other.target.digest].append(other)
        return tuple(image_info([image, *others[digest]], content) for digest, (image, content) in first.items())

    def describe(self, store: Store, images: Sequence[Image], platform: str) -> ImageInfo:
        """One image that has these names."""
        return image_info(images, self._documents.content(store, images[0].target, platform))


def _candidates(name: str) -> Iterator[str]:
    """The full name first, for most are short; then what is kept under a transport's own words."""
    try:
        full = normalize(name)
    except Invalid:
        yield name
        return
    yield full
    if full != name:
        yield name


def image_info(images: Sequence[Image], content: Content) -> ImageInfo:
    return ImageInfo(
        id=content.manifest.config.digest,
        names=tuple(image.name for image in images if not image.name.startswith(NAMELESS)),
        target=images[0].target,
        created=content.config.created,
        size=content.size,
        labels=content.config.labels,
        platform=content.config.platform,
        layers=tuple(content.config.diff_ids),
        config=content.config.document,
    )


def _unreadable(images: Sequence[Image]) -> ImageInfo:
    """An image of which a document is missing or broken: listed, so that it can be removed."""
    target = images[0].target
    names = tuple(image.name for image in images if not image.name.startswith(NAMELESS))
    return ImageInfo(target.digest, names, target, 0, target.size, {}, target.platform)


__all__ = ["ImageLookup", "image_info"]
