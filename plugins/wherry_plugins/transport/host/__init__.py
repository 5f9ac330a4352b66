"""transport.host: an image of this machine's own programs, ``host:/bin/sh,/bin/ls``.

One layer with the programs at their own paths, the shared libraries and interpreters that they need, the links on the way
(/bin -> usr/bin), an /etc/passwd with root, and nothing else: no data files, no plugins that a program would load later. The same
files give the same digest. No registry is needed, so it is what a first container is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Context, Registration, Transport, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.transport.host.transport import HostTransport


@frozen
class HostConfig:
    """[plugin.transport.host]. max_size: bytes that all files of one image may have together."""

    max_size: int = 2 << 30


def _open(config: HostConfig, _context: Context) -> HostTransport:
    from wherry_plugins.transport.host.transport import HostTransport

    return HostTransport(config.max_size)


@hookimpl
def wherry_transport() -> Registration[HostConfig, Transport]:
    return Registration(id="host", config=HostConfig, init=_open)
