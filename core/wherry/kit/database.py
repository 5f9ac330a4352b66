"""A SQLite file of the engine's or of a driver's: WAL, foreign keys, FULL, and a format number that refuses newer ones unwritten.

A driver opens one under ``context.root``. Debian's SQLite has the WAL-reset bug (fixed in 3.51.3), hence apsw, which brings
its own SQLite; it is imported when the first database is opened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from wherry.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    import apsw

#: Milliseconds to wait for another process's write (``doctor`` on a running engine's store).
BUSY = 10_000


class Database:
    """One connection, shared by the threads of the engine under a lock; a commit is one fsync of the log, about 0.1 ms.

    Raises FailedPrecondition for a file of a newer format, which is then left as it was, byte for byte, and so is the log beside
    it; Unavailable for all that SQLite can't do.
    """

    #: What to do about a file that is damaged, said by the error.
    repair = "run wherry doctor"

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        upgrades: Mapping[int, str] = MappingProxyType({}),
        *,
        checkpoint: int = 256,
    ) -> None:
        """upgrades: format number -> the statements that make the next format of it. checkpoint: pages of the log after which it is
        written back; one that is written over costs half the fsync of one that grows."""
        import apsw

        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._full = True
        self._errors = apsw.Error
        new = not path.exists()
        try:
            if not new and (found := _format(path)) > version:
                raise FailedPrecondition(
                    f'database "{path}"',
                    f"is of format {found}, written by a newer wherry; this one knows {version}",
                    "use that version, or another --root",
                )
            self._connection: apsw.Connection = apsw.Connection(str(path), statementcachesize=200)
        except apsw.Error as error:
            raise self._told(error) from error
        try:
            self._open(schema, version, upgrades, checkpoint)
            if new:
                path.chmod(0o600)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, schema: str, version: int, upgrades: Mapping[int, str], checkpoint: int) -> None:
        self._connection.set_busy_timeout(BUSY)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "temp_store = MEMORY",
            f"wal_autocheckpoint = {checkpoint}",
            "journal_size_limit = 8388608",
        ):
            self._run(f"PRAGMA {pragma}")
        with self.write() as write:
            (found,) = write("PRAGMA user_version").fetchall()[0]
            for older in range(found, version) if found else ():
                write(upgrades[older])
            if not found:
                write(schema)
            if found != version:
                write(f"PRAGMA user_version = {version}")

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Any]:
        """A transaction: yields ``execute(sql, bindings)``; committed at the end, rolled back when the block raises.

        durable False: a power cut may take it back, the death of the process does not; the next durable one takes it along.
        """
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield self._connection.execute
                finally:
                    self._depth -= 1
                return
            execute = self._connection.execute
            try:
                if durable is not self._full:
                    execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
                    self._full = durable
                execute("BEGIN IMMEDIATE")
                self._depth = 1
                yield execute
                execute("COMMIT")
            except BaseException as error:
                with suppress(Exception):  # COMMIT may have ended it; the first error is the one to tell
                    execute("ROLLBACK")
                if isinstance(error, self._errors):
                    raise self._told(error) from error
                raise
            finally:
                self._depth = 0

    def all(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        """Every row of a query."""
        with self._lock:
            return self._run(sql, bindings)

    def row(self, sql: str, bindings: Sequence[Any] = ()) -> Any | None:
        """The first row of a query, or None."""
        rows = self.all(sql, bindings)
        return rows[0] if rows else None

    def check(self) -> list[str]:
        """What SQLite's own integrity and foreign key checks complain of."""
        found = [str(text) for (text,) in self.all("PRAGMA integrity_check") if text != "ok"]
        found += [
            f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}"
            for row in self.all("PRAGMA foreign_key_check")
        ]
        return found

    def close(self) -> None:
        """Checkpoints and closes; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def _run(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except self._errors as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> Unavailable:
        """What SQLite says, as the error that callers act on."""
        import apsw

        cause, hint = str(error) or type(error).__name__, ""
        match error:
            case apsw.BusyError() | apsw.LockedError():
                cause, hint = "another process is writing to it", "try again"
            case apsw.FullError():
                hint = "free some space"
            case apsw.CorruptError() | apsw.NotADBError():
                cause, hint = f"is damaged: {cause}", self.repair
            case apsw.ConnectionClosedError():
                cause = "is closed"
        return Unavailable(f'database "{self.path}"', cause, hint)


def _format(path: Path) -> int:
    """The format number of a database that is there, without a byte written to it or beside it.

    Without a log it is read out of the header (sqlite.org/fileformat2, "The Database Header", offset 60). Where a crash left one, the
    number may be in that: SQLite reads it with the index of the log in its own memory (sqlite.org/wal, "Use of WAL Without
    Shared-Memory"), and does not write the log back when it closes.
    """
    import apsw

    with suppress(FileNotFoundError):
        if path.with_name(f"{path.name}-wal").stat().st_size:
            connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                connection.pragma("locking_mode", "EXCLUSIVE")
                try:
                    version = connection.pragma("user_version")
                except apsw.BusyError:  # somebody has it open, and has written the files beside it
                    connection.set_busy_timeout(BUSY)
                    connection.pragma("locking_mode", "NORMAL")
                    version = connection.pragma("user_version")
                return cast("int", version)
            finally:
                connection.close()
    with path.open("rb") as file:
        head = file.read(64)
    return int.from_bytes(head[60:64], "big") if head.startswith(b"SQLite format 3\0") else 0


__all__ = ["Database"]
