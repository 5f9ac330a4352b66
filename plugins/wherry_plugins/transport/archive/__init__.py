"""transport.archive: image archives as files, ``archive:/path/x.tar``.

Both forms that tools write: OCI image-layout in a tar (index.json) and ``docker save`` (manifest.json); a file that is both is read
as OCI. The whole may be compressed by gzip, zstd, xz or bzip2. Members are read in place; layers stay as they are.

``archive:rootfs:/path/x.tar`` is a tree without any word about an image, as debootstrap, mmdebstrap or ``docker export`` write one: an
image of one layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Context, Registration, Transport, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.transport.archive.transport import ArchiveTransport


@frozen
class ArchiveConfig:
    """[plugin.transport.archive]. max_unpacked: bytes that a compressed archive may unpack to, in a nameless file."""

    max_unpacked: int = 64 << 30


def _open(config: ArchiveConfig, context: Context) -> ArchiveTransport:
    from wherry_plugins.transport.archive.transport import ArchiveTransport

    return ArchiveTransport(context.root, config.max_unpacked, context.workers)


@hookimpl
def wherry_transport() -> Registration[ArchiveConfig, Transport]:
    return Registration(id="archive", config=ArchiveConfig, init=_open)
