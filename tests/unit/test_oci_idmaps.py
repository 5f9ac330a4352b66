"""Which ids an ordinary user may give to containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.oci import idmaps

HAVE = "/usr/bin:/bin"


def etc(directory: Path, uids: str | None, gids: str | None) -> str:
    for name, text in (("subuid", uids), ("subgid", gids)):
        if text is not None:
            (directory / name).write_text(text)
    return str(directory)


@pytest.fixture
def search(tmp_path: Path) -> str:
    """A PATH with stand-ins for both programs."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in idmaps.PROGRAMS.values():
        (bin / name).write_text("#!/bin/sh\n")
        (bin / name).chmod(0o755)
    return str(bin)


def test_ranges_follow_the_own_id(tmp_path: Path, search: str) -> None:
    place = etc(tmp_path, "x:1:1\nme:100000:10\n1000:200000:5\nyou: nonsense\n", "me:300000:7\n")
    maps = idmaps.own(1000, 1001, "me", etc=place, search=search)
    assert maps.uids == [(0, 1000, 1), (1, 100000, 10), (11, 200000, 5)]
    assert maps.gids == [(0, 1001, 1), (1, 300000, 7)]
    assert maps.single == ""


@pytest.mark.parametrize("files", [(None, None), ("", ""), ("other:1:2\n", "other:1:2\n")])
def test_without_ranges_there_is_one_id(tmp_path: Path, search: str, files: tuple[str | None, str | None]) -> None:
    maps = idmaps.own(1000, 1001, "me", etc=etc(tmp_path, *files), search=search)
    assert (maps.uids, maps.gids) == ([(0, 1000, 1)], [(0, 1001, 1)])
    assert "has no range for me" in maps.single


def test_without_the_programs_there_is_one_id(tmp_path: Path) -> None:
    maps = idmaps.own(1000, 1000, "me", etc=etc(tmp_path, "me:9000:9\n", "me:9000:9\n"), search=str(tmp_path))
    assert (maps.uids, maps.single) == ([(0, 1000, 1)], "newuidmap is not installed")


@pytest.mark.parametrize(
    ("uids", "gids", "text"),
    [
        ("me:100000:10\n", "", 'subgid": no range for me, while '),
        ("", "me:100000:10\n", 'subuid": no range for me, while '),
        ("me:100000:10\nme:100009:2\n", "me:100000:10\n", "100009:2 and 100000:10 overlap"),
        ("me:990:20\n", "me:100000:10\n", "overlap, 1000 being the user itself"),
        ("me:0:20\n", "me:100000:10\n", "has the host's root in it"),
        ("me:100000:0\n", "me:100000:10\n", "line 1, "),
        ("me:100000\n", "me:100000:10\n", "is not NAME:FIRST:COUNT"),
        ("me:-5:10\n", "me:100000:10\n", "is not NAME:FIRST:COUNT"),
        ("me:4294967290:10\n", "me:100000:10\n", "is not NAME:FIRST:COUNT"),
        ("".join(f"me:{100000 + 2 * n}:1\n" for n in range(340)), "me:100000:10\n", "more than a map can hold"),
    ],
)
def test_wrong_ranges_are_errors(tmp_path: Path, search: str, uids: str, gids: str, text: str) -> None:
    with pytest.raises(idmaps.IdMapError) as caught:
        idmaps.own(1000, 1000, "me", etc=etc(tmp_path, uids, gids), search=search)
    assert text in str(caught.value)
    assert caught.value.hint


def test_a_failing_program_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "newuidmap"
    program.write_text("#!/bin/sh\necho newuidmap: not allowed >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(idmaps, "which", lambda name, search=None: str(program))
    with pytest.raises(idmaps.IdMapError, match="newuidmap: newuidmap: not allowed"):
        idmaps.write(1, idmaps.IdMaps([(0, 1000, 1), (1, 2000, 5)], [(0, 1000, 1), (1, 2000, 5)]))
