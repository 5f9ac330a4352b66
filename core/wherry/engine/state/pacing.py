"""Long computations that leave room for others.

A thread that computes holds the interpreter, and every other thread waits for it, up to the switch interval, each time that it comes
back from a system call: a create beside ten thousand records being looked at took five times as long. So such work rests.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SLICE = 0.00025
"""Seconds of work between two rests, half of the engine's switch interval: nobody has to ask for the interpreter."""
REST = 0.00025


def paced(items: Iterable[T]) -> Iterator[T]:
    """The items, with rests between them: whoever takes them works at most half of the time. Not for a loop under a lock."""
    until = time.perf_counter() + SLICE
    for item in items:
        yield item
        if time.perf_counter() > until:
            time.sleep(REST)
            until = time.perf_counter() + SLICE
