"""The shim's requests: one method an op. Whatever it asks, a request costs the others nothing: none of them waits for a child.

Frames (wherry.linux.framing): {"id": n, "op": "...", ...} is answered by {"id": n, "ok": value} or {"id": n, "error": {"class", "what",
"cause", "hint", "errno"?}}, not in order. "events" turns its connection into a stream of {"event": {...}}.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time

from wherry.linux import pidfd
from wherry.linux.channel import FrameChannel
from wherry.linux.loop import IN, Loop
from wherry.shim import wire
from wherry.shim.engine_supervisor import EngineSupervisor
from wherry.shim.events import Events
from wherry.shim.journal import Journal
from wherry.shim.logger_supervisor import LoggerSupervisor
from wherry.shim.prefork import PreforkPool
from wherry.shim.reaper import Reaper
from wherry.shim.sandboxes import Sandboxes, end_pause, note
from wherry.shim.tasks import Tasks
from wherry.shim.wire import Fault, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from wherry.shim.boot import ShimOptions
    from wherry.shim.task import Task

PROTOCOL = 1
_PAGE = 150  # pidfds a frame
_PATIENCE = 10.0  # seconds that the next version waits for execs on their way


class Reply:
    """The answer to one request, given once, at any time; a client that went away gets none, nor does a request without an id."""

    __slots__ = ("channel", "given", "id")

    def __init__(self, channel: FrameChannel, id: Any) -> None:
        self.channel = channel
        self.id = id
        self.given = id is None

    def ok(self, value: Any, fds: Sequence[int] = ()) -> None:
        if not self.given:
            self.given = True
            self.channel.send({"id": self.id, "ok": value}, fds)

    def fail(self, error: BaseException | dict[str, Any]) -> None:
        if not self.given:
            self.given = True
            record = error if isinstance(error, dict) else describe(error)
            self.channel.send({"id": self.id, "error": record})


class Shim:
    """Everything the process has."""

    def __init__(self, options: ShimOptions, loop: Loop, listener: socket.socket, instance: str) -> None:
        self.options = options
        self.loop = loop
        self.instance = instance
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.reaper = Reaper(loop)
        self.reserve = PreforkPool(loop, self.reaper)
        self.events = Events()
        self.tasks = Tasks(self)
        self.sandboxes = Sandboxes(self)
        self.keeper = LoggerSupervisor(loop, f"{options.run}/logger.sock", self.tasks.drained)
        self.ledger: Journal
        self.supervisor = EngineSupervisor(options, loop, self.reaper)
        self.clients: set[FrameChannel] = set()
        self.listener = listener
        self.quitting = False
        self.replacing: tuple[Reply, dict[str, str]] | None = None
        self.patience = 0.0  # until when execs on their way are waited for then
        self.start_time = pidfd.start_time(os.getpid())

    def listen(self) -> None:
        self.loop.add(self.listener.fileno(), IN, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            sock, _address = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # what else it may be, as EMFILE, lasts: the loop lets this handler rest
        _pid, uid, _gid = wire.peer(sock)
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        self.admit(sock)

    def admit(self, sock: socket.socket) -> FrameChannel:
        channel = FrameChannel(self.loop, sock, self._frame, self._gone)
        self.clients.add(channel)
        return channel

    def _gone(self, channel: FrameChannel) -> None:
        self.clients.discard(channel)
        self.events.unsubscribe(channel)

    def _frame(self, channel: FrameChannel, message: dict[str, Any], fds: list[int]) -> None:
        reply = Reply(channel, message.get("id"))
        try:
            method = _OPS.get(message.get("op", ""))
            if method is None:
                raise Fault("Invalid", "shim request", f"no such op {message.get('op')!r}")
            method(self, reply, message, fds)
        except Exception as error:
            reply.fail(error)
        finally:
            for fd in fds:
                os.close(fd)

    # what the whole is

    def _hello(self, reply: Reply, _message: dict[str, Any], _fds: list[int]) -> None:
        reply.ok(
            {
                "protocol": PROTOCOL,
                "version": self.options.version,
                "pid": os.getpid(),
                "start_time": self.start_time,
                "instance": self.instance,
                "logger": self.keeper.pid,
                "root": self.options.root,
                "config": self.options.config,
            }
        )

    def _list(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        id = message.get("container", "")
        reply.ok([task.state() for task in self.tasks if not task.forgotten and (not id or task.id == id)])

    def _pidfds(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """A page of live tasks with their pidfds; "next" is where to go on, None at the end."""
        live = [task for task in self.tasks if task.pidfd >= 0 and not task.forgotten]
        first = message.get("from", 0)
        page = live[first : first + _PAGE]
        more = first + _PAGE if first + _PAGE < len(live) else None
        reply.ok({"tasks": [task.state() for task in page], "next": more}, [task.pidfd for task in page])

    # tasks

    def _spawn(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        if self.quitting:
            raise Fault("Unavailable", "shim", "it is about to end")
        self.tasks.spawn(reply, message["container"], message["exec_id"], message["plan"], message["stdio"], fds)

    def _start(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        self.tasks.start(reply, message["container"], message["exec_id"])

    def _signal(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        self.tasks.signal(message["container"], message["exec_id"], message["signal"])
        reply.ok(None)

    def _with_streams(self, message: dict[str, Any]) -> Task:
        task = self.tasks.get(message["container"], message["exec_id"])
        if task.streams is None or task.streams.key not in self.keeper.streams:
            if task.status == "stopped":
                cause = "is stopped"
            elif task.streams is None:
                cause = "its streams went straight to whoever started it"
            else:
                cause = "its streams have ended"  # a moment before it ends itself, or it has closed them
            raise Fault("FailedPrecondition", task.name, cause)
        return task

    def _resize(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        task = self._with_streams(message)
        master = task.streams.ends.get("master", -1) if task.streams else -1
        if master < 0:
            raise Fault("FailedPrecondition", task.name, "has no terminal")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", message["rows"], message["columns"], 0, 0))
        reply.ok(None)

    def _close_stdin(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        task = self.tasks.get(message["container"], message["exec_id"])
        if task.streams is not None and task.streams.key in self.keeper.streams:
            self.keeper.close_stdin(task.streams)
        reply.ok(None)

    def _attach(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        task = self._with_streams(message)
        stdio = message["stdio"]
        given = stdio.get("token") or ""
        if given and task.streams is not None and task.streams.token(given) is not None:
            raise Fault("AlreadyExists", task.name, "streams are attached to it under that token")
        part = {name: os.dup(fds[stdio[name]]) for name in ("stdin", "stdout", "stderr") if stdio.get(name, -1) >= 0}
        if task.streams is not None:
            if task.streams.terminal and "stderr" in part:
                os.close(part.pop("stderr"))
            # By chance, not by count: a shim that follows a lost one would begin again, with tokens that are in use.
            name = given or os.urandom(8).hex()
            self.keeper.attach(task.streams, ("h" if stdio.get("hold_stdin") else "a") + name, part)
            reply.ok(name)

    def _detach(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        task = self.tasks.get(message["container"], message["exec_id"])
        if task.streams is not None and task.streams.key in self.keeper.streams:
            token = task.streams.token(message["token"])
            if token is not None:
                self.keeper.detach(task.streams, token)
        reply.ok(None)

    def _forget(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        self.tasks.forget(message["container"], message["exec_id"])
        reply.ok(None)

    # sandboxes

    def _create_sandbox(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        reply.ok(self.sandboxes.create(message["sandbox"]))

    def _remove_sandbox(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        self.sandboxes.remove(message["sandbox"])
        reply.ok(None)

    def _sandboxes(self, reply: Reply, _message: dict[str, Any], _fds: list[int]) -> None:
        reply.ok([box.record for box in self.sandboxes])

    def _namespace(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        reply.ok(None, [self.sandboxes.namespace(message["sandbox"], message["type"])])

    def _socket(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        fd = self.sandboxes.socket(message["sandbox"], message["family"], message["type"], message["protocol"])
        reply.ok(None, [fd])
        os.close(fd)

    # events

    def _events(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        reply.ok(None)
        self.events.subscribe(reply.channel, message.get("after", 0))

    def _ack(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        self.events.ack(message["sequence"])
        reply.ok(None)

    # the processes

    def _engine(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        self.supervisor.engine(reply, restart=bool(message.get("restart")), config=message.get("config") or "")

    def _quit(self, reply: Reply, _message: dict[str, Any], _fds: list[int]) -> None:
        """Ends shim and logger. InUse while a container's task lives; those of drivers have a dot in their id."""
        for task in self.tasks:
            if task.status != "stopped" and "." not in task.id:
                raise Fault("InUse", "shim", f"{task.name} is still {task.status}", "stop it first")
        self.quitting = True
        reply.ok(None)
        self.loop.soon(self.loop.stop)

    def _recover(self, reply: Reply, message: dict[str, Any], fds: list[int]) -> None:
        """What an engine knows of tasks and sandboxes that a lost shim had; fds are the pidfds of "tasks", in order."""
        from wherry.shim.recover import from_engine

        from_engine(self, message["tasks"], message["sandboxes"], fds, last=not message.get("more"))
        reply.ok(None)

    def _replace_op(self, reply: Reply, message: dict[str, Any], _fds: list[int]) -> None:
        """exec of the code below "core", of that "version", by the interpreter "exe"; answered by the successor."""
        self.replacing = reply, {name: message[name] for name in ("core", "version", "exe") if message.get(name)}
        self.patience = time.monotonic() + _PATIENCE
        self._replace()

    def _replace(self) -> None:
        """Once no request waits for a child any more."""
        if self.replacing is None:
            return
        if self.tasks.starting() or self.supervisor.busy():
            if time.monotonic() > self.patience:
                self._give_up()
            self.loop.later(0.005, self._replace)
            return
        from wherry.shim.replace import replace

        (reply, successor), self.replacing = self.replacing, None
        replace(self, reply, successor)

    def _give_up(self) -> None:
        """Execs that do not get to their execve are no more: a container's root may stop what is born in it, for good, and the next
        version would never come."""
        for task in self.tasks:
            if task.exec_id and task.waiting and task.error is None:
                self.tasks.failed(task, describe(Fault("Unavailable", task.name, "its process does not get on")))

    # bookkeeping

    def note_task(self, task: Task) -> None:
        """Writes a task's state to the ledger."""
        streams = task.streams
        self.ledger.note(task={**task.state(), "pid": task.pid, "streams": streams is not None})
        if self.ledger.heavy():
            self.compact()

    def compact(self) -> None:
        lines: list[dict[str, Any]] = [{"sandbox": note(box)} for box in self.sandboxes]
        lines += [
            {"task": {**task.state(), "pid": task.pid, "streams": task.streams is not None}}
            for task in self.tasks
            if task.status != "creating"
        ]
        self.ledger.rewrite(lines)

    def close(self) -> None:
        """The end, when nothing lives any more."""
        for name in ("shim.sock", "logger.sock"):
            try:
                os.unlink(f"{self.options.run}/{name}")
            except FileNotFoundError:
                pass
        self.keeper.quit()
        self.reserve.close()
        for box in self.sandboxes:
            end_pause(box)
        for client in tuple(self.clients):
            client.drain()


_OPS = {
    "hello": Shim._hello,
    "list": Shim._list,
    "pidfds": Shim._pidfds,
    "spawn": Shim._spawn,
    "start": Shim._start,
    "signal": Shim._signal,
    "resize": Shim._resize,
    "close_stdin": Shim._close_stdin,
    "attach": Shim._attach,
    "detach": Shim._detach,
    "forget": Shim._forget,
    "create_sandbox": Shim._create_sandbox,
    "remove_sandbox": Shim._remove_sandbox,
    "sandboxes": Shim._sandboxes,
    "namespace": Shim._namespace,
    "socket": Shim._socket,
    "events": Shim._events,
    "ack": Shim._ack,
    "engine": Shim._engine,
    "quit": Shim._quit,
    "recover": Shim._recover,
    "replace": Shim._replace_op,
}
