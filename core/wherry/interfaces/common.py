"""Records that every kind shares. All are frozen and wire-safe: str, bytes, int, float, and tuples and mappings of them.

Sizes are bytes, times are integer nanoseconds since the epoch, durations are float seconds, digests are
``sha256:<64 hex>``, ids match ``[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NewType

from attrs import field, frozen

Kind = Literal["store", "snapshotter", "isolation", "network"]
"""A family of driver that a variant chooses one of."""

Family = Literal[
    "store", "snapshotter", "isolation", "network",
    "transport", "frontend", "log", "volume", "credentials",
    "adjust", "validate", "listen", "gcroots", "verify", "decorate", "defaults",
]  # fmt: skip
"""A kind or a contribution: the part of an entry point's name before the dot."""

Digest = NewType("Digest", str)
"""``sha256:<64 lower-case hex>`` (OCI image-spec, descriptor.md, "Digests")."""

Labels = Mapping[str, str]


@frozen
class Descriptor:
    """A reference to content (OCI image-spec, descriptor.md). size is in bytes; platform is ``os/arch[/variant]`` or ""."""

    media_type: str
    digest: Digest
    size: int
    annotations: Labels = field(factory=dict)
    platform: str = ""


@frozen
class IdMap:
    """User and group id maps as (container id, host id, size); both empty: no map (user_namespaces(7))."""

    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()


@frozen
class Mount:
    """A mount as data; nobody has made it yet. options are those of mount(8), e.g. "ro", "lowerdir=/a:/b".

    target is relative to the container's root, "" being the root itself. A non-empty idmap has the shim make it a detached
    idmapped mount (mount_setattr(2)). A type such as fuse.fuse-overlayfs is a file system that a program serves: source is the
    program's path, and what an idmap asks for is its doing.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
    idmap: IdMap = IdMap()


@frozen
class Capabilities:
    """Flags that a driver declares, checked when a variant is put together.

    A snapshotter may provide "mounts", "remap-ids", "block", "apply", "diff", "rebase", "userxattr", "quota", "shared-lower";
    an isolation "exec", "exec-start" (``exec`` can start at once), "pause", "checkpoint", "netns", "rootless"; a network "networks"
    (it makes some at a user's wish), "ports", "publish" (ports of a sandbox that is attached already), "dns", "reserve-netns",
    "rootless", "host-netns" (its containers are in the host's network), "loopback-only" (they have no other interface). A variant
    stands when every flag in ``requires[kind]`` is provided by that kind's driver.
    """

    provides: frozenset[str] = frozenset()
    requires: Mapping[Kind, frozenset[str]] = field(factory=dict)


@frozen
class Event:
    """Something that happened; topic is ``<thing>.<past tense>``: "task.exited", "image.tagged", "network.attached".

    sequence is set by the kernel at publish and rises without gaps for each root, so that a reader can replay.
    """

    topic: str
    id: str
    time: int
    attributes: Labels = field(factory=dict)
    sequence: int = 0
