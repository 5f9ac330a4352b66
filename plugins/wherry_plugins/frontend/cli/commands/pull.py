"""``wherry pull``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Protocol, cast

import click

from wherry.api import Progress
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import ClientGone, Session

SETTLED = frozenset({"done", "exists"})
WORDS = {
    "resolving": "Resolving", "waiting": "Waiting", "fetching": "Fetching", "unpacking": "Unpacking", "done": "Done",
    "exists": "Already exists",
}  # fmt: skip


class LineDisplay:
    """One line for each blob that is here, and nothing else: for files and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.settled: set[str] = set()

    def show(self, progress: Progress) -> None:
        if progress.status in SETTLED and progress.id not in self.settled:
            self.settled.add(progress.id)
            self.write(f"{label(progress.id)}: {WORDS[progress.status]}\n")

    def close(self) -> None:
        return


class NoDisplay:
    def show(self, progress: Progress) -> None:
        return

    def close(self) -> None:
        return


def label(id: str) -> str:
    return human.short(id) if id.startswith("sha256:") else id


class Display(Protocol):
    def show(self, progress: Progress) -> None: ...
    def close(self) -> None: ...


def display(session: Session, stream: int = 1, *, quiet: bool = False) -> Display:
    """What shows the steps of a pull on stdout (1) or stderr (2): bars on a terminal, else lines."""
    if quiet:
        return NoDisplay()
    write = session.out if stream == 1 else session.err
    if not session.tty[stream]:
        return LineDisplay(write)
    from wherry_plugins.frontend.cli.bars import BarDisplay

    return BarDisplay(session, write, WORDS, SETTLED)


def fetch(session: Session, steps: Iterable[Progress], *, quiet: bool) -> str:
    """Shows the steps of a pull; the name of the image."""
    shown = display(session, quiet=quiet)
    name = ""
    try:
        with closing(cast(Any, steps)):
            for progress in steps:
                if session.gone:
                    raise ClientGone
                name = progress.id
                shown.show(progress)
    finally:
        shown.close()
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
