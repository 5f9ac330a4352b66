"""<root>/wherry.db: what the engine must still know after any crash: containers, sandboxes, leases and events.

One connection, one writer at a time. Readers mostly need no SQL at all, since the records live in memory too. A transaction
is durable (one fsync of the write-ahead log) when somebody is told of its result; where a crash of the machine would void
the change anyway, for instance the row of a container that removes itself, it need only survive a crash of the engine,
which an unsynced log does (sqlite.org, "Write-Ahead Logging", section 7).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wherry.api import Event
from wherry.kit.database import Database

FORMAT = 1
KEEP_EVENTS = 50_000
#: Rows that are pruned at once: whoever waits for the lock meanwhile waits for a fraction of a millisecond.
_BATCH = 200
_CHECKPOINT = 1000

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY, netns TEXT NOT NULL, created INTEGER NOT NULL, attached TEXT NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE containers (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, sandbox TEXT NOT NULL, created INTEGER NOT NULL,
    data TEXT NOT NULL, request TEXT NOT NULL, image TEXT NOT NULL DEFAULT '{}',
    spec TEXT NOT NULL DEFAULT '', owners TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID, STRICT;
CREATE INDEX containers_by_sandbox ON containers (sandbox);
CREATE TABLE leases (
    id TEXT PRIMARY KEY, engine TEXT NOT NULL, created INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, topic TEXT NOT NULL, id TEXT NOT NULL, attributes TEXT NOT NULL
) STRICT;
"""


class Transaction:
    """One open transaction; events recorded in it become visible to readers once it is committed."""

    __slots__ = ("_database", "events", "execute")

    def __init__(self, database: EngineDatabase, execute: Callable[..., Any]) -> None:
        self._database = database
        self.execute = execute
        self.events: list[Event] = []

    def event(self, topic: str, id: str, attributes: Mapping[str, str] | None = None, time_ns: int = 0) -> Event:
        """The next event of the sequence, written with the others when all else is; it tells of a change made in this same
        transaction."""
        attributes = {} if attributes is None else dict(attributes)
        event = Event(topic, id, time_ns or time.time_ns(), attributes, self._database.sequence + len(self.events) + 1)
        self.events.append(event)
        return event

    def rows(self) -> list[tuple[int, int, str, str, str]]:
        """The events as the table has them."""
        return [
            (e.sequence, e.time, e.topic, e.id, json.dumps(e.attributes) if e.attributes else "{}") for e in self.events
        ]


class EngineDatabase(Database):
    """Opens or makes the database; see ``Database`` for what that raises."""

    repair = "restore it from a backup, or move it away: its containers are forgotten"

    def __init__(self, path: Path, deliver: Callable[[list[Event]], None] = lambda events: None) -> None:
        super().__init__(path, _SCHEMA, FORMAT, checkpoint=_CHECKPOINT)
        self._deliver = deliver
        self.sequence: int = self.all("SELECT max(sequence) FROM events")[0][0] or 0

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[Transaction]:
        """``write`` with events, which are delivered once it is committed."""
        with self._lock:
            with self.write(durable=durable) as execute:
                tx = Transaction(self, execute)
                yield tx
                if tx.events:
                    self._connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", tx.rows())
            if tx.events:
                self.sequence += len(tx.events)
                self._deliver(tx.events)

    def publish(self, event: Event) -> Event:
        """Stores an event that tells of no change of this database and delivers it. Survives a crash of the engine."""
        with self.transaction(durable=False) as tx:
            return tx.event(event.topic, event.id, event.attributes, event.time)

    def events_after(self, sequence: int, limit: int = 500) -> list[Event]:
        """The oldest kept events above sequence, at most limit."""
        rows = self.all(
            "SELECT topic, id, time, attributes, sequence FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (sequence, limit),
        )
        return [Event(topic, id, when, json.loads(text), number) for topic, id, when, text, number in rows]

    def prune_events(self, keep: int = KEEP_EVENTS) -> int:
        """Drops all but the newest events; the number dropped. The last one always stays: it holds the sequence."""
        last, total, gone = self.sequence - max(keep, 1), 0, _BATCH
        while gone == _BATCH:
            with self.write(durable=False) as execute:
                oldest = "SELECT sequence FROM events WHERE sequence <= ? ORDER BY sequence LIMIT ?"
                execute(f"DELETE FROM events WHERE sequence IN ({oldest})", (last, _BATCH))  # noqa: S608 - constants
                gone = self._connection.changes()
            total += gone
        return total

    def get(self, key: str, default: str = "") -> str:
        found = self.row("SELECT value FROM meta WHERE key = ?", (key,))
        return str(found[0]) if found else default

    def set(self, key: str, value: str) -> None:
        with self.transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def boot_id() -> str:
    """The kernel's id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
