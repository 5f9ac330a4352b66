"""Which Protocol the drivers of each family answer, and what only some of them have to."""

from __future__ import annotations

from typing import Any

from wherry.interfaces.contributions import Frontend, LogDriver, Transport, VolumeDriver
from wherry.interfaces.isolation import Checkpointer, Isolation
from wherry.interfaces.network import Network, PublishingNetwork
from wherry.interfaces.snapshotter import LayerSnapshotter, Snapshotter
from wherry.interfaces.store import Store

PROTOCOLS: dict[str, Any] = {
    "store": Store,
    "snapshotter": Snapshotter,
    "isolation": Isolation,
    "network": Network,
    "transport": Transport,
    "log": LogDriver,
    "volume": VolumeDriver,
    "frontend": Frontend,
}
OPTIONAL: dict[str, tuple[tuple[str, frozenset[str], Any], ...]] = {
    "snapshotter": tuple((flag, frozenset({flag}), LayerSnapshotter) for flag in ("apply", "diff", "rebase")),
    "isolation": (("checkpoint", frozenset({"checkpoint", "restore"}), Checkpointer),),
    "network": (("publish", frozenset({"publish"}), PublishingNetwork),),
    "transport": (("push", frozenset({"push"}), Transport),),
}
"""family -> (flag, methods that only drivers with the flag need to have, the Protocol they stand in)."""


def protocols(family: str) -> tuple[Any, ...]:
    """The Protocols whose methods a guarded driver of the family has."""
    if family == "snapshotter":
        return (LayerSnapshotter,)
    if family == "isolation":
        return (Isolation, Checkpointer)
    if family == "network":
        return (PublishingNetwork,)
    return (PROTOCOLS[family],)
