"""An image that run and create have to fetch first, shown as docker shows it: on stderr, as pull shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wherry.api import Progress, watching
from wherry_plugins.frontend.cli.session import PATH_TRANSPORTS, ClientGone, Session

if TYPE_CHECKING:
    from wherry_plugins.frontend.cli.commands.pull import Display

#: What these take is on this machine already.
_NEAR = (*PATH_TRANSPORTS, "host")


class _Shown:
    """Steps of layers come from several threads."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._display: Display | None = None

    def show(self, progress: Progress) -> None:
        if self._session.gone:
            raise ClientGone
        with self._lock:
            if progress.status == "done" and not progress.id.startswith("sha256:"):
                self.close()  # now, for what the container writes comes next
                return
            if self._display is None:
                from wherry_plugins.frontend.cli.commands.pull import display

                self._display = display(self._session, 2)
            self._display.show(progress)

    def close(self) -> None:
        shown, self._display = self._display, None
        if shown is not None:
            shown.close()


@contextmanager
def shown(session: Session, image: str, *, quiet: bool) -> Iterator[None]:
    """The steps of a fetch within the block; nothing for an image that is here."""
    if quiet or image.partition(":")[0] in _NEAR:
        yield
        return
    watcher = _Shown(session)
    token = watching.set(watcher.show)
    try:
        yield
    finally:
        watching.reset(token)
        watcher.close()
