"""``wherry save``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, cast

import click

from wherry.api import ArchiveFormat, Invalid
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import ClientGone, Session

FORMATS = ("docker-archive", "oci-archive")


@click.command(
    "save",
    cls=Command,
    help="Write images to an archive, for load of wherry, docker and podman, and for skopeo.",
    examples="wherry save -o busybox.tar busybox\nwherry save --format oci-archive debian | zstd > debian.tar.zst",
)
@option("-o", "--output", "file", default="", metavar="FILE", help="The archive; stdout when not given")
@option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    metavar="FORMAT",
    help="docker-archive or oci-archive; the first is both in one",
)
@option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image")
@argument("images", nargs=-1, required=True, metavar="IMAGE...")
def command(session: Session, *, file: str, form: str, platform: str, images: tuple[str, ...]) -> int:
    """Prints nothing but the archive."""
    if not file and session.tty[1]:
        raise Invalid("stdout", "it is a terminal, which an archive would garble", "name a file with -o, or pipe it")
    pieces = session.engine.save(images, format=cast(ArchiveFormat, form), platform=platform)
    with closing(cast(Any, pieces)):
        if file:
            _write(session, session.path(file), pieces)
        else:
            for piece in pieces:
                session.write(1, piece)
    return 0


def _write(session: Session, path: str, pieces: Iterator[bytes]) -> None:
    """A regular file appears whole or not at all; a device or a pipe is written to as it is."""
    first = next(pieces, b"")  # errors of the request come before anything is made
    whole = not os.path.exists(path) or os.path.isfile(path)
    target = f"{path}.{secrets.token_hex(4)}.part" if whole else path
    flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if whole else 0)
    fd = os.open(target, flags, 0o600)
    try:
        with os.fdopen(fd, "wb") as sink:
            sink.write(first)
            for piece in pieces:
                if session.gone:
                    raise ClientGone
                sink.write(piece)
        if whole:
            os.replace(target, path)
    except BaseException:
        if whole:
            with suppress(FileNotFoundError):
                os.unlink(target)
        raise
