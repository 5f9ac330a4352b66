"""The breaker of one driver: after a call that hung, further calls fail at once until a trial call succeeds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from wherry.errors import Unavailable

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
MOST_AT_ONCE = 64
"""Calls of one driver at the same time; more wait for one of them to end."""


class CircuitBreaker:
    """closed -> (a call hangs) -> open -> (backoff passes) -> half open: one trial -> closed, or open with twice the backoff."""

    def __init__(self, plugin: str, limit: int = MOST_AT_ONCE, clock: Callable[[], float] = time.monotonic) -> None:
        self.plugin = plugin
        self.lost_threads = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._limit = self._free = limit
        self._queued = 0
        self._room = threading.Condition(self._lock)
        self._reason = ""
        self._backoff = FIRST_BACKOFF
        self._retry_at = 0.0
        self._trial = False

    @property
    def open(self) -> bool:
        """Whether calls are refused, or only a trial is let through."""
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """Why the breaker is open, "" when it is closed."""
        return self._reason

    def enter(self, name: str, timeout: float | None, counted: bool = True) -> bool:
        """Asks for a place; True: this is the trial call of an open breaker. Raises Unavailable while it is open or no place
        gets free within timeout seconds. counted: whether the call takes one of the places."""
        trial = bool(self._reason) and self._half_open(name)
        if counted and not self._place(timeout):
            self._trial = False
            cause = f"{self._limit} calls run already and none ended within {timeout:g} s"
            raise Unavailable(f"{self.plugin}: {name}", cause, plugin=self.plugin)
        return trial

    def _place(self, timeout: float | None) -> bool:
        # By hand: a semaphore costs several calls each way, and every driver call takes one.
        with self._lock:
            if self._free <= 0:
                self._queued += 1
                try:
                    if not self._room.wait_for(lambda: self._free > 0, timeout):
                        return False
                finally:
                    self._queued -= 1
            self._free -= 1
            return True

    def _release(self) -> None:
        with self._lock:
            self._free += 1
            if self._queued:
                self._room.notify()

    def leave(self, trial: bool = False, counted: bool = True) -> None:
        """The call ended, well or with an error. If it was the trial, the breaker closes: another call that happens to end
        while one hangs proves nothing."""
        if counted:
            self._release()
        if trial:
            self.reset()

    def lost(self, reason: str, counted: bool = True) -> None:
        """The call was given up: opens the breaker. Its place is freed, else a few hangs would close the driver for good."""
        if counted:
            self._release()
        with self._lock:
            self.lost_threads += 1
            self._open(reason)

    def back(self) -> None:
        """A thread that was given up has returned after all."""
        with self._lock:
            self.lost_threads -= 1

    def crashed(self, reason: str, counted: bool = True) -> None:
        """The call ended because the driver's process did: opens the breaker."""
        if counted:
            self._release()
        self.fail(reason)

    def fail(self, reason: str) -> None:
        """Opens the breaker without a lost thread: a driver's process died, or its init failed."""
        with self._lock:
            self._open(reason)

    def hung(self, reason: str) -> None:
        """A thread was lost outside of a counted call, e.g. in init."""
        with self._lock:
            self.lost_threads += 1
            self._open(reason)

    def due(self) -> bool:
        """Whether the backoff has passed."""
        return self._clock() >= self._retry_at

    def reset(self) -> None:
        """All is well again."""
        with self._lock:
            self._reason, self._backoff, self._trial = "", FIRST_BACKOFF, False

    def _open(self, reason: str) -> None:
        if self._reason:
            self._backoff = min(self._backoff * 2, LONGEST_BACKOFF)
        self._reason, self._trial = reason, False
        self._retry_at = self._clock() + self._backoff

    def _half_open(self, name: str) -> bool:
        with self._lock:
            if not self._reason:
                return False
            wait = self._retry_at - self._clock()
            if wait <= 0 and not self._trial:
                self._trial = True
                return True
            hint = f"tried again in {max(wait, 0.1):.1f} s" if wait > 0 else "a trial call is running"
        raise Unavailable(f"{self.plugin}: {name}", self._reason, hint, plugin=self.plugin)
