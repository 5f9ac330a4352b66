"""``none``: nothing is recorded, and streams that nobody watches never pass through the logger."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from wherry.api import (
    Context,
    FailedPrecondition,
    Labels,
    LogDriver,
    LogLine,
    LogSink,
    Registration,
    hookimpl,
)
from wherry.kit.options import read_options


@frozen
class NoneConfig:
    """Nothing to configure."""


class NoneLog:
    """wherry.api.LogDriver that keeps nothing."""

    def __init__(self, config: NoneConfig, context: Context) -> None:
        """Neither is needed."""

    def sink(self, id: str, options: Labels) -> LogSink:
        read_options(options, {}, 'the log driver "none"')
        return LogSink("none")

    def read(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1
    ) -> Iterator[LogLine]:
        raise FailedPrecondition(f'logs of container "{id}"', "its log driver none keeps no logs", "use json-file")

    def remove(self, id: str) -> None:
        """There is nothing."""


@hookimpl
def wherry_log() -> Registration[NoneConfig, LogDriver]:
    return Registration(id="none", config=NoneConfig, init=NoneLog)
