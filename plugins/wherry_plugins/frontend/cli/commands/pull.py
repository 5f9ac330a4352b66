"""``wherry pull``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import click

from wherry.api import Progress
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Gone, Session

if TYPE_CHECKING:
    from wherry_plugins.frontend.cli.bars import Bars

SETTLED = frozenset({"done", "exists"})
WORDS = {
    "resolving": "Resolving", "waiting": "Waiting", "fetching": "Fetching", "unpacking": "Unpacking", "done": "Done",
    "exists": "Already exists",
}  # fmt: skip


class Lines:
    """One line for each blob that is here, and nothing else: for files and pipes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settled: set[str] = set()

    def show(self, progress: Progress) -> None:
        if progress.status in SETTLED and progress.id not in self.settled:
            self.settled.add(progress.id)
            self.session.line(f"{label(progress.id)}: {WORDS[progress.status]}")

    def close(self) -> None:
        return


class Quiet:
    def show(self, progress: Progress) -> None:
        return

    def close(self) -> None:
        return


def label(id: str) -> str:
    return human.short(id) if id.startswith("sha256:") else id


def fetch(session: Session, steps: Iterable[Progress], *, quiet: bool) -> str:
    """Shows the steps of a pull; the name of the image."""
    display: Lines | Quiet | Bars
    if quiet:
        display = Quiet()
    elif session.tty[1]:
        from wherry_plugins.frontend.cli.bars import Bars

        display = Bars(session, WORDS, SETTLED)
    else:
        display = Lines(session)
    name = ""
    try:
        with closing(cast(Any, steps)):
            for progress in steps:
                if session.gone:
                    raise Gone
                name = progress.id
                display.show(progress)
    finally:
        display.close()
    return name


@click.command(
    "pull",
    cls=Command,
    help="Fetch an image and unpack it for the default variant.",
    examples="wherry pull debian:stable\nwherry pull -q --platform linux/arm64 registry.example/app:1\nwherry pull archive:busybox.tar",
)
@option("-q", "--quiet", is_flag=True, help="Print only the name")
@option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image")
@argument("reference", metavar="[TRANSPORT:]REFERENCE")
def command(session: Session, *, quiet: bool, platform: str, reference: str) -> int:
    """Prints the steps and the image's full name."""
    reference = session.reference(reference)
    session.line(fetch(session, session.engine.pull(reference, platform=platform), quiet=quiet) or reference)
    return 0
