"""``json-file``: Docker's json-file format, one JSON object a line, below the driver's own directory.

Docker documentation, "JSON File logging driver"; moby daemon/logger/jsonfilelog. The shim's logger does the writing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from attrs import frozen

from wherry.api import Context, Invalid, Labels, LogDriver, LogLine, LogSink, Registration, hookimpl

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MODES: Mapping[str, Literal["block", "drop"]] = {"blocking": "block", "non-blocking": "drop"}
_OPTIONS = ("max-size", "max-file", "mode")
_LEAST = 4096


@frozen
class JsonFileConfig:
    """Defaults of a container's log options. max_size: "10m", "" never rotates; max_file: files kept, the current one too; mode:
    "blocking" or "non-blocking", which drops what a full disk does not take."""

    max_size: str = ""
    max_file: int = 1
    mode: Literal["blocking", "non-blocking"] = "blocking"


def parse_size(text: str) -> int:
    """Bytes of "10m", "1.5g", "4096"; "" and "-1" are 0, no limit. Invalid for anything else, and for less than 4096."""
    if text in ("", "-1"):
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f'log option max-size "{text}"', "not a size", 'use a number with a unit, such as "10m"')
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size < _LEAST:
        raise Invalid(f'log option max-size "{text}"', f"less than {_LEAST} bytes")
    return size


class JsonFile:
    """wherry.api.LogDriver; thread-safe, since it keeps no state."""

    def __init__(self, config: JsonFileConfig, context: Context) -> None:
        self._config = config
        self._prefix = f"{context.root}/"

    def _path(self, id: str) -> str:
        return f"{self._prefix}{id}-json.log"

    def sink(self, id: str, options: Labels) -> LogSink:
        """Options: max-size, max-file, mode, as Docker's."""
        for name in options:
            if name not in _OPTIONS:
                raise Invalid(f'log option "{name}"', "unknown to json-file", f"it knows {', '.join(_OPTIONS)}")
        mode = options.get("mode", self._config.mode)
        if mode not in _MODES:
            raise Invalid(f'log option mode "{mode}"', "neither blocking nor non-blocking")
        count = options.get("max-file", str(self._config.max_file))
        if not count.isdecimal() or not 1 <= int(count) <= 1000:
            raise Invalid(f'log option max-file "{count}"', "not a number from 1 to 1000")
        size = parse_size(options.get("max-size", self._config.max_size))
        return LogSink("json-file", path=self._path(id), max_size=size, max_file=int(count), when_full=_MODES[mode])

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
