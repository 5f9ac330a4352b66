"""Leases: what is in use by work under way, so that gc leaves it alone.

A lease's row is committed before the store or a snapshotter is asked whether a thing exists. It belongs to one engine: after
a crash the next engine drops the leases of the dead one, for nobody works under them any more, and what they alone protected
may be collected.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar

from wherry.api import Error
from wherry.engine.state.database import EngineDatabase, Transaction

_current: ContextVar[Lease | None] = ContextVar("wherry_lease", default=None)


class Lease:
    """What one piece of work holds. Resources are written as in ``Context.hold``: "blob/<digest>",
    "snapshot/<driver>/<key>"."""

    def __init__(self, leases: Leases, id: str) -> None:
        self._leases = leases
        self.id = id
        self.resources: set[str] = set()

    def add(self, resource: str) -> None:
        """Holds one more resource until the lease ends; a repeat does nothing."""
        if resource not in self.resources:
            self._leases.added(self, resource)


class LeaseWatch:
    """What was leased since it began."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.resources: set[str] = set()

    def now(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self.resources)


class Leases:
    """The leases of this engine. ``resources`` is what gc asks, again after it has marked what it means to delete."""

    def __init__(self, database: EngineDatabase, engine: str) -> None:
        self._database = database
        self._engine = engine
        self._lock = threading.Lock()
        self._active: dict[str, Lease] = {}
        self._watchers: list[LeaseWatch] = []
        #: Set to ``Kernel.holding``: makes ``Context.hold`` of the drivers called by this thread end in this lease.
        self.holding: Callable[[Callable[[str], None]], AbstractContextManager[object]] = lambda add: nullcontext()

    def expire_dead(self) -> int:
        """Drops the leases of engines before this one; how many there were."""
        dead = self._database.all("SELECT count(*) FROM leases WHERE engine != ?", (self._engine,))[0][0]
        if dead:
            with self._database.transaction() as tx:
                tx.execute("DELETE FROM leases WHERE engine != ?", (self._engine,))
        return int(dead)

    @contextmanager
    def hold(self) -> Iterator[Lease]:
        """A lease for the time of the block; inside another block of the same thread that one is shared."""
        if (outer := _current.get()) is not None:
            yield outer
            return
        id = secrets.token_hex(16)
        with self._database.transaction(durable=False) as tx:
            self.write(tx, id)
        with self.under(id):
            try:
                yield self._active[id]
            finally:
                self._end(id)

    @contextmanager
    def apart(self) -> Iterator[Lease]:
        """A lease for the time of a stream, whose pieces may be taken by several threads: none of them has it as its current one."""
        lease = Lease(self, secrets.token_hex(16))
        with self._database.transaction(durable=False) as tx:
            self.write(tx, lease.id)
        with self._lock:
            self._active[lease.id] = lease
        try:
            yield lease
        finally:
            with self._lock:
                self._active.pop(lease.id, None)
            self._end(lease.id)

    def _end(self, id: str) -> None:
        """On a full disk the row stays until the next engine drops it: it holds nothing any more, and the work is done."""
        with suppress(Error, OSError), self._database.transaction(durable=False) as tx:
            self.erase(tx, id)

    def write(self, tx: Transaction, id: str) -> None:
        """Writes a lease's row in a transaction that does more, e.g. reserves a container's name."""
        tx.execute("INSERT INTO leases VALUES (?, ?, ?)", (id, self._engine, time.time_ns()))

    def erase(self, tx: Transaction, id: str) -> None:
        """Deletes it in the transaction that makes its resources referenced otherwise."""
        tx.execute("DELETE FROM leases WHERE id = ?", (id,))

    @contextmanager
    def under(self, id: str) -> Iterator[Lease]:
        """Makes a lease whose row is written already the current one of this thread."""
        lease = Lease(self, id)
        with self._lock:
            self._active[id] = lease
        token = _current.set(lease)
        try:
            with self.holding(lease.add):
                yield lease
        finally:
            _current.reset(token)
            with self._lock:
                self._active.pop(id, None)

    def added(self, lease: Lease, resource: str) -> None:
        """The engine's memory is enough: a resource of a lease only counts while its engine lives."""
        with self._lock:
            lease.resources.add(resource)
        self.tell(resource)

    @contextmanager
    def watch(self) -> Iterator[LeaseWatch]:
        """Takes down every resource that is leased during the block, be it let go of again or not."""
        watch = LeaseWatch(self._lock)
        with self._lock:
            self._watchers.append(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watchers.remove(watch)

    def tell(self, resource: str) -> None:
        """Tells watchers of a resource that is in use otherwise from now on, by a name for instance."""
        with self._lock:
            for watch in self._watchers:
                watch.resources.add(resource)

    def current(self) -> Lease | None:
        return _current.get()

    def resources(self) -> frozenset[str]:
        """Everything that is leased at this moment."""
        with self._lock:
            return frozenset().union(*(lease.resources for lease in self._active.values()))

    def active(self) -> int:
        with self._lock:
            return len(self._active)
