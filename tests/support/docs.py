"""Reads the pages of docs/: files that a page has the reader write, commands that it has him run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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


#: What differs from run to run, and what stands for it.
_VOLATILE = (
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"Less than a second|About a minute|\b\d+ (second|minute|hour|day|week|month)s?\b"), "TIME"),
    (re.compile(r"\b(pid|PID) \d+"), "PID N"),
    (re.compile(r"\b20\d\d\b"), "YEAR"),
)


def alike(shown: str, output: str, places: Mapping[str, str] = {}) -> bool:
    """As ``matches``, with ids, times and pids alike; places maps what stands in the output to what the page says instead."""
    for ours, theirs in places.items():
        output = output.replace(ours, theirs)
    for pattern, word in _VOLATILE:
        shown, output = pattern.sub(word, shown), pattern.sub(word, output)
    return matches(shown, output)


def squeeze(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def links(page: Path) -> Iterator[str]:
    """Targets of the links within the project."""
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    ):
        if "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """The fragments that headings give, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
