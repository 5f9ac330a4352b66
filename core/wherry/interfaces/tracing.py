"""Spans: who took how long. Costs next to nothing while nobody collects.

A collector rides in the context (contextvars), so it follows a request into the threads that drivers are called on. The kernel
opens a span for every driver call; a driver or decorator adds its own with ``span`` (or ``Context.span``).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from wherry.interfaces.engine import Span

LIMIT = 100_000
"""Spans that one collector keeps; later ones are counted as dropped."""


class SpanCollector:
    """Gathers the spans of one request, from any thread."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.spans: list[Span] = []
        self.dropped = 0
        self._limit = limit

    def add(self, span: Span) -> None:
        if len(self.spans) < self._limit:
            self.spans.append(span)
        else:
            self.dropped += 1


#: (collector, id of the span that is open) of the current context, or None: nobody collects.
CURRENT: ContextVar[tuple[SpanCollector, int] | None] = ContextVar("wherry_spans", default=None)

_ids = itertools.count((os.getpid() << 32) + 1)


def new_id() -> int:
    """An id for a span, unique among the processes that may add to one collector."""
    return next(_ids)


@contextmanager
def collecting(collector: SpanCollector) -> Iterator[SpanCollector]:
    """Everything that runs inside, other threads reached by driver calls included, adds its spans to collector."""
    token = CURRENT.set((collector, 0))
    try:
        yield collector
    finally:
        CURRENT.reset(token)


@contextmanager
def span(name: str, plugin: str = "", **attributes: Any) -> Iterator[dict[str, Any]]:
    """Times what runs inside. Yields the attributes, so that a result can be added; with no collector nothing is kept."""
    current = CURRENT.get()
    if current is None:
        yield attributes
        return
    collector, parent = current
    id = new_id()
    token = CURRENT.set((collector, id))
    start, began, error = time.time_ns(), time.perf_counter_ns(), ""
    try:
        yield attributes
    except BaseException as problem:
        error = describe(problem)
        raise
    finally:
        CURRENT.reset(token)
        took = time.perf_counter_ns() - began
        collector.add(Span(name, plugin, start, took, threading.get_native_id(), id, parent, attributes, error))


def describe(problem: BaseException) -> str:
    """An exception as one line: ``ClassName: text``."""
    return f"{type(problem).__name__}: {problem}"


def trace_events(spans: Iterable[Span], pid: int = 0, process: str = "wherry engine") -> dict[str, Any]:
    """Spans as an object of the Trace Event Format, which Perfetto and chrome://tracing open.

    Complete events (``ph`` "X") with ``ts`` and ``dur`` in microseconds, ``cat`` the plugin's family ("kernel" for none) and
    ``args`` the attributes, span ids and error; metadata events (``ph`` "M") name process and threads. Source: "Trace Event
    Format", sections "Complete Events" and "Metadata Events".
    """
    ordered = sorted(spans, key=lambda span: (span.start, span.id))
    pid = pid or os.getpid()
    events: list[dict[str, Any]] = [_name("process_name", pid, 0, process)]
    events += [_name("thread_name", pid, thread, f"thread {thread}") for thread in sorted({s.thread for s in ordered})]
    for span in ordered:
        args: dict[str, Any] = {key: _plain(value) for key, value in span.attributes.items()}
        args |= {"plugin": span.plugin, "span": span.id, "parent": span.parent}
        if span.error:
            args["error"] = span.error
        events.append({
            "name": span.name,
            "cat": span.plugin.partition(".")[0] or "kernel",
            "ph": "X",
            "ts": span.start / 1000,
            "dur": span.duration / 1000,
            "pid": pid,
            "tid": span.thread,
            "args": args,
        })  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _plain(value: Any) -> Any:
    """What JSON can carry as it is; everything else as its short repr."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value)


__all__ = ["SpanCollector", "collecting", "span", "trace_events"]
