"""The snapshotter kind: file-system trees in layers, each a snapshot with a parent.

Modelled on containerd's core/snapshots. Names: a key names an active snapshot or a view while it is worked on; a committed
one has a name, which for layers of an image is the chain-id (OCI image-spec, config.md, "Layer ChainID"). Example:

    mounts = snapshotter.prepare("unpack-1", parent="")     # active: write through these mounts
    ...                                                     # a worker unpacks the first layer
    snapshotter.commit(chain_id, "unpack-1", {})            # committed: immutable, may be a parent
    mounts = snapshotter.prepare(container, parent=chain_id)
    snapshotter.remove(container)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, Literal, Protocol

from attrs import field, frozen

from wherry.interfaces.common import Descriptor, Digest, IdMap, Labels, Mount


@frozen
class SnapshotInfo:
    """name is the key while active or view; parent is "" for none; times are ns since the epoch."""

    kind: Literal["active", "view", "committed"]
    name: str
    parent: str
    labels: Labels
    created: int
    updated: int


@frozen
class SnapshotOptions:
    """idmap needs the flag "remap-ids"; quota, bytes of the writable layer, needs "quota".

    durable: False where a crash of the machine may take the snapshot back, since whoever asks for it will not outlive that
    either; a driver then need not wait for its disk. Half a snapshot is never left.
    """

    labels: Labels = field(factory=dict)
    idmap: IdMap = IdMap()
    quota: int = 0
    durable: bool = True


class Snapshotter(Protocol):
    """key -> active -(commit)-> committed name. Mounts are data, never mounted by the driver. One transaction a method.

    prepare and view raise AlreadyExists for a taken key and NotFound for a parent that is absent or not committed; remove is
    InUse while the snapshot has children and succeeds when it is gone; the others raise NotFound.
    """

    def stat(self, name: str) -> SnapshotInfo: ...
    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo: ...
    def usage(self, name: str) -> tuple[int, int]:
        """(bytes, inodes) of this snapshot alone, without its parents."""
        ...

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """What prepare or view gave for this key, also after a restart."""
        ...

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]: ...
    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]: ...
    def commit(self, name: str, key: str, labels: Labels) -> None:
        """AlreadyExists when name is taken: key then stays active."""
        ...

    def remove(self, name: str) -> None: ...
    def walk(self) -> Iterator[SnapshotInfo]: ...
    def cleanup(self) -> int:
        """Frees what remove left behind; the bytes freed."""
        ...


class LayerSnapshotter(Snapshotter, Protocol):
    """A snapshotter that unpacks or diffs by itself. The flags "apply" and "diff" say so, never isinstance: from Python
    3.12 runtime_checkable misses a decorator's __getattr__ proxy. Without them the kernel calls Workers with the mounts."""

    def apply(self, key: str, layer: Descriptor, stream: BinaryIO) -> Digest:
        """Unpacks a layer into an active snapshot; the diff-id, digested in the same pass."""
        ...

    def diff(self, lower: str, upper: str, sink: BinaryIO, media_type: str) -> Descriptor: ...
