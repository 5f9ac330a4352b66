"""The network namespace of a sandbox, as drivers need it, and never the host's by mistake."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

from wherry.api import FailedPrecondition, Sandbox, Shim
from wherry.kit import namespaces
from wherry.kit.networks.netlink import Rtnl


def hosts(sandbox_id: str) -> FailedPrecondition:
    """What is wrong with a sandbox whose network namespace is no container's."""
    return FailedPrecondition(f'sandbox "{sandbox_id}"', "its network namespace is the host's", "nothing was attached")


def refuse_hosts(sandbox: Sandbox) -> None:
    """FailedPrecondition for a sandbox that has been made without a network of its own."""
    if sandbox.netns == "host":
        raise hosts(sandbox.id)


def is_engines(netns: int) -> bool:
    """Whether an nsfs descriptor is that of this process's own network."""
    return namespaces.identity(netns) == namespaces.own("net")


@contextlib.contextmanager
def namespace(shim: Shim, sandbox_id: str, foreign: Callable[[int], bool] = is_engines) -> Iterator[int]:
    """An nsfs descriptor of its network namespace, for the block. NotFound; FailedPrecondition where that is no container's, which
    ``foreign`` tells."""
    netns = shim.namespace(sandbox_id, "net")
    try:
        if foreign(netns):
            raise hosts(sandbox_id)
        yield netns
    finally:
        os.close(netns)


def inside(shim: Shim, sandbox_id: str) -> Rtnl:
    """A conversation in its network namespace. NotFound."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return Rtnl(shim.socket(sandbox_id, socket.AF_NETLINK, kind, socket.NETLINK_ROUTE))


__all__ = ["hosts", "inside", "is_engines", "namespace", "refuse_hosts"]
