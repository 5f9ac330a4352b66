"""``wherry pull``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any, cast

import click

from wherry.api import Progress
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Gone, Session

SETTLED = frozenset({"done", "exists"})
WORDS = {
    "resolving": "Resolving", "waiting": "Waiting", "fetching": "Fetching", "unpacking": "Unpacking", "done": "Done",
    "exists": "Already exists",
}  # fmt: skip


class Display:
    """One line a digest, redrawn in place on a terminal; else one line for each that is settled."""

    def __init__(self, session: Session, *, quiet: bool) -> None:
        self.session = session
        self.quiet = quiet
        self.live = session.tty[1] and not quiet
        self.lines: dict[str, str] = {}

    def show(self, progress: Progress) -> None:
        if self.quiet:
            return
        name = human.short(progress.id) if progress.id.startswith("sha256:") else progress.id
        text = f"{name}: {WORDS.get(progress.status, progress.status.capitalize())}"
        if progress.total and progress.status not in SETTLED:
            text += f" {human.size(progress.current)}/{human.size(progress.total)}"
        if not self.live:
            if progress.status in SETTLED and self.lines.get(name) != text:
                self.session.line(text)
            self.lines[name] = text
            return
        known = list(self.lines)
        self.lines[name] = text
        if name not in known:
            self.session.out(f"{text}\n")
        else:
            up = len(known) - known.index(name)
            self.session.out(f"\x1b[{up}A\r\x1b[2K{text[: self.session.width - 1]}\x1b[{up}B\r")


def fetch(session: Session, steps: Iterable[Progress], *, quiet: bool) -> str:
    """Shows the steps of a pull; the name of the image."""
    display = Display(session, quiet=quiet)
    name = ""
    with closing(cast(Any, steps)):
        for progress in steps:
            if session.gone:
                raise Gone
            name = progress.id
            display.show(progress)
    return name


@click.command(
    "pull",
    cls=Command,
    help="Fetch an image and unpack it for the default variant.",
    examples="wherry pull archive:busybox.tar",
)
@option("-q", "--quiet", is_flag=True, help="Print only the name")
@option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image")
@argument("reference", metavar="[TRANSPORT:]REFERENCE")
def command(session: Session, *, quiet: bool, platform: str, reference: str) -> int:
    """Prints the steps and the image's full name."""
    reference = session.reference(reference)
    session.line(fetch(session, session.engine.pull(reference, platform=platform), quiet=quiet) or reference)
    return 0
