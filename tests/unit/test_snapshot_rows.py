"""The rows of a snapshotter: an older file is brought up to date, and what a power cut may have halved goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.api import FailedPrecondition, InUse, NotFound
from wherry.kit.database import Database
from wherry.kit.snapshots import rows as snapshots
from wherry.kit.snapshots.rows import VERSION, Snapshots

FIRST = """
CREATE TABLE snapshots (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL UNIQUE,
    kind    TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
    parent  INTEGER REFERENCES snapshots (number),
    labels  TEXT NOT NULL DEFAULT '{}',
    extra   TEXT NOT NULL DEFAULT '',
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    bytes   INTEGER NOT NULL DEFAULT -1,
    inodes  INTEGER NOT NULL DEFAULT -1
);
CREATE INDEX snapshots_parent ON snapshots (parent);
INSERT INTO snapshots (name, kind, created, updated) VALUES ('layer', 'committed', 1, 2);
"""


def test_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    Database(tmp_path / "s.db", FIRST, 1).close()
    for _ in range(2):
        rows = Snapshots(tmp_path / "s.db")
        assert (rows.get("layer").kind, rows.get("layer").created) == ("committed", 1)
        with rows.prepare(f"child-{_}", "layer", {}, "active"):
            pass
        rows.close()
    with pytest.raises(FailedPrecondition, match="newer"):
        Database(tmp_path / "s.db", FIRST, VERSION - 1)


def test_what_nobody_waited_for_ends_with_the_boot(tmp_path: Path) -> None:
    rows = Snapshots(tmp_path / "s.db")
    for key, durable in (("kept", True), ("fleeting", False), ("layer", False)):
        with rows.prepare(key, "", {}, "active", durable=durable):
            pass
    rows.commit("committed", "layer", {})
    rows.close()
    rows = Snapshots(tmp_path / "s.db")
    assert [row.name for row in rows.walk()] == ["kept", "fleeting", "committed"], "the same boot"
    rows._boot = "another"
    rows._recover()
    assert [row.name for row in rows.walk()] == ["kept", "committed"]
    rows.close()


def test_rebase(tmp_path: Path) -> None:
    rows = Snapshots(tmp_path / "s.db")
    for name in ("a", "b", "c"):
        with rows.prepare(name, "", {}, "active"):
            pass
    rows.commit("A", "a", {})
    with rows.rebase("b", "A") as row:
        assert (row.parent, row.lowers) == ("A", (1,))
    for key, parent, error in (
        ("b", "A", FailedPrecondition),
        ("A", "A", FailedPrecondition),
        ("c", "b", NotFound),
        ("c", "x", NotFound),
    ):
        with pytest.raises(error), rows.rebase(key, parent):
            raise AssertionError("no block")
    with pytest.raises(ZeroDivisionError), rows.rebase("c", "A"):
        raise ZeroDivisionError
    assert rows.get("c").parent == "", "what the block raises takes it back"
    rows.commit("B", "b", {})
    assert rows.get("B").lowers == (1,)
    with pytest.raises(InUse):
        rows.remove("A")
    rows.close()


def test_marks_reach_through_chains(tmp_path: Path) -> None:
    """A parent may have a higher number than its child: layers are prepared in any order."""
    rows = Snapshots(tmp_path / "s.db")
    for name in ("top", "base"):
        with rows.prepare(name, "", {}, "active"):
            pass
    rows.commit("BASE", "base", {})
    with rows.rebase("top", "BASE"):
        pass
    rows.commit("TOP", "top", {})
    assert set(rows.mark(["BASE", "TOP"])) == {"BASE", "TOP"}
    assert {row.name for row in rows.sweep()} == {"BASE", "TOP"}
    assert list(rows.walk()) == []
    rows.close()


def test_a_long_list_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written between two pieces waits for neither, and nothing is told twice."""
    monkeypatch.setattr(snapshots, "_PIECE", 2)
    rows = Snapshots(tmp_path / "s.db")
    for name in "abcde":
        with rows.prepare(name, "", {}, "active"):
            pass
    walk = rows.walk()
    assert [next(walk).name, next(walk).name] == ["a", "b"]
    rows.commit("A", "a", {})
    rows.remove("d")
    assert [row.name for row in walk] == ["c", "e"]
    rows.close()
