"""The streams of one task as shim and logger both hold them, and how they travel from one to the other."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class TaskStreams:
    """ends: the container's pipes or pty master, by name: "stdin" is written to, "stdout" and "stderr" are read, "master" is both.
    kept: the logger's staging pipes, by the names it gave them. log is a LogSink as JSON text, "" for none.

    attached: token -> stream name -> the client's descriptor. A token is a name, the client's own or made here, behind a letter: "s"
    for those given at spawn ("" alone where the client gave none), "h" and "a" for those attached later, whose stdin is held open
    after its end or is not. The log's collector, for raw-fd, is attached under the token "log"."""

    __slots__ = ("attached", "drained", "ends", "exited", "hold", "key", "kept", "log", "slot", "terminal")

    def __init__(self, key: str, slot: int, terminal: bool, hold: bool, log: str) -> None:
        self.key = key
        self.slot = slot
        self.terminal = terminal
        self.hold = hold
        self.log = log
        self.exited = False
        self.drained = False
        self.ends: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        self.attached: dict[str, dict[str, int]] = {}

    def pack(self) -> tuple[dict[str, Any], list[int]]:
        """A frame's fields and its descriptors, which stay ours."""
        fds: list[int] = [*self.ends.values(), *self.kept.values()]
        for part in self.attached.values():
            fds.extend(part.values())
        message = {
            "key": self.key,
            "slot": self.slot,
            "terminal": self.terminal,
            "hold": self.hold,
            "log": self.log,
            "exited": self.exited,
            "ends": list(self.ends),
            "kept": list(self.kept),
            "attached": [[token, list(part)] for token, part in self.attached.items()],
        }
        return message, fds

    @classmethod
    def unpack(cls, message: dict[str, Any], fds: list[int]) -> TaskStreams:
        """The other way round; the descriptors become its own."""
        self = cls(message["key"], message["slot"], message["terminal"], message["hold"], message["log"])
        self.exited = message["exited"]
        left: Iterator[int] = iter(fds)
        self.ends = {name: next(left) for name in message["ends"]}
        self.kept = {name: next(left) for name in message["kept"]}
        self.attached = {token: {name: next(left) for name in names} for token, names in message["attached"]}
        return self

    def token(self, name: str) -> str | None:
        """What a client calls its descriptors, as they are kept here; None when there are none of that name."""
        return next((token for token in (name, f"s{name}", f"h{name}", f"a{name}") if token in self.attached), None)

    def drop(self, token: str) -> None:
        """Closes what was attached under a token; nothing happens when that is gone."""
        for fd in self.attached.pop(token, {}).values():
            os.close(fd)

    def drop_one(self, token: str, name: str) -> None:
        part = self.attached.get(token)
        if part is None or name not in part:
            return
        os.close(part.pop(name))
        if not part:
            del self.attached[token]

    def release(self, name: str) -> None:
        """Closes one of the logger's staging pipes."""
        fd = self.kept.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def close_stdin(self) -> None:
        fd = self.ends.pop("stdin", -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        for fd in (*self.ends.values(), *self.kept.values()):
            os.close(fd)
        self.ends.clear()
        self.kept.clear()
        for token in tuple(self.attached):
            self.drop(token)
