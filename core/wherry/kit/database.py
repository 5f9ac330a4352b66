"""A driver's own SQLite file: WAL, foreign keys, FULL, and a format number that refuses newer stores without writing.

A driver opens one under ``context.root``. Debian's SQLite has the WAL-reset bug (fixed in 3.51.3), hence apsw, which brings
its own SQLite; it is imported when the first database is opened.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wherry.errors import Error, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    import apsw

#: Milliseconds to wait for another process's write (``doctor`` on a running engine's store).
BUSY = 10_000


class Database:
    """One connection, shared by the threads of the engine under a lock; a commit is one fsync of the log, about 0.1 ms.

    Raises FailedPrecondition for a file of a newer format, which is then left as it was, byte for byte.
    """

    def __init__(
        self, path: Path, schema: str, version: int, upgrades: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        """upgrades: format number -> the statements that make the next format of it."""
        import apsw

        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._full = True
        if path.exists():
            _refuse_newer(path, version)
        self._connection: apsw.Connection = apsw.Connection(str(path), statementcachesize=200)
        self._connection.set_busy_timeout(BUSY)
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL").fetchall()
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA temp_store = MEMORY")
        # A log that is written over costs half the fsync of one that grows: it comes round early, and stays when closed.
        execute("PRAGMA wal_autocheckpoint = 256").fetchall()
        with self.write() as write:
            (found,) = write("PRAGMA user_version").fetchall()[0]
            if found == 0:
                write(schema)
                write(f"PRAGMA user_version = {version}")
            elif found > version:
                raise FailedPrecondition(f'store "{path}"', f"is of format {found}, newer than {version}")
            else:
                for older in range(found, version):
                    write(upgrades[older])
                    write(f"PRAGMA user_version = {older + 1}")

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
            if durable is not self._full:
                self._run("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
                self._full = durable
            self._run("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield self._connection.execute
                self._run("COMMIT")
            except BaseException as error:
                with suppress(Exception):  # COMMIT may have ended it; the first error is the one to tell
                    self._connection.execute("ROLLBACK")
                told = self._translate(error)
                if told is error:
                    raise
                raise told from error
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

    def close(self) -> None:
        """Checkpoints and closes; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def _run(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except Exception as error:
            told = self._translate(error)
            if told is error:
                raise
            raise told from error

    def _translate(self, error: BaseException) -> BaseException:
        """What SQLite says, as the errors that drivers may raise."""
        import apsw

        match error:
            case apsw.BusyError() | apsw.LockedError():
                return Unavailable(f'store "{self.path}"', "another process is writing to it", "try again")
            case apsw.FullError():
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            case apsw.CorruptError() | apsw.NotADBError():
                return Error(f'store "{self.path}"', f"is damaged: {error}", "run wherry doctor")
            case apsw.ConnectionClosedError():
                return Unavailable(f'store "{self.path}"', "is closed")
            case apsw.IOError() | apsw.CantOpenError() | apsw.ReadOnlyError():
                return OSError(errno.EIO, str(error), str(self.path))
        return error


def _refuse_newer(path: Path, version: int) -> None:
    """Reads the format number out of the header (offset 60, SQLite file format 1.3.13): opening would touch -wal and -shm."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64:
        return
    found = int.from_bytes(head[60:64], "big")
    if found > version:
        raise FailedPrecondition(
            f'store "{path}"', f"is of format {found}, newer than {version}", "use the version of Wherry that wrote it"
        )


__all__ = ["Database"]
