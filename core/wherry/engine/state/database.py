"""<root>/wherry.db: what the engine must still know after any crash: containers, sandboxes, leases and events.

One connection, one writer at a time. Readers mostly need no SQL at all, since the records live in memory too. A transaction
is durable (one fsync of the write-ahead log) when somebody is told of its result; where a crash of the machine would void
the change anyway, for instance the row of a container that removes itself, it need only survive a crash of the engine,
which an unsynced log does (sqlite.org, "Write-Ahead Logging", section 7).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from wherry.api import Error, Event, FailedPrecondition, Unavailable

FORMAT = 1
BUSY_MS = 5000
KEEP_EVENTS = 50_000

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


class EngineDatabase:
    """Opens or makes the database. FailedPrecondition when a newer Wherry wrote it: then nothing was written."""

    def __init__(self, path: Path, deliver: Callable[[list[Event]], None] = lambda events: None) -> None:
        self.path = path
        self._deliver = deliver
        self._lock = threading.RLock()
        self._full = True
        self.sequence = 0
        new = not path.exists()
        try:
            self._refuse_newer(path, new)
            self._connection = apsw.Connection(str(path))
            self._open(new)
        except apsw.Error as error:
            raise Unavailable(
                f'database "{path}"',
                str(error),
                "restore it from a backup, or move it away: its containers are forgotten",
            ) from error

    @staticmethod
    def _refuse_newer(path: Path, new: bool) -> None:
        # Without writing anything: while there is no log the number is read from the file's header (sqlite.org/fileformat2,
        # "The Database Header", offset 60), for even a read-only connection would make files beside it.
        if new:
            return
        if not path.with_name(path.name + "-wal").exists():
            with path.open("rb") as file:
                header = file.read(100)
            version = int.from_bytes(header[60:64], "big") if header.startswith(b"SQLite format 3\0") else 0
        else:
            connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                connection.set_busy_timeout(BUSY_MS)
                (version,) = next(connection.execute("PRAGMA user_version"))
            finally:
                connection.close()
        if version > FORMAT:
            raise FailedPrecondition(
                f'database "{path}"',
                f"format {version} was written by a newer wherry, this one knows {FORMAT}",
                "use that version, or another --root",
            )

    def _open(self, new: bool) -> None:
        connection = self._connection
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_size_limit = 8388608")
        (version,) = next(connection.execute("PRAGMA user_version"))
        if version == 0:
            with self.transaction() as tx:
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        tx.execute(statement)
                tx.execute(f"PRAGMA user_version = {FORMAT}")
        if new:
            self.path.chmod(0o600)
        row = next(connection.execute("SELECT max(sequence) FROM events"))
        self.sequence = row[0] or 0

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[Transaction]:
        """BEGIN IMMEDIATE to COMMIT; rolled back by any exception. Raises Unavailable when the database can't be written."""
        with self._lock:
            execute = self._connection.execute
            tx = Transaction(self, execute)
            try:
                if durable is not self._full:
                    execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
                    self._full = durable
                execute("BEGIN IMMEDIATE")
                try:
                    yield tx
                    if tx.events:
                        self._connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", tx.rows())
                    execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        execute("ROLLBACK")
                    raise
            except apsw.Error as error:
                raise storage_error(self.path, error) from error
            if tx.events:
                self.sequence += len(tx.events)
                self._deliver(tx.events)

    def publish(self, event: Event) -> Event:
        """Stores an event that tells of no change of this database and delivers it. Survives a crash of the engine."""
        with self.transaction(durable=False) as tx:
            return tx.event(event.topic, event.id, event.attributes, event.time)

    def query(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        with self._lock:
            try:
                return list(self._connection.execute(sql, arguments))
            except apsw.Error as error:
                raise storage_error(self.path, error) from error

    def events_after(self, sequence: int, limit: int = 500) -> list[Event]:
        """The oldest kept events above sequence, at most limit."""
        rows = self.query(
            "SELECT topic, id, time, attributes, sequence FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (sequence, limit),
        )
        return [Event(topic, id, when, json.loads(text), number) for topic, id, when, text, number in rows]

    def prune_events(self, keep: int = KEEP_EVENTS) -> int:
        """Drops all but the newest events; the number dropped. The last one always stays: it holds the sequence."""
        with self.transaction(durable=False) as tx:
            tx.execute("DELETE FROM events WHERE sequence <= ?", (self.sequence - max(keep, 1),))
            return int(self._connection.changes())

    def get(self, key: str, default: str = "") -> str:
        rows = self.query("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else default

    def set(self, key: str, value: str) -> None:
        with self.transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def check(self) -> list[str]:
        """What SQLite's own integrity and foreign key checks complain of."""
        found = [str(row[0]) for row in self.query("PRAGMA integrity_check") if row[0] != "ok"]
        found += [
            f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}"
            for row in self.query("PRAGMA foreign_key_check")
        ]
        return found

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def storage_error(path: Path, error: apsw.Error) -> Error:
    """What SQLite could not do, as the error a caller acts on; full disks and lost writes are "unavailable"."""
    hint = "free some space" if isinstance(error, apsw.FullError) else ""
    return Unavailable(f'database "{path}"', str(error) or type(error).__name__, hint)


def boot_id() -> str:
    """The kernel's id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
