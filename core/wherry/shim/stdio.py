"""From a Stdio to descriptors: what the child gets, and what the logger moves."""

from __future__ import annotations

import json
import os

from wherry.shim.streams import TaskStreams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.shim.server import Shim


class ChildStdio:
    """fds: the child's 0, 1, 2. Those that were made for it are closed here once it has them."""

    __slots__ = ("_own", "fds")

    def __init__(self) -> None:
        self.fds = [-1, -1, -1]
        self._own: list[int] = []

    def pipe(self, number: int) -> int:
        """A pipe to the child's descriptor number; our end, non-blocking."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        mine, theirs = (writer, reader) if number == 0 else (reader, writer)
        os.set_blocking(mine, False)
        self.fds[number] = theirs
        self._own.append(theirs)
        return mine

    def close(self) -> None:
        for fd in self._own:
            os.close(fd)
        self._own.clear()


def given_at_start(stdio: dict[str, Any]) -> str:
    """The token of the descriptors that come with a spawn."""
    token = stdio.get("token") or ""
    return f"s{token}" if token else ""


def open_streams(shim: Shim, key: str, stdio: dict[str, Any], fds: list[int]) -> tuple[ChildStdio, TaskStreams | None]:
    """stdio is a wherry.api.Stdio as JSON whose descriptors are indexes into fds; fds stay the caller's.

    Where nothing is recorded and no terminal asked for, the child gets the caller's descriptors themselves and the logger has
    no part in it (Streams is None).
    """
    child = ChildStdio()
    null = shim.null
    given = {name: fds[stdio[name]] for name in ("stdin", "stdout", "stderr") if stdio.get(name, -1) >= 0}
    log = stdio.get("log") or {}
    format = log.get("format", "none")
    terminal = bool(stdio.get("terminal"))
    hold = bool(stdio.get("hold_stdin"))
    attachable = bool(stdio.get("attachable"))
    if not terminal and format == "none" and not attachable and not (hold and "stdin" not in given):
        child.fds = [given.get("stdin", null), given.get("stdout", null), given.get("stderr", null)]
        return child, None
    sink = json.dumps(log) if format != "none" else ""
    streams = TaskStreams(key, shim.keeper.slots.take(), terminal, hold, sink)
    try:
        if terminal:
            given.pop("stderr", None)
            child.fds = [null, null, null]
        else:
            if hold or "stdin" in given:
                streams.ends["stdin"] = child.pipe(0)
            else:
                child.fds[0] = null
            streams.ends["stdout"] = child.pipe(1)
            streams.ends["stderr"] = child.pipe(2)
        if given:
            streams.attached[given_at_start(stdio)] = {name: os.dup(fd) for name, fd in given.items()}
        if format == "raw-fd":
            names = ("stdout",) if terminal else ("stdout", "stderr")
            streams.attached["log"] = {name: os.dup(fds[log["fd"]]) for name in names}
    except BaseException:
        child.close()
        shim.keeper.slots.give(streams.slot)
        streams.close()
        raise
    return child, streams
