"""How long each method may take, and why. Everything not listed has the deadline of ``[engine] deadline`` (30 s by default)."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Policy(NamedTuple):
    """factor: times the deadline, None: no end. mode "pool" runs on a pool thread; "caller" on the thread that calls, which
    the engine made for it; "wait" adds the argument ``timeout`` to the deadline, None meaning no end."""

    factor: float | None = 1.0
    mode: Literal["pool", "caller", "wait"] = "pool"
    batch: bool = False


NORMAL = Policy()
LISTING = Policy(batch=True)
"""Iterators that never block for an event: several items are taken in one hop."""
LONG = Policy(20.0)
"""Bound by the size of the data or by a program of the user, not by the driver."""
OPEN_ENDED = Policy(None)
CALLER = Policy(None, "caller")

POLICIES: dict[tuple[str, str], Policy] = {
    # the fsync of some gigabytes
    ("Ingest", "commit"): LONG,
    # what was written before is digested again; files of some gigabytes are deleted
    ("Store", "ingest"): LONG,
    ("Store", "sweep"): LONG,
    ("Store", "walk"): LISTING,
    ("Store", "ingests"): LISTING,
    ("Store", "list"): LISTING,
    # trees of 100,000 files are copied, walked or deleted
    ("Snapshotter", "commit"): LONG,
    ("Snapshotter", "prepare"): LONG,
    ("Snapshotter", "view"): LONG,
    ("Snapshotter", "usage"): LONG,
    ("Snapshotter", "remove"): LONG,
    ("Snapshotter", "sweep"): LONG,
    ("Snapshotter", "cleanup"): LONG,
    ("Snapshotter", "walk"): LISTING,
    # a whole layer, at the speed of whoever delivers the stream
    ("LayerSnapshotter", "apply"): OPEN_ENDED,
    ("LayerSnapshotter", "diff"): OPEN_ENDED,
    # OCI hooks run inside: programs of the user, with a timeout of their own
    ("Isolation", "create"): LONG,
    ("Isolation", "start"): LONG,
    ("Isolation", "delete"): LONG,
    ("Isolation", "wait"): Policy(1.0, "wait"),
    ("Isolation", "adopt"): LISTING,
    # the memory of the container goes to a disk
    ("Checkpointer", "checkpoint"): LONG,
    ("Checkpointer", "restore"): LONG,
    ("Network", "list"): LISTING,
    # CNI plugins run inside: foreign programs, each with a deadline that its driver sets
    ("Network", "reserve"): LONG,
    ("Network", "attach"): LONG,
    ("Network", "detach"): LONG,
    ("Network", "check"): LONG,
    ("Network", "gc"): LONG,
    # a registry, with its retries; an archive of some gigabytes is digested
    ("Transport", "resolve"): LONG,
    ("Transport", "fetch"): LONG,
    ("Transport", "push"): OPEN_ENDED,
    ("VolumeDriver", "list"): LISTING,
    ("VolumeDriver", "remove"): LONG,
    # a front end lives as long as the engine, on threads that the engine made for it
    ("Frontend", "serve"): CALLER,
    ("Frontend", "handle"): CALLER,
}
