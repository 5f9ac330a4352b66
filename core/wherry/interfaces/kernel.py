"""What the kernel gives to a driver, and the record by which a driver announces itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Generic, Protocol, TypeVar

from attrs import frozen

from wherry.interfaces.common import Capabilities, Descriptor, Digest, Event, IdMap, Mount
from wherry.interfaces.process import Shim
from wherry.interfaces.snapshotter import ApartLayer

API = 1
"""The version of this contract. A published signature never changes: a new name is added and this number goes up."""


class Workers(Protocol):
    """Short-lived processes, at most one per CPU, each in a mount namespace whose root is the mounts given.

    Streams need fileno(). A worker cannot see the host's tree; it is nice 5 but for unpacking, copying, describing and listing,
    which somebody waits for.

    A layer can be unpacked while it is fetched: stream is what has come (``Ingest.reader``), feed a pipe that has "+" when there is
    more and "." when that is all. The bytes are not compared with layer.digest then, whoever fetches them does, and such a worker
    is beyond the one per CPU, since it mostly waits. Unavailable where the pipe ends without ".".
    """

    def unpack(
        self,
        mounts: tuple[Mount, ...],
        layer: Descriptor,
        stream: BinaryIO,
        idmap: IdMap = IdMap(),
        *,
        sync: bool = True,
        feed: BinaryIO | None = None,
    ) -> Digest:
        """Applies one layer and answers its diff-id; Invalid when the bytes do not match layer.digest or break a layer rule.

        With sync the files are on disk when it returns (syncfs(2)); without, the caller sees to it before it relies on them."""
        ...

    def unpack_apart(
        self, mounts: tuple[Mount, ...], layer: Descriptor, stream: BinaryIO, marks: str, *, sync: bool = True,
        feed: BinaryIO | None = None,
    ) -> ApartLayer:  # fmt: skip
        """``unpack`` into a tree that has no parents yet. Removals are written as overlayfs has them, marks being the prefix of its
        xattrs ("trusted.overlay."); "" writes none, for a layer that never has parents. FailedPrecondition when the layer can't
        be understood without what is below it."""
        ...

    def diff(self, lower: tuple[Mount, ...], upper: tuple[Mount, ...], sink: BinaryIO, media_type: str) -> Descriptor:
        """Writes the layer that turns lower into upper; the annotation "diff-id" of the answer is the digest of the tar."""
        ...

    def describe(self, stream: BinaryIO) -> Descriptor:
        """What layer a file is that nobody has described: media type, digest, size, and the annotation "diff-id". stream is a tar,
        packed as layers may be; Invalid for other bytes and for a tar without entries."""
        ...

    def entries(self, stream: BinaryIO, spool: BinaryIO) -> int:
        """What a layer has, packed or not: a line for each entry into spool, an empty file, as a JSON list of path, kind, size and
        target, in the words of ``LayerFile``; how many. Invalid for what is no layer, or has more entries than its size justifies."""
        ...

    def populate(self, volume: tuple[Mount, ...], mounts: tuple[Mount, ...], path: str, spool: BinaryIO) -> int:
        """Copies what the tree of mounts has at path into a volume that is empty, with owners, modes and attributes, those of the
        directory itself too; spool is an empty file for the time of it. Should it be cut off, the next one takes away or finishes
        what it left; path "" does no more than that. The number of entries, 0 when there was nothing to do."""
        ...

    def copy(
        self, mounts: tuple[Mount, ...], source: str, target: str, idmap: IdMap = IdMap(), *, reflink: bool = True
    ) -> None:
        """Copies one directory onto another, which is empty; both are names inside the tree of mounts. Owners, modes, xattrs, times,
        links and holes stay; idmap changes owners on the way, from the first of its ids to the second. With reflink data is
        shared where the file system can. Nothing waits for the disk. FileNotFoundError when the source went meanwhile."""
        ...

    def usage(self, mounts: tuple[Mount, ...]) -> tuple[int, int]:
        """(bytes, inodes), a hard-linked file counted once."""
        ...


class Context(Protocol):
    """Kernel services, one object a driver.

    id is "<family>.<id>" of the plugin. root is ``<root>/<family>/<id>`` (0700, durable), run is ``<run>/<family>/<id>``
    (0700, gone after a reboot); both exist before init and nobody else writes there. features are what the kernel probed:
    "overlay", "overlay.userxattr", "mount.idmapped", "cgroup2", "cgroup1", "userns", "seccomp", "time-ns", "pidfd.exit".
    """

    id: str
    variant: str
    uid: int
    root: Path
    run: Path
    features: frozenset[str]
    shim: Shim
    workers: Workers

    def publish(self, event: Event) -> None: ...
    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[None]: ...
    def checkpoint(self) -> None:
        """Raises DeadlineExceeded once the current call's deadline has passed: long loops call it."""
        ...

    def hold(self, resource: str) -> None:
        """Adds "blob/<digest>" or "snapshot/<driver>/<key>" to the current lease."""
        ...

    def credentials(self, host: str) -> tuple[str, str] | None:
        """(user, secret) for a registry host "name[:port]", from the first plugin of the family that knows it; None: nobody does."""
        ...


C = TypeVar("C")
D_co = TypeVar("D_co", covariant=True)


@frozen(kw_only=True)
class Registration(Generic[C, D_co]):
    """What the hook of a kind returns.

    id equals the second half of the entry point's name; api is the API version the plugin was written for. config is an
    attrs class whose defaults are the driver's defaults. Importing the module, probe and capabilities are cheap and without
    side effects. probe answers the reason why the driver can't run here, or None. init may import heavy modules; what it
    raises makes the driver "failed", which is not "skipped". A driver may have a method ``close()``: it is called once, at the
    engine's end, to let go of descriptors and threads; what it has made stays.
    """

    id: str
    config: type[C]
    init: Callable[[C, Context], D_co]
    probe: Callable[[C, Context], str | None] = lambda config, context: None
    capabilities: Callable[[C, Context], Capabilities] = lambda config, context: Capabilities()
    api: int = API
