"""The logger: the shim's child that moves and records what containers write, and feeds them what clients type.

It is forked from the shim, runs at nice 10, and each of the two can lose the other: the shim starts a new logger with the
same descriptors; a new shim connects to <run>/logger.sock and takes descriptors, arena and ledger back.

Frames from the shim: add, attach, detach, close_stdin, exited, drop, takeover, quit. Frames to it: keep (a staging pipe, to be held
too), gone (a client's descriptor is done with), stdin (closed), drained, released, stream and streams (a takeover).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket

from wherry.linux import process
from wherry.linux.channel import FrameChannel
from wherry.linux.loop import IN, Loop
from wherry.shim import pipes, wire
from wherry.shim.arena import Arena
from wherry.shim.input import Input
from wherry.shim.logfile import LogFile
from wherry.shim.output import Output
from wherry.shim.streams import TaskStreams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Of what "takeover" is answered with; another number means that a newer shim cannot read it. None given is 1.
FORMAT = 1
_NAMES = ("stdout", "stderr")
_WITHOUT_SHIM = 30.0  # seconds in which a new shim may come
_LAST_STEPS = 64  # of at least one page each: more than a pipe of the default size holds


class LoggedTask:
    """The streams of one process in a container."""

    __slots__ = ("closed", "input", "left", "log", "logger", "outputs", "reported", "streams", "when_full")

    def __init__(self, logger: Logger, streams: TaskStreams) -> None:
        self.logger = logger
        self.streams = streams
        self.closed = False
        self.left = False  # the shim has let go of it: only what readers have not taken yet keeps it here
        self.reported = False
        sink = json.loads(streams.log) if streams.log else {}
        self.when_full = sink.get("when_full", "block")
        self.log: LogFile | None = None
        if sink.get("format") in ("json-file", "local"):
            state = logger.arena.log(streams.slot)
            valid = None if state is None else state[0]
            self.log = LogFile(sink["path"], sink["format"], sink.get("max_size", 0), sink.get("max_file", 1), valid)
            if state is not None and state[2] >= 0:
                stage = streams.kept.get(f"stage{state[1]}", -1)
                if stage >= 0:
                    pipes.discard(stage, pipes.pending(stage) - state[2], logger.null)
                logger.arena.set_log(streams.slot, state[0])
        ends = streams.ends
        self.outputs = [
            Output(self, index, ends[name])
            for index, name in enumerate(("master",) if streams.terminal else _NAMES)
            if name in ends
        ]
        end = ends.get("master" if streams.terminal else "stdin", -1)
        self.input = Input(self, end) if end >= 0 else None
        attached, streams.attached = streams.attached, {}
        for token, part in attached.items():
            self.attach(token, part)
        for output in self.outputs:
            output.recover()

    def attach(self, token: str, part: dict[str, int]) -> None:
        """Adds a client's descriptors: stdin is read, the others are written."""
        mine = self.streams.attached.setdefault(token, {})
        drop = token == "log" and self.when_full == "drop"
        for name, fd in part.items():
            if name == "stdin":
                if self.input is None or self.input.closed:
                    os.close(fd)
                    self.logger.tell("gone", self, token=token, name=name)
                else:
                    mine[name] = self.input.add(token, fd)
                continue
            output = next((item for item in self.outputs if _NAMES[item.index] == name), None)
            if output is None or output.eof:
                os.close(fd)
                self.logger.tell("gone", self, token=token, name=name)
            else:
                mine[name] = output.add_reader(token, fd, drop)
        if not mine:
            self.streams.attached.pop(token, None)

    def detach(self, token: str) -> None:
        if self.input is not None:
            self.input.remove(token)
        for output in self.outputs:
            output.remove_reader(token)

    def keep(self, name: str, fd: int) -> None:
        """A staging pipe is used only after the shim was sent its duplicate."""
        self.streams.kept[name] = fd
        self.logger.tell("keep", self, [fd], name=name)

    def gone(self, token: str, index: int) -> None:
        """A client's descriptor is done with: index as in Output, -1 for stdin."""
        name = _NAMES[index] if index >= 0 else "stdin"
        self.streams.drop_one(token, name)
        pipe = "" if index < 0 else f"{token}/{index}"
        if pipe:
            self.streams.release(pipe)
        self.logger.tell("gone", self, token=token, name=name, pipe=pipe)

    def stdin_closed(self) -> None:
        self.streams.close_stdin()
        self.logger.tell("stdin", self)

    def resume(self, output: Output) -> None:
        """Moves a batch of one stream and looks at where the task stands; the loop comes back for more, so all get a turn."""
        if self.closed:
            return
        if output.step() and not self.streams.exited:
            output.watch()
            return
        self.settle()

    def settle(self) -> None:
        """At the end of a stream, or of the process: the rest is written, then the shim is told."""
        for output in self.outputs:
            if self.streams.exited and not output.quiet:
                output.hung = False
                for _ in range(_LAST_STEPS):  # a child that lives on may write for ever
                    if not output.step():
                        break
                held = output.blocked or any(pipes.pending(reader.pipe) for reader in output.readers if not reader.drop)
                output.quiet = not held
            if output.eof or output.quiet:
                output.record(force=True)
            output.watch()
        if self.closed or not all(output.settled() for output in self.outputs):
            return
        if self.left:
            self.logger.leave(self)
            return
        ended = all(output.eof or (output.hung and self.streams.exited) for output in self.outputs)
        if ended:
            self.logger.finish(self)
        elif not self.reported:
            self.reported = True
            for token in tuple(self.streams.attached):
                if token != "log":
                    self.detach(token)
            self.logger.tell("drained", self, eof=False)
            self.logger.rest()

    def drop(self) -> None:
        """The shim has let go of it: it ends with what its readers still wait for. A log that takes nothing is given up."""
        self.left = self.streams.exited = True
        if self.input is not None and not self.input.closed:
            self.input.close()
        if any(output.blocked for output in self.outputs):
            self.logger.leave(self)
        else:
            self.settle()

    def close(self) -> None:
        self.closed = True
        if self.input is not None and not self.input.closed:
            self.input.close()
        for output in self.outputs:
            output.close()
        if self.log is not None:
            self.log.close()
        self.streams.close()


class Logger:
    """The process. Its descriptors at start: the shim's socket, the listening one, arena and ledger."""

    def __init__(self, sock: socket.socket, listener: socket.socket, arena: int, ledger: int) -> None:
        self.loop = Loop()
        self.arena = Arena(arena)
        self.null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self.scratch = pipes.staging()
        self.tasks: dict[str, LoggedTask] = {}
        self.left: set[LoggedTask] = set()
        self._quitting = False
        self._memory = (arena, ledger, listener.fileno())
        self._listener = listener
        self._shim: FrameChannel | None = FrameChannel(self.loop, sock, self._frame, self._lost)
        self.loop.add(listener.fileno(), IN, self._accept)

    def tell(
        self, op: str, task: LoggedTask | None = None, fds: list[int] | tuple[int, ...] = (), **fields: Any
    ) -> None:
        if self._shim is not None:
            # By slot, too: the next run of a container has the same key, and is not to hear of this one.
            named = {"key": task.streams.key, "slot": task.streams.slot} if task else {}
            self._shim.send({"op": op, **named, **fields}, fds)

    def finish(self, task: LoggedTask) -> None:
        """All its streams have ended, and nothing of it is here any more."""
        del self.tasks[task.streams.key]
        task.close()
        self.tell("drained", task, eof=True)
        self.rest()

    def leave(self, task: LoggedTask) -> None:
        """As ``finish``, for one that the shim has let go of."""
        self.left.discard(task)
        task.close()
        self.tell("released", task)
        self.rest()

    def rest(self) -> None:
        """Ends once every log is whole and every reader has what is its own: when the shim has said so, at once, and without any, a
        while later."""
        if self._quitting and not self.left and all(task.reported for task in self.tasks.values()):
            self.loop.stop()
        elif self._shim is None and not self.tasks and not self.left:
            self.loop.later(_WITHOUT_SHIM, self._unwanted)

    def _accept(self, _events: int) -> None:
        """A new shim: the old one is gone, or will be when it sees this connection replace its own."""
        sock, _address = self._listener.accept()
        _pid, uid, _gid = wire.peer(sock)
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        old, self._shim = self._shim, FrameChannel(self.loop, sock, self._frame, self._lost)
        if old is not None:
            old.close()

    def _lost(self, channel: FrameChannel) -> None:
        """The shim is gone: containers go on, their output is recorded, a new shim will come; without any there is no need."""
        if channel is not self._shim:
            return
        self._shim = None
        self.rest()

    def _unwanted(self) -> None:
        if self._shim is None and not self.tasks and not self.left:
            self.loop.stop()

    def _frame(self, channel: FrameChannel, message: dict[str, Any], fds: list[int]) -> None:
        if channel is not self._shim:
            for fd in fds:
                os.close(fd)
            return
        op = message["op"]
        if op == "add":
            streams = TaskStreams.unpack(message, fds)
            if streams.key in self.tasks:
                streams.close()
                return
            task = self.tasks[streams.key] = LoggedTask(self, streams)
            for output in task.outputs:
                task.resume(output)
            return
        if op == "takeover":
            self._hand_over()
        elif op == "quit":
            self._quitting = True
            self.rest()
        found = self.tasks.get(message.get("key", ""))
        if found is None:
            for fd in fds:
                os.close(fd)
            if op == "attach":
                self.tell("gone_all", token=message["token"], key=message["key"], slot=message["slot"])
            elif op == "drop":
                self.tell("released", slot=message["slot"])
            return
        if op == "attach":
            found.attach(message["token"], dict(zip(message["names"], fds, strict=True)))
            found.settle()
        elif op == "detach":
            found.detach(message["token"])
        elif op == "close_stdin":
            if found.input is not None and not found.streams.terminal:
                found.input.close()
        elif op == "exited":
            found.streams.exited = True
            found.settle()
        elif op == "drop":
            del self.tasks[found.streams.key]
            self.left.add(found)
            found.drop()

    def _hand_over(self) -> None:
        for task in self.tasks.values():
            message, fds = task.streams.pack()
            if self._shim is not None:
                self._shim.send({"op": "stream", **message}, fds)
        left = [task.streams.slot for task in self.left]
        self.tell("streams", fds=self._memory, pid=os.getpid(), format=FORMAT, left=left)


def run(sock: socket.socket, listener: socket.socket, arena: int, ledger: int) -> None:
    """The whole life of a logger, in a process that was forked for it; never returns."""
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.nice(10)
        process.set_name("wherry-logger")
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGHUP else signal.SIG_IGN)
        Logger(sock, listener, arena, ledger).loop.run()
        status = 0
    finally:
        os._exit(status)
