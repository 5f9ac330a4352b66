"""Spans of a run as a trace-event file, which Perfetto and chrome://tracing open.

Format: "Trace Event Format" (Google), complete events ("ph": "X"), times in microseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wherry.api import Span
from wherry_plugins.frontend.cli.session import Session


def events(spans: Iterable[Span], name: str) -> dict[str, Any]:
    """The JSON object: one complete event a span on the thread that made the call, plus the names of the processes."""
    made: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": f"wherry run {name}"}}
    ]
    for span in sorted(spans, key=lambda span: (span.start, -span.duration)):
        arguments = {**dict(span.attributes), "plugin": span.plugin, "id": span.id, "parent": span.parent}
        if span.error:
            arguments["error"] = span.error
        made.append(
            {
                "name": span.name,
                "cat": span.plugin or "kernel",
                "ph": "X",
                "ts": span.start / 1000,
                "dur": span.duration / 1000,
                "pid": 1,
                "tid": span.thread,
                "args": arguments,
            }
        )
    return {"traceEvents": made, "displayTimeUnit": "ms"}


def write_trace(session: Session, file: str, container: str) -> None:
    """Asks for the spans and writes them to a path of the client. NotFound, OSError."""
    text = json.dumps(events(session.engine.spans(container), container[:12]), indent=1, default=str)
    path = Path(session.path(file))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY, 0o644)
    with os.fdopen(fd, "w") as stream:
        stream.write(text + "\n")
