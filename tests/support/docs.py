"""Reads the pages of docs/: files that a page has the reader write, commands that it has him run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^<!-- (?P<note>[^>]*?) -->\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block with a note before it: ``file: PATH``, ``run`` or whatever a test looks for."""

    note: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for match in _BLOCK.finditer(page.read_text()):
        yield Block(match["note"], match["language"], match["text"])


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """(command, output that the page shows) of a console session; a command goes on after a backslash."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        count = 1
        while lines[count - 1].endswith("\\\n"):
            count += 1
        yield "".join(lines[:count]).strip(), "".join(lines[count:])


def matches(shown: str, output: str) -> bool:
    """Whether the output is as shown; ``...`` stands for anything, runs of spaces are alike."""
    pattern = ".*?".join(re.escape(part) for part in squeeze(shown).split("..."))
    return re.fullmatch(pattern, squeeze(output), re.DOTALL) is not None


def squeeze(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
