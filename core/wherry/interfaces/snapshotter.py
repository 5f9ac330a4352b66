"""The snapshotter kind: file-system trees in layers, each a snapshot with a parent.

Modelled on containerd's core/snapshots. Names: a key names an active snapshot or a view while it is worked on; a committed
one has a name, which for layers of an image is the chain-id (OCI image-spec, config.md, "Layer ChainID"). Example:

    mounts = snapshotter.prepare("unpack-1", parent="")     # active: write through these mounts
    ...                                                     # a worker unpacks the first layer
    snapshotter.commit(chain_id, "unpack-1", {})            # committed: immutable, may be a parent
    mounts = snapshotter.prepare(container, parent=chain_id)
    snapshotter.remove(container)

Garbage collection deletes in two steps, as it does with blobs (see ``wherry.interfaces.store``):

    marked = snapshotter.mark(doomed)       # absent for everybody from here on
    snapshotter.unmark(leased_meanwhile)    # whoever leased one before it was marked may have seen it
    snapshotter.sweep()                     # only now directories go
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
    either; a driver then need not wait for its disk, nor when it commits it: that is durable with the next update, relabel or
    other durable call. Half a snapshot is never left.

    volatile: True for a snapshot that is mounted once, for a run that it ends with: nothing written to it need ever be on a disk, as
    with overlayfs' option of that name. False for one that must reach the disk, such as a layer's. None leaves it to the driver.
    """

    labels: Labels = field(factory=dict)
    idmap: IdMap = IdMap()
    quota: int = 0
    durable: bool = True
    volatile: bool | None = None


@frozen
class ApartLayer:
    """What a layer did that was unpacked without its parents. root: whether it wrote to its root directory as well. removals: the
    directories, from the root, in which it marked names as removed; paths as os.fsdecode has them."""

    diff_id: Digest
    root: bool
    removals: tuple[str, ...] = ()


class Snapshotter(Protocol):
    """key -> active -(commit)-> committed name. Mounts are data, never mounted by the driver. One transaction a method.

    prepare and view raise AlreadyExists for a taken key and NotFound for a parent that is absent or not committed; remove is
    InUse while the snapshot has children and succeeds when it is gone; the others raise NotFound. A name that is marked is
    InUse for prepare, view and commit, until it is swept.
    """

    def stat(self, name: str) -> SnapshotInfo: ...
    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo: ...
    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        """Sets the same labels of several, None taking one away: of all of them or, where one is absent, of none."""
        ...

    def usage(self, name: str) -> tuple[int, int]:
        """(bytes, inodes) of this snapshot alone, without its parents."""
        ...

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """What prepare or view gave for this key, also after a restart."""
        ...

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]: ...
    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]: ...
    def commit(self, name: str, key: str, labels: Labels) -> None:
        """labels are all that it has from then on: those of the active one were for the time of the work. AlreadyExists when name is
        taken: key then stays active."""
        ...

    def remove(self, name: str) -> None: ...
    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        """In one transaction: these snapshots count as absent, until ``unmark`` or ``sweep``. What is absent is passed over, and
        so is what has a child that is not marked along with it; those that are marked are answered. A mark that a restart
        finds is taken away."""
        ...

    def unmark(self, names: Collection[str]) -> None:
        """Takes marks away, from what these snapshots stand on as well; those without one are passed over."""
        ...

    def sweep(self) -> tuple[str, ...]:
        """Removes what is marked; the names that went."""
        ...

    def walk(self) -> Iterator[SnapshotInfo]: ...
    def cleanup(self) -> int:
        """Frees what remove left behind; the bytes freed."""
        ...


class LayerSnapshotter(Snapshotter, Protocol):
    """What only some snapshotters can. The flags "apply", "diff" and "rebase" say so, never isinstance: from Python 3.12
    runtime_checkable misses a decorator's __getattr__ proxy. Without the first two the kernel calls Workers with the mounts,
    without the last one layers are unpacked one after the other. With "rebase", "userxattr" says that the xattrs of removals
    begin with "user." instead of "trusted.".
    """

    def apply(self, key: str, layer: Descriptor, stream: BinaryIO) -> Digest:
        """Unpacks a layer into an active snapshot; the diff-id, digested in the same pass."""
        ...

    def diff(self, lower: str, upper: str, sink: BinaryIO, media_type: str) -> Descriptor: ...
    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        """Puts an active snapshot that was prepared without a parent over one, so that layers can be unpacked side by side.

        What it holds counts as a change of the parent from then on, with removals written as overlayfs writes them: a character
        device 0:0 for a name, the xattr ``overlay.opaque`` = "y" for all that a directory had below. A root directory that the
        layer did not write to takes over the parent's owner, mode, xattrs and time. NotFound for a parent that is absent or
        not committed, FailedPrecondition when key is not active or has a parent.
        """
        ...
