"""An epoll loop with timers: all that the resident processes without threads wait with: shim, logger, netd (epoll(7))."""

from __future__ import annotations

import heapq
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_REST, _LONGEST_REST = 0.01, 1.0  # seconds
_COMPACT = 64

IN, OUT, HUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR


class Timer:
    """A call to come; ``cancel`` makes it not come."""

    __slots__ = ("callback", "loop", "when")

    def __init__(self, loop: Loop, when: float, callback: Callable[[], None]) -> None:
        self.loop = loop
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self.loop.cancelled += 1

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """Calls handlers with the epoll events of their descriptor, level-triggered, until ``stop``.

    A handler that raises is reported on stderr and the loop goes on: one bad request must not take the containers down. One that
    raises again and again rests between its calls, up to a second: what makes it fail may last, as where there is no memory.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._events: dict[int, int] = {}
        self._failures: dict[int, int] = {}
        self._resting: dict[int, Timer] = {}
        self.cancelled = 0  # timers, of those in the heap
        self._fresh: set[int] = set()
        self._timers: list[Timer] = []
        self._idle: list[Callable[[], None]] = []
        self._running = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Watches fd. PermissionError (EPERM) for what can't be polled: a regular file, a directory."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler
        self._events[fd] = events
        self._fresh.add(fd)

    def modify(self, fd: int, events: int) -> None:
        if fd not in self._resting:
            self._epoll.modify(fd, events)
        self._events[fd] = events

    def remove(self, fd: int) -> None:
        """Must come before close(2): a duplicate elsewhere would keep the entry alive. Nothing happens when it is gone."""
        if self._handlers.pop(fd, None) is None:
            return
        self._failures.pop(fd, None)
        if (rest := self._resting.pop(fd, None)) is not None:
            rest.cancel()
        else:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        return fd in self._handlers

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        if self.cancelled > _COMPACT and 2 * self.cancelled > len(self._timers):
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self.cancelled = 0
        timer = Timer(self, time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Calls back after the events at hand were handled, before the loop waits again."""
        self._idle.append(callback)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        self._running = True
        while self._running:
            self.turn()

    def turn(self) -> None:
        """Waits once and handles what came."""
        idle, self._idle = self._idle, []
        for callback in idle:
            self._call(callback)
        timeout = -1.0
        if self._idle:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0].when - time.monotonic())
        self._fresh.clear()
        for fd, events in self._epoll.poll(timeout, 64):
            handler = self._handlers.get(fd)
            # Removed by a handler before it in this round; or added by one: then what epoll(7) told is of the descriptor that had
            # this number before, was closed in this round, and must not be taken for the new one's.
            if handler is None or fd in self._fresh:
                continue
            try:
                handler(events)
            except Exception:
                report()
                self._failed(fd)
            else:
                if self._failures:
                    self._failures.pop(fd, None)
        now = time.monotonic() if self._timers else 0.0
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            due, timer.callback = timer.callback, None
            if due is not None:
                self._call(due)
            else:
                self.cancelled -= 1

    def _failed(self, fd: int) -> None:
        """Its handler raised: from the second time in a row on it is not called for a while."""
        if fd not in self._handlers:
            return
        failures = self._failures[fd] = self._failures.get(fd, 0) + 1
        if failures > 1:
            self._epoll.unregister(fd)
            self._resting[fd] = self.later(min(_LONGEST_REST, _REST * 2 ** min(failures, 10)), lambda: self._wake(fd))

    def _wake(self, fd: int) -> None:
        del self._resting[fd]
        try:
            self._epoll.register(fd, self._events[fd])
        except OSError:  # ENOMEM, ENOSPC (epoll_ctl(2)): then later
            report()
            self._resting[fd] = self.later(_LONGEST_REST, lambda: self._wake(fd))

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            report()

    def close(self) -> None:
        self._epoll.close()
        self._handlers.clear()
        self._timers.clear()


def report() -> None:
    """The exception at hand, on stderr, which is a file of the run directory."""
    sys.excepthook(*sys.exc_info())
