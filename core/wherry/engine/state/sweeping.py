"""Starts and sweeps keep out of each other's way.

A sweep asks what containers hold and then has drivers give back all else. A start that reserved in between would lose its addresses,
so it waits. One that began before is known to the sweep: its container is busy from before it waits here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SweepLock:
    """One sweep at a time."""

    def __init__(self) -> None:
        self._one = threading.Lock()
        self._none = threading.Event()
        self._none.set()

    @contextmanager
    def block(self) -> Iterator[None]:
        """A sweep. Starts that are not known to it yet wait until its end."""
        with self._one:
            self._none.clear()
            try:
                yield
            finally:
                self._none.set()

    def wait(self) -> None:
        """For a start whose container is busy (see ``recovery.busy``) by now."""
        self._none.wait()
