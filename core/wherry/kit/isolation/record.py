"""What the driver remembers of a container, and finds again after a restart of the engine."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wherry.api import Exit, FailedPrecondition, Plan
from wherry.linux.cgroup import Group


class TaskRecord:
    """One container. exits and pids are by exec id, "" for the first process; lock guards changes of the cgroup."""

    def __init__(self, id: str, sandbox_id: str, spec: Mapping[str, Any], group: Group) -> None:
        self.id = id
        self.sandbox_id = sandbox_id
        self.spec = spec
        self.group = group
        self.lock = threading.Lock()
        self.exits: dict[str, Exit] = {}
        self.pids: dict[str, tuple[int, int]] = {}
        self.gone: set[str] = set()  # deleted execs that the shim may not have forgotten yet
        self.paused = False
        self.plan: tuple[Mapping[str, Any], bool, Plan] | None = None
        """Of the last exec: process, whether it starts at once, and what became of it."""


class BundleLinks:
    """One link for each container in the driver's run directory: <run>/<id> -> its bundle, whose config.json is the spec."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._prefix = f"{run}/"  # on the path of every start and end: text costs a fifth of a Path

    def add(self, id: str, bundle: Path, spec: Mapping[str, Any]) -> None:
        link, target = self._prefix + id, str(bundle)
        try:
            os.symlink(target, link)
        except FileExistsError:
            os.unlink(link)
            os.symlink(target, link)
        if not os.path.exists(f"{target}/config.json"):
            (bundle / "config.json").write_text(json.dumps(spec))

    def remove(self, id: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._prefix + id)

    def ids(self) -> list[str]:
        return sorted(path.name for path in self._run.iterdir() if path.is_symlink())

    def spec(self, id: str) -> dict[str, Any]:
        """FailedPrecondition when the bundle is gone or damaged."""
        try:
            spec = json.loads((self._run / id / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise FailedPrecondition(f'container "{id}"', f"its config.json cannot be read: {error}") from None
        if not isinstance(spec, dict):
            raise FailedPrecondition(f'container "{id}"', "its config.json is no object")
        return spec


__all__ = ["BundleLinks", "TaskRecord"]
