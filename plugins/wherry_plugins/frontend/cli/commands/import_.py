"""``wherry import``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.commands.load import spooled
from wherry_plugins.frontend.cli.session import Session


@click.command(
    "import",
    cls=Command,
    help="Make an image of one layer from a tar of a file tree.",
    examples="mmdebstrap trixie - | wherry import - debian:trixie\n"
    "wherry import -c 'CMD [\"/bin/sh\"]' -c 'ENV TERM=xterm' rootfs.tar.xz tools:1",
)
@option(
    "-c", "--change", "changes", multiple=True, metavar="INSTRUCTION",
    help="Change the config as a Dockerfile does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR",
)  # fmt: skip
@option("-m", "--message", default="", metavar="TEXT", help="Comment of the image's history")
@option("--platform", default="", metavar="OS/ARCH", help="Platform of the image, this machine's when not given")
@argument("source", metavar="FILE|-")
@argument("name", required=False, metavar="[NAME[:TAG]]")
def command(
    session: Session, *, changes: tuple[str, ...], message: str, platform: str, source: str, name: str | None
) -> int:
    """Prints the id."""
    with spooled(session, "" if source == "-" else source) as path:
        info = session.engine.import_image(
            f"archive:rootfs:{path}",
            name=name or "",
            changes=changes,
            message=message or f"Imported from {source}",
            platform=platform,
        )
    session.line(info.id)
    return 0
