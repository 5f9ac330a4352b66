"""A bar for each blob of a pull, on a terminal that need not be this process's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from wherry.api import Progress
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.session import ClientGone, Session

_REDRAWN = 0.1
_ROWS = 24


class BarDisplay:
    """Redrawn at most ten times a second, by whoever tells of a step: no thread of rich's writes to the client."""

    def __init__(
        self, session: Session, write: Callable[[str], None], words: Mapping[str, str], settled: Collection[str]
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Display

        console = Console(
            file=_Stream(write),  # type: ignore[arg-type]  # rich calls write and flush
            force_terminal=True,
            width=session.width,
            height=session.rows or _ROWS,
            highlight=False,
            emoji=False,
            markup=False,
            _environ=session.environ,
        )
        self._display = Display(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[word]:<14}", markup=False),
            BarColumn(bar_width=max(10, min(40, session.width - 48))),
            TextColumn("{task.fields[sizes]}", markup=False),
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._words = words
        self._settled = settled
        self._tasks: dict[str, tuple[int, str]] = {}
        self._drawn = 0.0
        self._display.start()

    def show(self, progress: Progress) -> None:
        """One step; what is no blob has no bar."""
        if not progress.id.startswith("sha256:"):
            return
        settled = progress.status in self._settled
        total = max(progress.total, 1)
        done = total if settled or progress.status == "unpacking" else progress.current
        sizes = human.size(progress.total)
        if not settled and progress.status == "fetching":
            sizes = f"{human.size(progress.current)}/{sizes}"
        word = self._words.get(progress.status, progress.status.capitalize())
        task, before = self._tasks.get(progress.id, (-1, ""))
        if task < 0:
            task = self._display.add_task(human.short(progress.id), total=total, word=word, sizes=sizes)
        self._display.update(task, total=total, completed=done, word=word, sizes=sizes)  # type: ignore[arg-type]  # a TaskID
        self._tasks[progress.id] = (task, progress.status)
        now = time.monotonic()
        if before != progress.status or now - self._drawn > _REDRAWN:
            self._drawn = now
            self._display.refresh()

    def close(self) -> None:
        """Leaves the bars as they are last, and the cursor below them."""
        try:
            self._display.stop()
        except ClientGone:
            pass  # there is no terminal any more whose cursor could be missing


class _Stream:
    """A stream of the client as rich wants a file."""

    encoding = "utf-8"

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def write(self, text: str) -> int:
        self._write(text)
        return len(text)

    def flush(self) -> None:
        return

    def isatty(self) -> bool:
        return True
