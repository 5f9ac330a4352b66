"""``wherry load``."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from wherry.api import Invalid
from wherry.spec.reference import familiar
from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.session import Session

CHUNK = 1 << 20


@click.command(
    "load",
    cls=Command,
    help='Load the images of an archive, as "docker save" or skopeo wrote it, from a file or from stdin.',
    examples="wherry load -i busybox.tar\ndocker save busybox | wherry load",
)
@option("-i", "--input", "file", default="", metavar="FILE", help="The archive; stdin when not given")
@option("-q", "--quiet", is_flag=True, help="Accepted for docker's sake: no progress is shown")
@option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image")
def command(
    session: Session,
    *,
    file: str,
    quiet: bool,  # noqa: ARG001 - see its help
    platform: str,
) -> int:
    """Prints what was loaded."""
    with spooled(session, file) as path:
        for image in session.engine.load(f"archive:{path}", platform=platform):
            for name in image.names or (image.id,):
                kind = "Loaded image: " if image.names else "Loaded image ID: "
                session.line(f"{kind}{familiar(name)}")
    return 0


@contextmanager
def spooled(session: Session, file: str) -> Iterator[str]:
    """The path of a file of the client, or of what its stdin holds: an archive is read by position, so a pipe is spooled, beside
    the state, where there is room for images."""
    if file:
        yield session.path(file)
        return
    if session.tty[0] or not session.fds:
        raise Invalid("stdin", "it is a terminal and not an archive", "name a file, or pipe one in")
    with tempfile.TemporaryDirectory(prefix="load-", dir=_spool(session)) as directory:
        spool = Path(directory, "archive")
        _copy(session, spool)
        yield str(spool)


def _spool(session: Session) -> Path:
    directory = Path(session.engine.info().root) / "tmp"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _copy(session: Session, target: Path) -> None:
    try:
        with target.open("wb") as sink:
            for piece in session.pieces(CHUNK):
                sink.write(piece)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the file, not of the client's stream
            error.filename = str(target)
        raise
