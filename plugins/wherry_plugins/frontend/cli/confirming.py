"""Asking before something is removed that nobody can bring back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wherry.api import FailedPrecondition
from wherry_plugins.frontend.cli.command import option
from wherry_plugins.frontend.cli.session import Session


def force_option() -> Callable[[Any], Any]:
    """-f of a command that asks."""
    return option("-f", "--force", is_flag=True, help="Do not ask")


def agreed(session: Session, command: str, what: str, *, force: bool) -> bool:
    """Whether a command may remove what it says, "all stopped containers". FailedPrecondition where nobody is there to ask."""
    if force:
        return True
    if not session.tty[0]:
        raise FailedPrecondition(command, f"it removes {what}", "confirm it with --force")
    session.out(f"WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ")
    if next(session.pieces(64), b"").strip().lower() in {b"y", b"yes"}:
        return True
    session.line("Nothing was removed.")
    return False
