"""The shim's hold on its logger: it starts it, starts it again, and keeps a duplicate of all that the logger works with."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

from wherry.linux import framing, pidfd, process
from wherry.linux.channel import FrameChannel
from wherry.linux.loop import IN
from wherry.shim import arena, logger, wire
from wherry.shim.streams import TaskStreams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from wherry.linux.loop import Loop
    from wherry.shim.journal import Journal

_PATIENCE = 5.0


class LoggerSupervisor:
    """streams: by key, everything that is not drained yet. on_drained(key, eof): all that a process wrote has arrived; eof: and
    nobody holds its streams any more."""

    def __init__(self, loop: Loop, path: str, on_drained: Callable[[str, bool], None]) -> None:
        self.loop = loop
        self.path = path
        self.streams: dict[str, TaskStreams] = {}
        self.pid = 0
        self.channel: FrameChannel | None = None
        self.memory = -1
        self.slots: arena.Slots
        self.listener: socket.socket
        self.ledger: Journal
        self._on_drained = on_drained
        self._pidfd = -1
        self._started = 0.0
        self._failures = 0
        self.starts = 0  # how many loggers there were
        self.dropped: set[int] = set()  # slots that the logger has not released yet
        self._closing = False

    def start(self) -> None:
        """Forks a logger and gives it every stream there is. Where that can't be done now, it is tried again: what containers write
        waits in their pipes meanwhile."""
        if self._closing:
            return
        try:
            self._fork()
        except OSError as error:  # EAGAIN, ENOMEM, EMFILE
            os.write(2, f"logger: can't be started: {error}\n".encode())
            self._failures += 1
            self._start_later()
            return
        for slot in self.dropped:
            self.slots.give(slot)
        self.dropped.clear()
        for streams in self.streams.values():
            self._add(streams)

    def _fork(self) -> None:
        """OSError, and then there is no logger."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._started = time.monotonic()
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                keep = (2, theirs.fileno(), self.listener.fileno(), self.memory, self.ledger.fd)
                process.close_others(keep)
                logger.run(theirs, self.listener, self.memory, self.ledger.fd)
        self.starts += 1
        try:
            self.adopt(pid, ours)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # it is our child, and nobody has waited for it
            ours.close()
            self.pid = 0
            raise

    def _start_later(self) -> None:
        self.loop.later(min(1.0, 0.05 * 2 ** min(self._failures, 10)), self.start)

    def adopt(self, pid: int, sock: socket.socket) -> FrameChannel:
        """A logger that runs already; nothing happens when it has ended meanwhile, but for a new one."""
        self.pid = pid
        try:
            fd = pidfd.open(pid)
        except ProcessLookupError:
            fd = -1
        try:
            self.channel = FrameChannel(self.loop, sock, self._frame, self._lost)
            if fd >= 0:
                self.loop.add(fd, IN, lambda _events: self._ended())
        except BaseException:
            if self.channel is not None:
                channel, self.channel = self.channel, None
                channel.close()
            if fd >= 0:
                os.close(fd)
            raise
        self._pidfd = fd
        if fd < 0:
            self.loop.soon(self._ended)
        return self.channel

    def take_over(self) -> int:
        """Takes everything back from the logger of a lost shim: its ledger, -1 when there is no such logger.

        One that speaks otherwise, being of another version, is left alone: it records what its containers still write, and ends
        after them.
        """
        try:
            sock = wire.connect(self.path)
        except OSError:
            return -1
        sock.settimeout(_PATIENCE)
        reader = framing.Reader(sock)
        taken: dict[str, TaskStreams] = {}
        fds: list[int] = []
        try:
            framing.send(sock, {"op": "takeover"})
            while (frame := reader.next()) is not None:
                message, fds = frame
                if message["op"] == "stream":
                    taken[message["key"]] = TaskStreams.unpack(message, fds)
                    fds = []
                elif message["op"] == "streams":
                    break
                else:
                    for fd in fds:
                        os.close(fd)
                    fds = []
            else:
                raise framing.FrameError("no logger")
            if message.get("format", 1) != logger.FORMAT:
                raise framing.FrameError(f"of another version: format {message['format']!r}")
            self.memory, ledger, listener = fds
            pid = int(message["pid"])  # SO_PEERCRED names whoever called listen(2)
        except Exception as error:
            os.write(2, f"logger: {type(error).__name__}: {error}\n".encode())
            for streams in taken.values():
                streams.close()
            for fd in fds:
                os.close(fd)
            reader.close()
            sock.close()
            return -1
        self.streams = taken
        self.listener = socket.socket(fileno=listener)
        self.slots = arena.Slots(self.memory)
        self.dropped = set(message.get("left", ()))
        self.slots.adopt({streams.slot for streams in taken.values()} | self.dropped)
        channel = self.adopt(pid, sock)
        channel.reader = reader
        channel.take()
        return ledger

    def open(self, ledger: Journal) -> None:
        """Makes what ``take_over`` did not find, and starts a logger."""
        self.memory = arena.make()
        self.slots = arena.Slots(self.memory)
        self.listener = wire.listen(self.path)
        self.ledger = ledger
        self.start()

    def _lost(self, _channel: FrameChannel) -> None:
        """It will not do without its shim either: whatever it is up to, it is to end."""
        if not self._closing and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self) -> None:
        """The logger is gone. Its successor waits a little when it ended soon after its start."""
        if self._pidfd >= 0:
            self.loop.remove(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self.channel is not None:
            channel, self.channel = self.channel, None
            self._closing, closing = True, self._closing
            channel.take_rest()
            channel.close()
            self._closing = closing
        self.pid = 0
        if self._closing:
            return
        self._failures = self._failures + 1 if time.monotonic() - self._started < 1.0 else 0
        if self._failures > 3:
            self._start_later()
        else:
            self.start()

    # what the tasks ask for

    def add(self, streams: TaskStreams) -> None:
        self.streams[streams.key] = streams
        self._add(streams)

    def _add(self, streams: TaskStreams) -> None:
        message, fds = streams.pack()
        self._tell({"op": "add", **message}, fds)

    def _tell(self, message: dict[str, Any], fds: list[int] | tuple[int, ...] = ()) -> None:
        if self.channel is not None:
            self.channel.send(message, fds)

    def attach(self, streams: TaskStreams, token: str, part: dict[str, int]) -> None:
        streams.attached[token] = part
        message = {"op": "attach", "key": streams.key, "slot": streams.slot, "token": token, "names": list(part)}
        self._tell(message, list(part.values()))

    def detach(self, streams: TaskStreams, token: str) -> None:
        """The shim's duplicates go at once; the logger's when it hears of it."""
        streams.drop(token)
        self._tell({"op": "detach", "key": streams.key, "token": token})

    def close_stdin(self, streams: TaskStreams) -> None:
        streams.close_stdin()
        self._tell({"op": "close_stdin", "key": streams.key})

    def exited(self, streams: TaskStreams) -> None:
        """The process has ended: on_drained follows."""
        streams.exited = True
        self._tell({"op": "exited", "key": streams.key})

    def drop(self, streams: TaskStreams) -> None:
        """Lets go of streams that others may hold open for ever. What a slow reader has not taken yet it still gets, by the logger."""
        if self.streams.pop(streams.key, None) is None:
            return
        if self.channel is None:
            self.slots.give(streams.slot)
        else:
            self.dropped.add(streams.slot)
            self._tell({"op": "drop", "key": streams.key, "slot": streams.slot})
        streams.close()

    def quit(self) -> None:
        self._closing = True
        self._tell({"op": "quit"})
        if self.channel is not None:
            self.channel.drain()

    # what the logger says

    def _frame(self, _channel: FrameChannel, message: dict[str, Any], fds: list[int]) -> None:
        op = message["op"]
        if op == "released":
            slot = message.get("slot", -1)
            if slot in self.dropped:
                self.dropped.discard(slot)
                self.slots.give(slot)
            return
        streams = self.streams.get(message["key"])
        # By its slot it may be of an earlier run of that container; a logger of an earlier version, kept by a shim that replaced
        # itself, names none.
        if streams is None or message.get("slot", streams.slot) != streams.slot:
            for fd in fds:
                os.close(fd)
            return
        if op == "keep":
            streams.release(message["name"])
            (streams.kept[message["name"]],) = fds
        elif op == "gone":
            streams.drop_one(message["token"], message["name"])
            if message.get("pipe"):
                streams.release(message["pipe"])
        elif op == "gone_all":
            streams.drop(message["token"])
        elif op == "stdin":
            streams.close_stdin()
        elif op == "drained":
            streams.drained = True
            if message["eof"]:
                del self.streams[streams.key]
                self.slots.give(streams.slot)
                streams.close()
            self._on_drained(streams.key, message["eof"])
