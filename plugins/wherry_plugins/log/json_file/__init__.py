"""``json-file``: Docker's json-file format, one JSON object a line, below the driver's own directory.

Docker documentation, "JSON File logging driver"; moby daemon/logger/jsonfilelog. The shim's logger does the writing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from attrs import frozen

from wherry.api import Context, Labels, LogDriver, LogLine, LogSink, Registration, hookimpl
from wherry.kit.options import choice, number, read_options

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MODES: Mapping[str, Literal["block", "drop"]] = {"blocking": "block", "non-blocking": "drop"}
_LEAST = 4096


@frozen
class JsonFileConfig:
    """Defaults of a container's log options. max_size: "10m", "" never rotates; max_file: files kept, the current one too; mode:
    "blocking" or "non-blocking", which drops what a full disk does not take."""

    max_size: str = ""
    max_file: int = 1
    mode: Literal["blocking", "non-blocking"] = "blocking"


def parse_size(text: str) -> int:
    """Bytes of "10m", "1.5g", "4096"; "" and "-1" are 0, no limit. ValueError for anything else, and for less than 4096."""
    if text in ("", "-1"):
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError('is not a size: a number with a unit, such as "10m"')
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size < _LEAST:
        raise ValueError(f"is less than {_LEAST} bytes")
    return size


_OPTIONS = {"max-size": parse_size, "max-file": number(1, 1000), "mode": choice(*_MODES)}


class JsonFile:
    """wherry.api.LogDriver; thread-safe, since it keeps no state."""

    def __init__(self, config: JsonFileConfig, context: Context) -> None:
        self._defaults = {"max-size": config.max_size, "max-file": str(config.max_file), "mode": config.mode}
        self._prefix = f"{context.root}/"

    def _path(self, id: str) -> str:
        return f"{self._prefix}{id}-json.log"

    def sink(self, id: str, options: Labels) -> LogSink:
        """Options: max-size, max-file, mode, as Docker's."""
        found = read_options({**self._defaults, **options}, _OPTIONS, 'the log driver "json-file"')
        size, count, mode = found["max-size"], found["max-file"], found["mode"]
        return LogSink("json-file", path=self._path(id), max_size=size, max_file=count, when_full=_MODES[mode])

    def read(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1
    ) -> Iterator[LogLine]:
        from wherry_plugins.log.json_file.reading import read

        return read(self._path(id), follow=follow, since=since, until=until, tail=tail)

    def remove(self, id: str) -> None:
        # The files in turn rather than a search of the directory, which holds the logs of all containers.
        path, number = self._path(id), 1
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        try:
            while True:
                os.unlink(f"{path}.{number}")
                number += 1
        except FileNotFoundError:
            return


@hookimpl
def wherry_log() -> Registration[JsonFileConfig, LogDriver]:
    return Registration(id="json-file", config=JsonFileConfig, init=JsonFile)
