"""Lines of a container's own passwd and group (wherry.oci.users)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.oci import spec as reading
from wherry.oci import users
from wherry.oci.child import Failure
from wherry.oci.errors import SpecError

LINE = b"boat:*:1000:1000::/home/boat:/bin/sh"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root/etc").mkdir(parents=True)
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, LINE + b"\n"),
        (b"", LINE + b"\n"),
        (b"root:x:0:0::/:/bin/sh", b"root:x:0:0::/:/bin/sh\n" + LINE + b"\n"),
        (b"root:x:0:0::/:/bin/sh\n", b"root:x:0:0::/:/bin/sh\n" + LINE + b"\n"),
        (b"other:x:1000:5::/:/bin/sh\n", b"other:x:1000:5::/:/bin/sh\n"),
        (b"boat:x:7:7::/:/bin/sh\n", b"boat:x:7:7::/:/bin/sh\n"),
        (b"seaboat:x:7:1000::/:/bin/sh\n", b"seaboat:x:7:1000::/:/bin/sh\n" + LINE + b"\n"),
        (b"nonsense\nboat\n:1000:\n", b"nonsense\nboat\n:1000:\n" + LINE + b"\n"),
    ],
    ids=["no-file", "empty", "no-newline", "newline", "the-id", "the-name", "parts", "nonsense"],
)
def test_a_line_is_added_once(root: int, tmp_path: Path, before: bytes | None, after: bytes) -> None:
    file = tmp_path / "root/etc/passwd"
    if before is not None:
        file.write_bytes(before)
    for _time in range(2):
        users.introduce(root, b"etc/passwd", LINE)
        assert file.read_bytes() == after


def test_a_group_too(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/etc/group").write_bytes(b"root:x:0:\n")
    users.introduce(root, b"etc/group", b"boat:x:1000:boat")
    assert (tmp_path / "root/etc/group").read_bytes() == b"root:x:0:\nboat:x:1000:boat\n"


def test_links_stay_in_the_root(root: int, tmp_path: Path) -> None:
    """An image's etc/passwd that leads to the host's: what is written is the root's own file of that name."""
    outside = tmp_path / "passwd"
    outside.write_bytes(b"of the host\n")
    (tmp_path / "root/etc/passwd").symlink_to(outside)
    users.introduce(root, b"etc/passwd", LINE)
    assert outside.read_bytes() == b"of the host\n"
    assert (tmp_path / "root" / str(outside).lstrip("/")).read_bytes() == LINE + b"\n"


def test_twin_by_name_the_hosts_file_is_written(root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "passwd"
    outside.write_bytes(b"of the host\n")
    (tmp_path / "root/etc/passwd").symlink_to(outside)

    def by_name(root: int, name: bytes, flags: int = os.O_RDONLY, mode: int = 0) -> int:
        return os.open(name, flags, mode, dir_fd=root)

    monkeypatch.setattr(users.path, "open_in", by_name)
    users.introduce(root, b"etc/passwd", LINE)
    assert outside.read_bytes() == b"of the host\n" + LINE + b"\n"


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_file_is_refused(root: int, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "root/etc/passwd"
    os.mkfifo(place) if kind == "fifo" else place.mkdir()
    with pytest.raises(Failure, match="not a regular file"):
        users.introduce(root, b"etc/passwd", LINE)


@pytest.mark.parametrize("text", ["boat", "boat:*:x:1000::/home:/bin/sh", LINE.decode() + "\nroot::0:0::/:/bin/sh"])
def test_annotations_that_are_no_line(text: str) -> None:
    with pytest.raises(SpecError, match="no such line"):
        reading.account({"annotations": {reading.PASSWD: text}})
    assert reading.account({"annotations": {reading.PASSWD: LINE.decode()}}) == (LINE.decode(), "")
    assert reading.account({}) == ("", "")
