"""Images: pull, load, list, tag, remove; and ``ensure``, by which a container gets its image, present and unpacked.

Names are normalised as docker does; a prefix that is a transport's id ("archive:", "host:") says where an image comes from. What
an image source leaves unnamed is kept under the reference that named the source.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from wherry.api import (
    Descriptor,
    Error,
    GcReport,
    Image,
    ImageInfo,
    Invalid,
    NamedImage,
    NotFound,
    Progress,
    Store,
    Transport,
)
from wherry.engine.images.content import Content, Documents, bare
from wherry.engine.images.fetch import Fetcher, Report
from wherry.engine.images.gc import GarbageCollector
from wherry.engine.images.imports import ReconfiguredTransport
from wherry.engine.images.lookup import ImageLookup, image_info
from wherry.engine.images.references import NAMELESS, familiar, normalize, repository, split_transport
from wherry.engine.images.save import Saver
from wherry.engine.images.sizes import Sizes
from wherry.engine.images.unpack import Unpacker
from wherry.engine.state.locks import KeyedLocks
from wherry.interfaces.engine import watching
from wherry.interfaces.images import ArchiveFormat, DiskUsage, LayerFile, LayerUse
from wherry.spec.distribution import host_platform

if TYPE_CHECKING:
    from wherry.engine.containers.records import ContainerRecord
    from wherry.engine.state.leases import Lease, Leases
    from wherry.kernel import Drivers, Kernel


@frozen
class ReadyImage:
    """An image that a container can start from: unpacked as the snapshot chain_id ("" where it has no layer). config is the whole
    image config document (OCI image-spec, config.md)."""

    image: ImageInfo
    config: Mapping[str, Any]
    chain_id: str


class Images:
    """All verbs on images. Thread-safe; callers that want the same blob or chain do the work once."""

    def __init__(self, kernel: Kernel, leases: Leases) -> None:
        self._kernel = kernel
        self._leases = leases
        self._documents = Documents()
        self._catalogue = ImageLookup(self._documents, kernel.transports)
        self._locks = KeyedLocks()
        self._gate = threading.Lock()  # an item is leased, or found unleased and deleted: never both at once
        self._unpacker = Unpacker(kernel, kernel.workers, self._hold)
        #: What containers and others hold, written as in Context.hold; the engine says it, for gc to leave it alone.
        self.live: Callable[[], Collection[str]] = kernel.gc_roots
        self._collector = GarbageCollector(kernel, leases, self._documents, self._gate, self._alive)
        self._saver = Saver(self._documents, self._catalogue, self._lease)
        self._sizes = Sizes(kernel, self._documents)

    def close(self) -> None:
        self._unpacker.close()

    # from elsewhere

    def pull(self, reference: str, platform: str = "") -> Iterator[Progress]:
        """Fetches and unpacks for the default variant; the last Progress has the image's name and "done"."""
        transport, rest = self._source(reference)
        drivers = self._kernel.variant()

        def work(report: Report) -> None:
            with self._leases.hold() as lease:
                report(Progress(reference, "resolving"))
                image, _content = self._fetch(transport, rest, platform, drivers, lease, report)[0]
                report(Progress(image.name, "done"))

        return _stream(work)

    def load(self, reference: str, platform: str = "") -> tuple[ImageInfo, ...]:
        """All images that a reference stands for, into the default store; they are unpacked when they are first used."""
        transport, rest = self._source(reference)
        drivers = self._kernel.variant()
        with self._leases.hold() as lease:
            found = self._fetch(transport, rest, platform, drivers, lease, lambda _progress: None, all_of_them=True)
            return self._catalogue.held(drivers.store, found)

    def import_image(
        self, reference: str, name: str, changes: tuple[str, ...], message: str, platform: str = ""
    ) -> ImageInfo:
        """The one image that a reference stands for, with a config changed by lines as of a Dockerfile, under a name of its own or
        under none."""
        transport, rest = self._source(reference)
        full = normalize(name) if name else ""
        if "@" in full:
            raise Invalid(f'image "{name}"', "a digest can't be given as a name")
        drivers = self._kernel.variant()
        with self._leases.hold() as lease:
            source = ReconfiguredTransport(
                self._kernel.transport(transport), rest, platform or host_platform(), changes, message
            )
            (named,) = source.resolve(rest, platform)
            found = [(named, full or f"{NAMELESS}{named.target.digest}")]
            brought = self._bring(source, rest, found, platform, drivers, lease, lambda _progress: None, unpack=False)
            return self._catalogue.held(drivers.store, brought)[0]

    def save(self, names: Collection[str], form: ArchiveFormat, platform: str = "") -> Iterator[bytes]:
        """Images as an archive, in pieces. All errors come from the iterator."""
        with self._leases.apart() as lease:
            yield from self._saver.save(self._kernel.variant().store, names, form, platform, lease)

    def layers(self, name: str, platform: str = "") -> tuple[LayerUse, ...]:
        """The layers of an image, the lowest first."""
        store = self._kernel.variant().store
        image = self._catalogue.find(store, name)[0]
        return self._sizes.layers(store, self._documents.content(store, image.target, platform, name))

    def layer_files(self, name: str, layer: str, platform: str = "") -> Iterator[LayerFile]:
        """What is in a layer."""
        store = self._kernel.variant().store
        image = self._catalogue.find(store, name)[0]
        return self._sizes.files(store, self._documents.content(store, image.target, platform, name), layer)

    def disk_usage(self, records: Iterable[ContainerRecord], *, images_only: bool) -> DiskUsage:
        """Of images and, unless images_only, of the containers of these records."""
        return self._sizes.usage(self._kernel.variant().store, records, images_only=images_only)

    def ensure(
        self,
        reference: str,
        drivers: Drivers,
        platform: str = "",
        pull: Literal["missing", "always", "never"] = "missing",
    ) -> ReadyImage:
        """Present and unpacked in drivers' store and snapshotter. pull says when the transport is asked: where a name is known
        here already, "missing" takes it as it is. An archive is always read: it is a file here, and its names are in it."""
        with self._leases.hold() as lease:
            image = None if pull == "always" else self._catalogue.local(drivers.store, reference)
            if image is None and pull == "never":
                raise NotFound(f'image "{reference}"', "is not here, and --pull=never forbids to fetch it")
            if image is not None:
                try:
                    return self._ready(image, drivers, platform, lease)
                except NotFound:
                    # Of an index only the platforms that were asked for are here; fetch the one wanted now.
                    if pull == "never" or not self._can_fetch(reference):
                        raise
            transport, rest = self._source(reference)
            report = watching.get()
            image, _content = self._fetch(transport, rest, platform, drivers, lease, report)[0]
            report(Progress(image.name, "done"))
            return self._ready(image, drivers, platform, lease)

    # what is here

    def list(self, prefix: str = "") -> tuple[ImageInfo, ...]:
        """Every image of the default store, by its first name. prefix is that of a name in its full or its short form."""
        return tuple(self._catalogue.list(self._kernel.variant().store, prefix))

    def get(self, name: str, platform: str = "") -> ImageInfo:
        """By name, digest, id or the beginning of an id (4 hex digits or more). NotFound; Invalid for an ambiguous beginning."""
        return self._catalogue.info(self._kernel.variant().store, name, platform)

    def config(self, digest: str, drivers: Drivers, platform: str = "") -> Mapping[str, Any]:
        """The config document of the image at a manifest's or an index's digest."""
        store = drivers.store
        for image in store.list():
            if image.target.digest == digest:
                return self._documents.content(store, image.target, platform).config.document
        return self._documents.content(store, bare(store, digest), platform).config.document

    def tag(self, source: str, target: str) -> ImageInfo:
        """One more name for an image; a name that was another's moves."""
        store = self._kernel.variant().store
        name = normalize(target)
        if "@" in name:
            raise Invalid(f'image "{target}"', "a digest can't be given as a name")
        with self._leases.hold() as lease:
            image = self._catalogue.find(store, source)[0]
            self._lease(lease, store, image)
            self._tag(store, name, image.target)
            return self._catalogue.info(store, name, "")

    def remove(self, name: str, *, force: bool = False) -> tuple[str, ...]:
        """Removes a name; with the last name goes the image. By id all names go, which needs force when there are several.

        The answer is docker-like: "Untagged: NAME", "Deleted: DIGEST".
        """
        store = self._kernel.variant().store
        images = self._catalogue.find(store, name)
        by_name = self._catalogue.by_name(store, name)
        if by_name is not None:
            doomed: Sequence[Image] = [by_name]
        else:
            doomed = images
            if len({repository(image.name) for image in images}) > 1 and not force:
                names = ", ".join(familiar(image.name) for image in images)
                raise Error(f'image "{name}"', f"has several names: {names}", "remove one name after another, or force")
        lines = []
        for image in doomed:
            store.untag(image.name, expected=image.target.digest)
            if not image.name.startswith(NAMELESS):
                lines.append(f"Untagged: {familiar(image.name)}")
        if len(doomed) == len(images):
            for target in {image.target.digest: image.target for image in images}.values():
                lines += [f"Deleted: {digest}" for digest in self._collector.drop(store, target)]
        return tuple(lines)

    def gc(self) -> GcReport:
        """Removes blobs and snapshots that no image, lease, container or plugin holds."""
        return self._collector.collect()

    # parts

    def _source(self, reference: str) -> tuple[str, str]:
        """(transport, reference without prefix). NotFound where there is no transport to ask."""
        transport, rest = split_transport(reference, self._kernel.transports())
        if transport:
            return transport, rest
        name = normalize(reference)
        default = self._kernel.loaded.config.engine.transport
        if not default:
            raise NotFound(
                f'image "{familiar(name)}"',
                "is not here, and no transport is set to fetch it",
                "load it from an archive, take programs of this host by host:/bin/sh, or set [engine] transport",
            )
        return default, name

    def _can_fetch(self, reference: str) -> bool:
        transport, _rest = split_transport(reference, self._kernel.transports())
        return bool(transport or self._kernel.loaded.config.engine.transport)

    def _fetch(
        self,
        transport: str,
        rest: str,
        platform: str,
        drivers: Drivers,
        lease: Lease,
        report: Report,
        *,
        all_of_them: bool = False,
    ) -> Sequence[tuple[Image, Content]]:
        """(name in the store, content) of what a transport finds: the first, unpacked as it comes, or all, as they are."""
        source = self._kernel.transport(transport)
        found = source.resolve(rest, platform or host_platform())
        if not found:
            raise NotFound(f'image "{transport}:{rest}"', "the source has no image")
        names = self._names(transport, rest, found)
        named = list(zip(found, names, strict=True))
        if not all_of_them:
            named = [item for item in named if item[0].target.digest == found[0].target.digest]
        return self._bring(source, rest, named, platform, drivers, lease, report, unpack=not all_of_them)

    def _bring(
        self,
        source: Transport,
        rest: str,
        found: Sequence[tuple[NamedImage, str]],
        platform: str,
        drivers: Drivers,
        lease: Lease,
        report: Report,
        *,
        unpack: bool,
    ) -> Sequence[tuple[Image, Content]]:
        fetcher = Fetcher(
            drivers.store, source, rest, self._documents, self._locks, lease=lease, hold=self._hold, report=report
        )
        result: list[tuple[Image, Content]] = []
        for named, name in found:
            self._kernel.verify(name, named.target)
            content = fetcher.documents(named.target, platform)
            with fetcher.layers(content) as arrivals:
                if unpack:
                    self._unpacker.unpack(content, drivers, lease, report, arrivals)
            result.append((self._tag(drivers.store, name, named.target), content))
        return result

    def _names(self, transport: str, rest: str, found: tuple[NamedImage, ...]) -> Sequence[str]:
        """Full names. Unnamed images get the reference that led to them, as far as that is one image's name."""
        names = []
        own = f"{transport}:{rest}"
        for named in found:
            if name := _normal(named.name):
                names.append(name)
            elif own not in names:
                names.append(rest if transport == self._kernel.loaded.config.engine.transport else own)
            else:
                names.append(f"{NAMELESS}{named.target.digest}")
        return names

    def _ready(self, image: Image, drivers: Drivers, platform: str, lease: Lease) -> ReadyImage:
        self._lease(lease, drivers.store, image)
        self._kernel.verify(image.name, image.target)
        content = self._documents.content(drivers.store, image.target, platform, familiar(image.name))
        chain_id = self._unpacker.unpack(content, drivers, lease, lambda _progress: None)
        return ReadyImage(image_info([image], content), content.config.document, chain_id)

    def _alive(self) -> Collection[str]:
        return self.live()

    def _hold(self, lease: Lease, resource: str) -> None:
        with self._gate:
            lease.add(resource)

    def _lease(self, lease: Lease, store: Store, image: Image) -> None:
        """Keeps an image and all that it leads to. NotFound where it went between the look-up of its name and now."""
        self._hold(lease, f"blob/{image.target.digest}")
        try:
            store.info(image.target.digest)
        except NotFound:
            raise NotFound(f'image "{familiar(image.name)}"', "it was removed just now") from None

    def _tag(self, store: Store, name: str, target: Descriptor) -> Image:
        """Under the gate: gc looks at names when it holds it."""
        with self._gate:
            image = store.tag(name, target, {})
            self._collector.named(store, target)
            return image


def _normal(name: str) -> str:
    """The full form of a name that a source gives; "" for one that no user could write."""
    try:
        return normalize(name)
    except Invalid:
        return ""


class _ReaderGone(BaseException):
    """The reader of a stream went away."""


def _stream(work: Callable[[Report], None]) -> Iterator[Progress]:
    """What work reports, while it runs on a thread of its own. Closing the iterator ends the work at its next report."""
    reports: queue.SimpleQueue[Progress | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def report(progress: Progress) -> None:
        if stopped.is_set():
            raise _ReaderGone
        reports.put(progress)

    def run() -> None:
        try:
            work(report)
            reports.put(None)
        except BaseException as error:
            reports.put(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="wherry-pull", daemon=True)
    thread.start()
    try:
        while (item := reports.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


__all__ = ["Images", "ReadyImage"]
