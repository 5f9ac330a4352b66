"""A dictionary on disk behind a lock: all the state that a reference driver has."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen


@frozen
class NoConfig:
    """No option at all."""


class State:
    """JSON tables by name. ``change`` holds the lock and writes at its end, unless the block raised."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "state.json"
        self.lock = threading.RLock()
        self.tables: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def table(self, name: str) -> dict[str, Any]:
        return self.tables.setdefault(name, {})

    @contextmanager
    def change(self) -> Iterator[None]:
        with self.lock:
            yield
            self.file.write_text(json.dumps(self.tables))
