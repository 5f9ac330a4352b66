"""Acknowledges the shim's events in order, though they are worked on side by side."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable


class Acks:
    """The shim drops what an ack covers, and an ack covers all up to its number: so it follows the slowest."""

    def __init__(self, ack: Callable[[int], None]) -> None:
        self._ack = ack
        self._lock = threading.Lock()
        self._open: list[int] = []
        self._done: set[int] = set()
        self._last = 0

    def begin(self, sequence: int) -> None:
        with self._lock:
            heapq.heappush(self._open, sequence)

    def done(self, sequence: int) -> None:
        """The event's consequences are durable."""
        with self._lock:
            self._done.add(sequence)
            covered = 0
            while self._open and self._open[0] in self._done:
                covered = heapq.heappop(self._open)
                self._done.discard(covered)
            if covered <= self._last:
                return
            self._last = covered
        self._ack(covered)
