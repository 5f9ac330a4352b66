"""A fuzzer that is guided by coverage: an input that reaches a line which none before it reached is kept, and changed further.

sys.monitoring (3.12 and later) tells of each line once and costs nothing after that; before it sys.settrace tells of all of them. The
same seed gives the same inputs.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

_TOOL = 3  # sys.monitoring: between the debugger, coverage, profiler and optimizer


class Coverage:
    """Whether a line of the files was executed for the first time since the last question."""

    def __init__(self, *files: str) -> None:
        self._files = files
        self._seen: set[tuple[CodeType, int]] = set()
        self._fresh = False

    def fresh(self) -> bool:
        """Asks, and begins anew."""
        fresh, self._fresh = self._fresh, False
        return fresh

    def _mine(self, code: CodeType) -> bool:
        return code.co_filename.endswith(self._files)

    def _line(self, code: CodeType, line: int) -> Any:
        if self._mine(code):
            self._fresh = True
        return sys.monitoring.DISABLE  # each line is told once

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not self._mine(frame.f_code):
            return None
        if event == "line" and (place := (frame.f_code, frame.f_lineno)) not in self._seen:
            self._seen.add(place)
            self._fresh = True
        return self._trace

    @contextmanager
    def watching(self) -> Iterator[None]:
        if sys.version_info < (3, 12):
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(before)
            return
        monitoring = sys.monitoring
        monitoring.use_tool_id(_TOOL, "wherry-fuzzing")
        try:
            monitoring.register_callback(_TOOL, monitoring.events.LINE, self._line)
            monitoring.restart_events()
            monitoring.set_events(_TOOL, monitoring.events.LINE)
            yield
        finally:
            monitoring.set_events(_TOOL, 0)
            monitoring.free_tool_id(_TOOL)


INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2F, 0x30, 0x22, 0x5C, 0x0A)


def mutate(chance: random.Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes], limit: int) -> bytes:
    """One to four changes: bytes, pieces, words of the format, and pieces of other inputs."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(made))
        end = min(len(made), at + chance.choice((1, 1, 2, 8, 64, 512)))
        match chance.randint(0, 7):
            case 0 if made:
                at = min(at, len(made) - 1)
                made[at] ^= 1 << chance.randint(0, 7)
            case 1 if made:
                made[min(at, len(made) - 1)] = chance.choice(INTERESTING)
            case 2:
                del made[at:end]
            case 3:
                made[at:at] = made[at:end] * chance.choice((1, 1, 2, 9))
            case 4 | 5 if words:
                word = chance.choice(words)
                made[at : at + chance.choice((0, len(word)))] = word
            case 6 if others:
                other = chance.choice(others)
                start = chance.randint(0, len(other))
                made[at:end] = other[start : start + chance.choice((1, 16, 512, 1024))]
            case _:
                made[at:at] = bytes(chance.choice((chance.randint(0, 255), 0x41)) for _ in range(chance.choice((1, 4))))
    return bytes(made[:limit])


class Failure(AssertionError):
    """An input that broke the target; it is in the text."""


def fuzz(
    target: Callable[[bytes], None],
    seeds: Sequence[bytes],
    *,
    files: Sequence[str],
    words: Sequence[bytes] = (),
    rounds: int,
    limit: int = 1 << 16,
    guided: bool = True,
    prepare: Callable[[random.Random, bytes], bytes] = lambda chance, data: data,
    seed: int = 1,
) -> int:
    """Runs target over the seeds and rounds inputs made of them; the number of inputs that reached something new. Failure for one that
    target does not take: it has to handle all errors that are allowed itself. files: the ends of the names of the sources that
    count. prepare mends what no input would ever get right by chance, such as a checksum."""
    chance = random.Random(seed)
    coverage = Coverage(*files)
    corpus: list[bytes] = []
    with coverage.watching():
        for number in range(-len(seeds), rounds):
            if number < 0:
                data = seeds[number]
            else:
                # Half of the time one of the youngest: it is where the frontier is.
                pool = corpus[-8:] if chance.randint(0, 1) else corpus
                data = prepare(chance, mutate(chance, chance.choice(pool), corpus, words, limit))
            try:
                target(data)
            except BaseException as error:
                raise Failure(f"input {data!r:.4000}: {type(error).__name__}: {error}") from error
            if (coverage.fresh() and guided) or number < 0:
                corpus.append(data)
    return len(corpus) - len(seeds)


__all__ = ["Failure", "fuzz", "mutate"]
