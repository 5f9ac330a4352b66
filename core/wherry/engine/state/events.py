"""The event bus: stored events go to whoever follows them, in order and without gaps.

Topics of the engine, whose id is the container's: container.created, container.renamed (old_name), container.updated,
container.removed, task.started (pid), task.exited (code, a number or "unknown", and oom_killed), task.paused, task.resumed,
task.signalled (signal), exec.started (exec_id, command), exec.exited (exec_id, code), network.attached and network.detached
(network, driver; the id is the sandbox's), network.created and network.removed (name, driver; the id is the network's). All of a
container carry its name and image. Drivers publish others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from wherry.api import Error, Event
from wherry.engine.state.database import KEEP_EVENTS, EngineDatabase
from wherry.kernel.log import logger as log

#: A follower that reads nothing for this many events starts again from the database instead of filling memory.
BACKLOG = 4096
QUIET_SECONDS = 0.45


class _Follower:
    def __init__(self) -> None:
        self.ready = threading.Condition(threading.Lock())
        self.queue: deque[Event] = deque()
        self.overflown = False
        self.closed = False

    def put(self, events: list[Event]) -> None:
        with self.ready:
            if len(self.queue) + len(events) > BACKLOG:
                self.queue.clear()
                self.overflown = True
            else:
                self.queue.extend(events)
            self.ready.notify()

    def take(self, timeout: float) -> tuple[list[Event], bool]:
        """What has come, waiting up to timeout seconds for the first; True when some had to be dropped."""
        with self.ready:
            if not self.queue and not self.overflown and not self.closed:
                self.ready.wait(timeout)
            events, dropped = list(self.queue), self.overflown
            self.queue.clear()
            self.overflown = False
            return events, dropped


class EventBus:
    """``deliver`` is what the database calls after each commit; it never blocks."""

    def __init__(self) -> None:
        self._followers: tuple[_Follower, ...] = ()
        self._lock = threading.Lock()
        self._closed = False
        #: Set to ``Kernel.notify``: hands an event to the listeners among the plugins.
        self.notify: Callable[[Event], None] | None = None
        #: The engine's own who hear of every event, and do not block either.
        self.heard: list[Callable[[Event], None]] = []

    def deliver(self, events: list[Event]) -> None:
        for follower in self._followers:
            follower.put(events)
        if (notify := self.notify) is not None:
            for event in events:
                notify(event)
        for hear in self.heard:
            for event in events:
                hear(event)

    def follow(self, database: EngineDatabase, after: int, *, follow: bool) -> Iterator[Event]:
        """See ``Engine.events``. Registered before this returns: what happens after the call is not missed."""
        follower = _Follower()
        with self._lock:
            self._followers = (*self._followers, follower)
        last = database.sequence if after < 0 else after
        return self._read(follower, database, last, follow)

    def _read(self, follower: _Follower, database: EngineDatabase, last: int, follow: bool) -> Iterator[Event]:
        try:
            yield from (replayed := _Replay(database, last))
            last = replayed.last
            while follow and not self._closed:
                events, dropped = follower.take(QUIET_SECONDS)
                if dropped:
                    yield from (replayed := _Replay(database, last))
                    last = replayed.last
                    continue
                for event in events:
                    if event.sequence > last:
                        last = event.sequence
                        yield event
                if not events:
                    yield Event("", "", 0)
        finally:
            with self._lock:
                self._followers = tuple(other for other in self._followers if other is not follower)

    def close(self) -> None:
        """Ends every reader."""
        self._closed = True
        for follower in self._followers:
            with follower.ready:
                follower.closed = True
                follower.ready.notify_all()


class EventPruner:
    """Keeps the table of events bounded while the engine runs: on another thread, each time that so many have come."""

    def __init__(
        self, database: EngineDatabase, submit: Callable[[Callable[[], None]], object], *, keep: int = KEEP_EVENTS
    ) -> None:
        """submit: has a function run on another thread; RuntimeError where there is none to be had. There are never more events than
        keep, an eighth of that, and what comes during the pruning."""
        self._database = database
        self._submit = submit
        self._keep = keep
        self._due = database.sequence + keep // 8

    def heard(self, event: Event) -> None:
        """Of each event, once it is stored. Does not block."""
        if event.sequence >= self._due:
            self._due = self._database.sequence + self._keep // 8
            with suppress(RuntimeError):  # then next time
                self._submit(self._prune)

    def _prune(self) -> None:
        try:
            self._database.prune_events(self._keep)
        except Error as error:  # a full disk, for instance
            log.info("events are not pruned: {}", error)


class _Replay:
    """Stored events above a sequence number; ``last`` is the newest given out."""

    def __init__(self, database: EngineDatabase, last: int) -> None:
        self._database = database
        self.last = last

    def __iter__(self) -> Iterator[Event]:
        while batch := self._database.events_after(self.last):
            for event in batch:
                self.last = event.sequence
                yield event
