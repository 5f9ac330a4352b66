"""What a driver remembers of each attachment, as a file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from wherry.linux.path import fsync_directory

T = TypeVar("T")
Key = tuple[str, str]
"""(network, sandbox id)."""


def plain(record: Any) -> dict[str, Any]:
    """An attrs record as JSON has it."""
    return attrs.asdict(record, recurse=True)


class AttachmentFiles:
    """One JSON file for each (network, sandbox) below a directory. durable: on disk when a call returns, else until the machine
    goes down. A file is written beside its place and renamed, so that no reader ever sees half of one."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self._directory = directory
        self._durable = durable
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, key: Key) -> Path:
        return self._directory / f"{key[0]}@{key[1]}.json"

    def write(self, key: Key, data: Mapping[str, Any]) -> None:
        path = self._path(key)
        draft = path.with_suffix(".draft")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        os.rename(draft, path)
        if self._durable:
            fsync_directory(self._directory)

    def read(self, key: Key) -> dict[str, Any] | None:
        try:
            data: dict[str, Any] = json.loads(self._path(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return data

    def remove(self, key: Key) -> None:
        path = self._path(key)
        for name in (path, path.with_suffix(".draft")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        if self._durable:
            fsync_directory(self._directory)

    def all(self, network: str = "") -> list[tuple[Key, dict[str, Any]]]:
        """In a network, or in all."""
        found = []
        for path in sorted(self._directory.glob(f"{network or '*'}@*.json")):
            key = (path.stem.partition("@")[0], path.stem.partition("@")[2])
            if (data := self.read(key)) is not None:
                found.append((key, data))
        return found


__all__ = ["AttachmentFiles", "Key", "plain"]
