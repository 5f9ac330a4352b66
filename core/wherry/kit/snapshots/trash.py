"""Directories of a snapshotter that nobody needs any more, deleted on a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from wherry.errors import Unavailable
from wherry.kit import threads

_DELAY = 0.05  # seconds: so that the deletion of one container's directories does not delay the start of the next
_ROUNDS = 20  # so often it looks by itself before it sleeps: while containers come and go, nobody has to wake it


class Trash:
    """Names go in; erase(name) is called for each, soon, and answers the bytes freed. What a crash or an error leaves, the
    snapshotter finds when it is opened, and its cleanup does."""

    def __init__(self, name: str, erase: Callable[[str], int]) -> None:
        self._name = name
        self._erase = erase
        self._condition = threading.Condition()
        self._waiting: list[str] = []
        self._busy = False
        self._asleep = False
        self._freed = 0
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()

    def add(self, item: str) -> None:
        with self._condition:
            self._waiting.append(item)
            if self._thread is None:
                with suppress(Unavailable):  # the next one to come tries again, and so does ``empty``
                    self._thread = threads.start(self._run, f"{self._name}-trash")
            elif self._asleep:
                self._condition.notify_all()

    def empty(self) -> None:
        """Returns when all that was in it is deleted."""
        self._hurry.set()
        with self._condition:
            if self._thread is None and self._waiting:
                self._take()
            self._condition.wait_for(lambda: not self._waiting and not self._busy)
        self._hurry.clear()

    def freed(self) -> int:
        """The bytes freed since this was asked last."""
        with self._condition:
            freed, self._freed = self._freed, 0
            return freed

    def _run(self) -> None:
        idle = 0
        while True:
            self._hurry.wait(_DELAY)
            with self._condition:
                if not self._waiting:
                    idle += 1
                    if idle > _ROUNDS:
                        self._asleep = True
                        self._condition.wait_for(lambda: bool(self._waiting))
                        self._asleep, idle = False, 0
                    continue
                idle = 0
                self._take()
                self._condition.notify_all()

    def _take(self) -> None:
        """Deletes what waits now; the lock, which the caller has, is let go of meanwhile."""
        self._busy = True
        batch, self._waiting = self._waiting, []
        self._condition.release()
        freed = 0
        try:
            for item in batch:
                with suppress(Exception):  # the thread has to live: others wait for it, and cleanup tries again
                    freed += self._erase(item)
        finally:
            self._condition.acquire()
            self._freed += freed
            self._busy = False


__all__ = ["Trash"]
