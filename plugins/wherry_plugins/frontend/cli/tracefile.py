"""Spans of a run as a trace-event file, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wherry.api import Error, trace_events
from wherry_plugins.frontend.cli.session import Session


@contextmanager
def traced(session: Session, file: str) -> Iterator[None]:
    """Writes what was asked of drivers in a create or run that fails inside, too; its error counts for more than the file's."""
    try:
        yield
    except (Error, OSError) as error:
        if file and (container := getattr(error, "container", "")):
            with suppress(Error, OSError):
                write_trace(session, file, container)
        raise


def write_trace(session: Session, file: str, container: str) -> None:
    """Asks for the spans and writes them to a path of the client. NotFound, OSError."""
    events = trace_events(session.engine.spans(container), process=f"wherry run {container[:12]}")
    path = Path(session.path(file))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY, 0o644)
    with os.fdopen(fd, "w") as stream:
        stream.write(json.dumps(events, indent=1) + "\n")
