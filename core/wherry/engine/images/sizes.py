"""What images and containers take on disk, and what images share; what is in a layer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from attrs import frozen

from wherry.api import Digest, Image, Invalid, NotFound, Snapshotter, Store
from wherry.engine.images.content import Content, Documents
from wherry.engine.images.gc import present
from wherry.engine.images.references import NAMELESS, familiar
from wherry.engine.state.pacing import paced
from wherry.interfaces.images import ContainerUse, DiskUsage, ImageUse, LayerFile, LayerUse
from wherry.spec.distribution import MANIFESTS

if TYPE_CHECKING:
    from wherry.engine.containers.records import ContainerRecord
    from wherry.kernel import Kernel


@frozen
class _Group:
    """One image with its names and, for each platform that is here, its content."""

    id: str
    names: tuple[str, ...]
    target: str
    contents: tuple[Content, ...]

    @property
    def label(self) -> str:
        return familiar(self.names[0]) if self.names else self.id

    def parts(self) -> dict[str, int]:
        """Blobs by their digests, with sizes."""
        found: dict[str, int] = {}
        for content in self.contents:
            found[content.target.digest] = content.target.size
            found[content.manifest.config.digest] = content.manifest.config.size
            found.update({layer.digest: layer.size for layer in content.manifest.layers})
        return found

    def chains(self) -> set[str]:
        return {name for content in self.contents for name in content.config.chain_ids()}


class Sizes:
    """Over the default store and all snapshotters."""

    def __init__(self, kernel: Kernel, documents: Documents) -> None:
        self._kernel = kernel
        self._documents = documents

    def layers(self, store: Store, content: Content) -> tuple[LayerUse, ...]:
        """The lowest first."""
        groups = [group for group in self._groups(store) if content.target.digest not in _manifests(group)]
        created_by = _history(content)
        result = []
        layers = zip(content.manifest.layers, content.config.diff_ids, content.config.chain_ids(), strict=True)
        for number, (layer, diff_id, chain_id) in enumerate(layers):
            shared = tuple(group.label for group in groups if layer.digest in group.parts())
            unpacked = [size for size in (_usage(each, chain_id) for each in self._snapshotters()) if size is not None]
            result.append(
                LayerUse(
                    layer.digest, diff_id, chain_id, layer.media_type, layer.size, sum(unpacked) if unpacked else -1,
                    shared, created_by[number] if number < len(created_by) else "",
                )
            )  # fmt: skip
        return tuple(result)

    def files(self, store: Store, content: Content, digest: str) -> Iterator[LayerFile]:
        """What a layer of the image has, in its order. NotFound for a digest that is none of its layers, Invalid for
        a layer that could not be unpacked for what it has."""
        if digest not in {layer.digest for layer in content.manifest.layers}:
            raise NotFound(f'layer "{digest}"', f'the image "{content.target.digest}" has none of that digest')
        scratch = self._kernel.root / "tmp"
        scratch.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as spool:
            with store.open(Digest(digest)) as stream:
                self._kernel.workers.entries(stream, cast(BinaryIO, spool))
            spool.seek(0)
            for line in paced(spool):
                yield LayerFile(*json.loads(line))

    def usage(self, store: Store, records: Iterable[ContainerRecord], *, images_only: bool) -> DiskUsage:
        groups = self._groups(store)
        snapshotters = self._snapshotters()
        sizes: dict[tuple[str, str], int] = {}  # the lowest chain-id may be the digest of a plain layer
        for group in groups:
            sizes.update({("blob", digest): size for digest, size in group.parts().items()})
            for chain in group.chains():
                if ("snapshot", chain) not in sizes:
                    sizes["snapshot", chain] = sum(_usage(each, chain) or 0 for each in snapshotters)
        owners: dict[tuple[str, str], int] = {}
        things = [
            {*(("blob", digest) for digest in group.parts()), *(("snapshot", chain) for chain in group.chains())}
            for group in groups
        ]
        for mine in things:
            for thing in mine:
                owners[thing] = owners.get(thing, 0) + 1
        containers = tuple(records)
        users: dict[str, int] = {}
        for record in containers:
            users[record.image_digest] = users.get(record.image_digest, 0) + 1
        images = []
        used: set[tuple[str, str]] = set()
        for group, mine in zip(groups, things, strict=True):
            count = sum(users.get(digest, 0) for digest in {group.target, *_manifests(group)})
            if count:
                used |= mine
            images.append(
                ImageUse(
                    group.id, group.names, max((content.config.created for content in group.contents), default=0),
                    sum(sizes[thing] for thing in mine), sum(sizes[thing] for thing in mine if owners[thing] > 1), count,
                )
            )  # fmt: skip
        total = sum(sizes.values())
        return DiskUsage(
            tuple(images),
            () if images_only else tuple(self._container(record) for record in containers),
            total,
            total - sum(sizes[thing] for thing in used),
        )

    def _container(self, record: ContainerRecord) -> ContainerUse:
        size = None
        try:
            size = _usage(self._kernel.driver("snapshotter", record.drivers["snapshotter"]), record.id)
        except (KeyError, NotFound):
            size = None
        return ContainerUse(
            record.id, record.name, record.image, record.command, record.created, record.status, size or 0
        )

    def _groups(self, store: Store) -> list[_Group]:
        images: dict[str, list[Image]] = {}
        for image in store.list():
            images.setdefault(image.target.digest, []).append(image)
        groups = []
        for digest, same in images.items():
            contents = []
            for item in self._documents.references(store, same[0].target):
                try:
                    if item.media_type in MANIFESTS:
                        contents.append(self._documents.content(store, item, ""))
                except (NotFound, Invalid):
                    continue
            names = tuple(image.name for image in same if not image.name.startswith(NAMELESS))
            id = contents[0].manifest.config.digest if contents else digest
            groups.append(_Group(id, names, digest, tuple(contents)))
        return groups

    def _snapshotters(self) -> list[Any]:
        return [driver for _id, driver in present(self._kernel, "snapshotter")]


def _manifests(group: _Group) -> set[str]:
    return {content.target.digest for content in group.contents}


def _usage(snapshotter: Snapshotter, name: str) -> int | None:
    try:
        return snapshotter.usage(name)[0]
    except NotFound:
        return None


def _history(content: Content) -> Sequence[str]:
    """The commands that made layers, the lowest first: those of the history that are not empty (image-spec, config.md)."""
    history = content.config.document.get("history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    return [
        str(entry.get("created_by") or entry.get("comment") or "") for entry in entries if not entry.get("empty_layer")
    ]


__all__ = ["Sizes"]
