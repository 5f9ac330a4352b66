"""Layers that are small and cost much: each is refused early, and would cost what it wants where the bound is taken away."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.layers import directory, link, member, tar, unpack
from wherry.api import Invalid
from wherry.layers import apply as module

Bomb = Callable[[], bytes]
DEEP = "/".join("d" * 400)


def _pax(count: int) -> bytes:
    """One extended header with many records, before an ordinary file."""
    body = b"6 a=b\n" * count
    whole = tar(member("f", pax_headers={"comment": "x" * len(body)}))
    at = whole.index(b"x" * 100)
    start = whole.rindex(b"comment=", 0, at) - len(str(len(body) + 20)) - 1
    header = bytearray(whole[:512])
    header[124:136] = b"%011o\0" % len(body)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert start >= 512
    rest = whole.index(b"f\0", at)
    return bytes(header) + body + bytes(-len(body) % 512) + whole[rest:]


BOMBS: dict[str, Bomb] = {
    "many files": lambda: tar(*(member(f"f{number}") for number in range(400))),
    "one name again and again": lambda: tar(*(member("f") for _ in range(400))),
    "long names": lambda: tar(*(member(f"{'n' * 200}{number}") for number in range(200))),
    "directories that nobody lists": lambda: tar(*(member(f"{number}/{DEEP}/f") for number in range(2))),
    "extended headers": lambda: _pax(2000),
    "ways through links": lambda: tar(
        directory("d"), *(link(f"l{n}", "d/../" * 200) for n in range(4)), *(member(f"l{n}/x{n}") for n in range(4))
    ),
    "ways through directories": lambda: tar(*(member(f"{DEEP}/{number}/f") for number in range(4))),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def _pack(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules for less, so that a test need not make a million files."""
    monkeypatch.setattr(module, "COST_FREE", 20_000)
    monkeypatch.setattr(module, "STEPS_FREE", 1_000)


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.usefixtures("small")
def test_a_bomb_is_refused(root: Path, bomb: str) -> None:
    with pytest.raises(Invalid, match=r"bomb|too many links"):
        unpack(root, _pack(BOMBS[bomb]()))


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.usefixtures("small")
def test_twin_without_the_bounds(root: Path, bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Unpacker, "afford", lambda *_: None)
    unpack(root, _pack(BOMBS[bomb]()))


def test_ordinary_layers_are_far_below(root: Path) -> None:
    """A file of a few random bytes, at a depth that nobody lists, costs less than its own size allows."""
    layer = tar(*(member(f"usr/lib/x/{number}/f", data=os.urandom(100)) for number in range(300)))
    blob = _pack(layer)
    assert unpack(root, blob).entries == 300
    cost = 300 * (len("usr/lib/x/100/f") + module._ENTRY + module._MADE)
    assert cost < module.COST_FREE / 100 + module.COST_PER_BYTE * len(blob)


def _opaque_again_and_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often directories are read for a thousand whiteouts of one that holds a thousand names of the layer's own."""
    unpack(root, tar(directory("d"), *(member(f"d/low{n}") for n in range(10))))
    own = [member(f"d/{number}") for number in range(100)]
    layer = tar(directory("d"), *own, *(member("d/.wh..wh..opq") for _ in range(100)))
    seen: list[Any] = []
    real = os.listdir
    monkeypatch.setattr(module.os, "listdir", lambda path: (seen.append(path), real(path))[1])
    unpack(root, layer)
    assert len(real(root / "d")) == 100
    return len(seen)


def test_a_directory_is_pruned_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _opaque_again_and_again(root, monkeypatch) == 1


def test_twin_that_prunes_each_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(set[bytes]):
        def __contains__(self, item: object) -> bool:
            return False

    real = module._Unpacker.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        self._pruned = Forgetful()

    monkeypatch.setattr(module._Unpacker, "__init__", init)
    assert _opaque_again_and_again(root, monkeypatch) == 100
