"""transport.layout: an OCI image layout as a directory (image-spec, image-layout.md), ``layout:/path[:TAG|@DIGEST]``.

Without a tag or digest it stands for every image of index.json. A directory whose own name has a colon in it is found by that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Context, Registration, Transport, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.transport.layout.transport import LayoutTransport


@frozen
class LayoutConfig:
    """[plugin.transport.layout] has no keys."""


def _open(_config: LayoutConfig, _context: Context) -> LayoutTransport:
    from wherry_plugins.transport.layout.transport import LayoutTransport

    return LayoutTransport()


@hookimpl
def wherry_transport() -> Registration[LayoutConfig, Transport]:
    return Registration(id="layout", config=LayoutConfig, init=_open)
