"""The engine's log: loguru behind a proxy that imports it at the first message (it costs 39 ms), own JSON sink, no enqueue."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loguru import Message

_lock = threading.Lock()
_target: list[tuple[Path | None, str]] = [(None, "INFO")]
LEVELS = {
    "trace": 5,
    "debug": 10,
    "info": 20,
    "success": 25,
    "warning": 30,
    "error": 40,
    "critical": 50,
    "exception": 40,
}


class LazyLogger:
    """Has loguru's methods. What lies below the level never imports loguru."""

    def __init__(self) -> None:
        self._real: Any = None

    def real(self) -> Any:
        """loguru's logger, with our sink as its only one."""
        with _lock:
            if self._real is None:
                from loguru import logger as real

                real.remove()
                path, level = _target[0]
                real.add(
                    _JsonSink(path) if path else _stderr, level=level, enqueue=False, catch=True, format="{message}"
                )
                self._real = real
            return self._real

    def reset(self) -> None:
        """The next message opens the sink that ``configure`` named last."""
        with _lock:
            if self._real is not None:
                self._real.remove()
            self._real = None

    def __getattr__(self, name: str) -> Any:
        if name in LEVELS and LEVELS[name] < LEVELS.get(_target[0][1].lower(), 20):
            return _nothing
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)


logger: Any = LazyLogger()


def configure(path: Path | None, level: str = "INFO") -> None:
    """Sends the log to a file (one JSON object a line, appended, 0600) or, with None, to stderr as text."""
    _target[0] = (path, level.upper())
    logger.reset()


class _JsonSink:
    """One write(2) with O_APPEND a message: lines of several threads never mix, and a rotated file is found again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, message: Message) -> None:
        record = message.record
        line: dict[str, Any] = {
            "time": record["time"].isoformat(),
            "level": record["level"].name,
            "message": record["message"],
            "module": record["name"],
            "line": record["line"],
            "thread": record["thread"].name,
        }
        if record["extra"]:
            line["extra"] = {
                key: value if isinstance(value, str | int | float) else repr(value)
                for key, value in record["extra"].items()
            }
        if (problem := record["exception"]) is not None:
            line["exception"] = f"{getattr(problem.type, '__name__', problem.type)}: {problem.value}"
        data = json.dumps(line).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def _stderr(message: Message) -> None:
    record = message.record
    sys.stderr.write(f"wherry: {record['level'].name.lower()}: {record['message']}\n")


def _nothing(*_: Any, **__: Any) -> None:
    """A message below the level."""
