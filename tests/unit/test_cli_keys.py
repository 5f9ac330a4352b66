"""The detach keys."""

from __future__ import annotations

import pytest

from wherry_plugins.frontend.cli.keys import DEFAULT, scan, sequence


def test_sequences() -> None:
    assert sequence("ctrl-p,ctrl-q") == DEFAULT
    assert sequence("x,ctrl-],ctrl-@") == b"x\x1d\x00"
    assert sequence("") == b""
    for text in ("ctrl-", "ctrl-1", "xy", "é", "a,,b"):
        with pytest.raises(ValueError):
            sequence(text)


@pytest.mark.parametrize(
    ("chunks", "passed", "complete"),
    [
        ([b"plain"], b"plain", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"a\x10", b"b"], b"a\x10b", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x10\x10", b"x"], b"\x10\x10x", False),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_scanning(chunks: list[bytes], passed: bytes, complete: bool) -> None:
    matched, out = 0, b""
    for chunk in chunks:
        got, matched = scan(chunk, DEFAULT, matched)
        out += got
    assert (out, matched == len(DEFAULT)) == (passed, complete)
