"""The one wrapper of SQLite: a file of a newer format is refused untouched, whatever a crash left beside it; errors are the
contract's; and the events of an engine stay within bounds. Each refusal with a twin that lacks the one step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from support.fakes import World, engine
from wherry.api import Event, FailedPrecondition, Unavailable
from wherry.engine.state.database import FORMAT, KEEP_EVENTS, EngineDatabase
from wherry.engine.state.events import EventPruner
from wherry.kit import database as module
from wherry.kit.database import Database

TABLE = "CREATE TABLE t (x INTEGER) STRICT;"


def driver(path: Path) -> Any:
    return Database(path, TABLE, FORMAT)


OPENERS = pytest.mark.parametrize("opened", [driver, EngineDatabase], ids=["driver", "engine"])


def upgraded(path: Path, opened: Callable[[Path], Any], *, killed: bool, shm: bool = True) -> None:
    """As a newer wherry leaves it. killed: its number is in the log alone. shm False: as in a copy, without the log's index."""
    opened(path).close()
    if (pid := os.fork()) == 0:
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}").fetchall()
        if not killed:
            connection.close()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    if not shm:
        path.with_name(path.name + "-shm").unlink()


def state_of(top: Path) -> dict[str, tuple[bytes, int, int]]:
    found = {}
    for path in sorted(top.iterdir()):
        now = path.stat()
        found[path.name] = (path.read_bytes(), now.st_mtime_ns, now.st_ino)
    return found


def refused(path: Path, opened: Callable[[Path], Any]) -> None:
    before = state_of(path.parent)
    with pytest.raises(FailedPrecondition, match=f"is of format {FORMAT + 1}, written by a newer wherry"):
        opened(path)
    assert state_of(path.parent) == before


@OPENERS
@pytest.mark.parametrize(
    ("killed", "shm"), [(False, True), (True, True), (True, False)], ids=["closed", "killed", "copied"]
)
def test_a_newer_one_is_refused_untouched(tmp_path: Path, opened: Any, killed: bool, shm: bool) -> None:
    path = tmp_path / "a.db"
    upgraded(path, opened, killed=killed, shm=shm)
    if killed:
        assert int.from_bytes(path.read_bytes()[60:64], "big") == FORMAT, "the number is in the log"
    refused(path, opened)


@OPENERS
def test_twin_that_looks_into_the_header_alone(tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    upgraded(path, opened, killed=True)
    monkeypatch.setattr(module, "_format", lambda path: int.from_bytes(path.read_bytes()[60:64], "big"))
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        refused(path, opened)


@OPENERS
def test_a_log_of_ones_own_is_read_after_a_crash(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "a.db"
    if (pid := os.fork()) == 0:
        with opened(path).write() as execute:
            execute("CREATE TABLE kept (x INTEGER)")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert path.with_name("a.db-wal").stat().st_size
    again = opened(path)
    assert again.all("SELECT * FROM kept") == []
    other = opened(path)  # beside one that has it open, and a log in it
    assert other.all("SELECT * FROM kept") == []
    other.close()
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


@OPENERS
def test_what_sqlite_cannot_do_is_unavailable(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "broken.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable, match="is damaged"):
        opened(tmp_path / "broken.db")
    with pytest.raises(Unavailable, match="unable to open"):
        opened(tmp_path / "absent" / "a.db")
    made = opened(tmp_path / "a.db")
    with pytest.raises(Unavailable, match="no such table"), made.write() as execute:
        execute("INSERT INTO absent VALUES (1)")
    with pytest.raises(ZeroDivisionError), made.write() as execute:
        raise ZeroDivisionError
    made.all("PRAGMA max_page_count = 1")
    with pytest.raises(Unavailable, match="full; free some space"), made.write() as execute:
        execute("CREATE TABLE big (x BLOB)")
        execute("INSERT INTO big VALUES (zeroblob(1000000))")
    made.close()
    made.close()
    with pytest.raises(Unavailable, match="is closed"):
        made.all("SELECT 1")


# events


@pytest.fixture
def database(tmp_path: Path) -> Iterator[EngineDatabase]:
    made = EngineDatabase(tmp_path / "wherry.db")
    yield made
    made.close()


def stored(database: EngineDatabase) -> int:
    return int(database.all("SELECT count(*) FROM events")[0][0])


def test_events_stay_within_bounds(database: EngineDatabase) -> None:
    waiting: list[Callable[[], None]] = []
    pruner = EventPruner(database, waiting.append, keep=400)
    for _ in range(3000):
        pruner.heard(database.publish(Event("a.b", "x", 1)))
        assert stored(database) <= 400 + 400 // 8
        while waiting:
            waiting.pop()()
    assert database.events_after(0)[-1].sequence == 3000


def test_a_pruning_for_which_there_is_no_thread_is_done_later(database: EngineDatabase) -> None:
    tried: list[int] = []

    def submit(work: Callable[[], None]) -> None:
        tried.append(stored(database))
        if len(tried) == 1:
            raise RuntimeError("can't start new thread")
        work()

    pruner = EventPruner(database, submit, keep=80)
    for _ in range(100):
        pruner.heard(database.publish(Event("a.b", "x", 1)))
    assert len(tried) > 1
    assert stored(database) <= 90


def flooded(tmp_path: Path) -> int:
    """How many events an engine has after more than it is to keep."""
    parts = engine(tmp_path, World())
    with parts.state.database.transaction(durable=False) as tx:
        for _ in range(KEEP_EVENTS * 5 // 4):
            tx.event("a.b", "x", time_ns=1)
    parts.state.finishers.shutdown(wait=True)
    count = stored(parts.state.database)
    parts.close()
    return count


def test_an_engine_prunes_while_it_runs(tmp_path: Path) -> None:
    assert flooded(tmp_path) == KEEP_EVENTS


def test_twin_that_hears_of_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventPruner, "heard", lambda _self, _event: None)
    assert flooded(tmp_path) > KEEP_EVENTS
