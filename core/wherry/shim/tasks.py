"""All tasks: from a plan to a held process, to a running one, to an exit event.

Nothing here waits: a child's packets, its end of file and its death are events of the loop, and a request that depends on one
is answered when it comes.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import termios
import time

from wherry.linux import pidfd
from wherry.linux.loop import IN, report
from wherry.oci import spawn as oci
from wherry.shim import foreign
from wherry.shim.engine_supervisor import reset_oom, unprotected
from wherry.shim.hooks import HookRun
from wherry.shim.stdio import open_streams
from wherry.shim.task import Task, plain_spawn
from wherry.shim.wire import Fault, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from wherry.shim.server import Reply, Shim

#: How long an exit event waits for output that a slow reader holds up; "task.drained" follows then.
PATIENCE = 2.0
_PACKET = 1 << 14


class Tasks:
    """By (id, exec id)."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._tasks: dict[tuple[str, str], Task] = {}
        self._by_key: dict[str, Task] = {}
        self._ended = self.ended  # one bound method for all
        self.undecided: set[tuple[str, str]] = set()  # ended while there was no shim: an engine may know how

    def __iter__(self) -> Iterator[Task]:
        return iter(tuple(self._tasks.values()))

    def get(self, id: str, exec_id: str) -> Task:
        """Fault NotFound when there is none."""
        task = self._tasks.get((id, exec_id))
        if task is None or task.forgotten:
            raise Fault("NotFound", Task(id, exec_id, "").name, "no such task")
        return task

    def find(self, id: str, exec_id: str) -> Task | None:
        return self._tasks.get((id, exec_id))

    def add(self, task: Task) -> None:
        self._tasks[task.id, task.exec_id] = task
        if task.streams is not None:
            self._by_key[task.streams.key] = task

    def members(self, sandbox_id: str) -> list[Task]:
        """The tasks of a sandbox that have not ended."""
        return [task for task in self._tasks.values() if task.sandbox_id == sandbox_id and task.status != "stopped"]

    def live(self) -> bool:
        return any(task.status != "stopped" for task in self._tasks.values())

    def starting(self) -> bool:
        """Whether some request still waits for a child."""
        return any(task.waiting for task in self._tasks.values())

    # spawn

    def spawn(
        self, reply: Reply, id: str, exec_id: str, plan: dict[str, Any], stdio: dict[str, Any], fds: list[int]
    ) -> None:
        """Begins; reply is answered when the child is ready. fds stay the caller's."""
        known = self._tasks.get((id, exec_id))
        if known is not None:
            if known.forgotten:
                raise Fault("AlreadyExists", known.name, "the one before it has not ended yet", "try again")
            if known.status == "creating" or (known.direct and known.starting):
                known.waiting = (*known.waiting, reply)
            else:
                self._answer(reply, known)
            return
        task = Task(id, exec_id, plan.get("sandbox_id") or "")
        how = plan.get("how", "clone")
        if how == "adopt":
            self._adopt_plan(task, plan)
            self._answer(reply, task)
            return
        target, namespaces = -1, dict[str, int]()
        if plan.get("target"):
            first = self.get(plan["target"], "")
            if first.status != "running":
                raise Fault("FailedPrecondition", first.name, f"is {first.status}, not running")
            target = first.pidfd
        elif task.sandbox_id:
            namespaces = self._shim.sandboxes.fds(task.sandbox_id)
        child, streams = open_streams(self._shim, task.key, stdio, fds)
        try:
            given = [fds[index] for index in plan.get("fds") or ()]
            if how == "spawn":
                if stdio.get("terminal"):
                    raise Fault("Invalid", "plan", 'how "spawn" has no terminal')
                task.pid, task.pidfd = plain_spawn(plan, child.fds, given)
                task.status = "running"
            else:
                stdin, stdout, stderr = child.fds
                if target >= 0:
                    held = self._shim.reserve.exec(plan, stdio=child.fds, fds=given, target=target)
                else:
                    held = self._shim.reserve.spawn(plan, stdio=child.fds, fds=given, namespaces=namespaces)
                own = unprotected(plan)
                held = held or oci.spawn(
                    own, stdin=stdin, stdout=stdout, stderr=stderr, fds=given, namespaces=namespaces, target=target
                )
                task.pid, task.pidfd = held.pid, held.pidfd
                task.hooks = plan.get("hooks") or None
                task.direct = bool(plan.get("start")) and not task.hooks
                task.size = (stdio.get("rows", 0), stdio.get("columns", 0))
                task.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, held.channel)
                task.channel.setblocking(False)
        except BaseException:
            child.close()
            if streams is not None:
                self._shim.keeper.slots.give(streams.slot)
                streams.close()
            raise
        child.close()
        task.streams = streams
        task.protected = not any(step[0] == "oom_score" for step in plan.get("steps") or ())
        self.add(task)
        if streams is not None and not streams.terminal:
            self._shim.keeper.add(streams)
        if task.channel is not None:
            task.waiting = (*task.waiting, reply)
            self._shim.loop.add(task.channel.fileno(), IN, lambda _events: self._packet(task))
        if task.pid:
            self._known(task)
            self._shim.reaper.expect(task.pid, self._ended, task, handle=task.pidfd)
        if task.channel is None:
            self._note(task)
            self._answer(reply, task)

    def _known(self, task: Task) -> None:
        """The pid is known."""
        with contextlib.suppress(ProcessLookupError):
            task.start_time = pidfd.start_time(task.pid)
        if task.protected:
            reset_oom(task.pid)

    def _adopt_plan(self, task: Task, plan: dict[str, Any]) -> None:
        """A process that is there already; FailedPrecondition when the pid is another's by now."""
        task.adopt(plan["pid"], plan.get("start_time") or 0)
        self.add(task)
        self.follow(task)
        self._note(task)

    def _answer(self, reply: Reply, task: Task) -> None:
        reply.ok(task.state(), [task.pidfd] if task.pidfd >= 0 else ())

    def _note(self, task: Task) -> None:
        self._shim.note_task(task)

    # what the child says

    def _packet(self, task: Task) -> None:
        """One packet; whatever goes wrong with it ends that task and nothing else."""
        try:
            self._take_packet(task)
        except Exception as error:
            report()
            self.failed(task, describe(error))

    def _take_packet(self, task: Task) -> None:
        sock = task.channel
        if sock is None:
            return
        try:
            data, ancillary, _flags, _address = sock.recvmsg(_PACKET, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        fds = array.array("i")
        for _level, _kind, payload in ancillary:
            fds.frombytes(payload)
        if not data:
            self._silent(task)
            return
        try:
            if task.error is None:  # else it is to go, whatever it had said by then
                self._said(task, json.loads(data), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _said(self, task: Task, message: dict[str, Any], fds: array.array[int]) -> None:
        """fds: what is taken out of it is the task's, the rest is closed by the caller."""
        if "error" in message:
            self.failed(task, message["error"])
            return
        if "pid" in message:
            task.pid = message["pid"]
            task.pidfd = fds.pop() if fds else pidfd.open(task.pid)
            self._known(task)
        if "hooks" in message:
            self._hooks(task, message["hooks"])
        if "created" in message:
            self._created(task, message["created"], fds)
        if "running" in message:
            self._running(task)
        if "pid" in message:  # last, as it may have ended long since
            self._shim.reaper.expect(task.pid, self._ended, task, handle=task.pidfd)
        if "ended" in message and task.status == "running":
            self._shim.reaper.unexpect(task.pid)  # it is a zombie, and the shim's in a moment
            self.ended(task, message["ended"])

    def _hooks(self, task: Task, moment: str) -> None:
        hooks = task.hooks or {}
        run = [*(hooks.get("prestart") or ()), *(hooks.get(moment) or ())]
        state = {**(hooks.get("state") or {}), "status": "creating", "pid": task.pid}

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.failed(task, describe(error))
            elif task.channel is not None:
                with contextlib.suppress(OSError):
                    task.channel.send(b"h")

        HookRun(self._shim.loop, self._shim.reaper, run, state, done)

    def _late_hooks(self, task: Task, moment: str, done: Callable[[], None]) -> None:
        """poststart or poststop: their failures change nothing."""
        hooks = task.hooks or {}
        state = {**(hooks.get("state") or {}), "status": task.status, "pid": task.pid}
        run = hooks.get(moment) or ()
        HookRun(self._shim.loop, self._shim.reaper, run, state, lambda _error: done(), strict=False)

    def _created(self, task: Task, record: dict[str, Any], fds: array.array[int]) -> None:
        if task.hooks and not (task.hooks.get("poststart") or task.hooks.get("poststop")):
            task.hooks = None
        task.user = record.get("user", "")
        waits = bool(fds) or not task.exec_id  # with a terminal it does
        if task.streams is not None and task.streams.terminal and fds:
            master = fds.pop()
            os.set_blocking(master, False)
            if any(task.size):
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", *task.size, 0, 0))
            task.streams.ends["master"] = master
            self._shim.keeper.add(task.streams)
        task.status = "created"
        if task.direct and not waits:  # its end is its container's at the latest
            task.starting = True
            return
        self._note(task)  # before it runs: a shim that follows a lost one is to know of it
        if task.direct:
            self._let_go(task)
            return
        waiting, task.waiting = task.waiting, ()
        for reply in waiting:
            self._answer(reply, task)

    def _running(self, task: Task) -> None:
        """execve succeeded, or it ends before."""
        task.starting = False
        if task.status == "created":
            task.status = "running"
            self._note(task)
        if task.hooks:
            self._late_hooks(task, "poststart", lambda: self._started(task))
        else:
            self._started(task)

    def _silent(self, task: Task) -> None:
        """End of file: execve succeeded, or the child has died, which its end will tell."""
        self._unchannel(task)
        if task.starting and task.error is None:
            self._running(task)
        elif task.status == "creating" and task.pid == 0 and task.error is None:  # the intermediate died
            self.failed(task, describe(Fault("Error", task.name, "its first process ended before it was ready")))

    def _started(self, task: Task) -> None:
        waiting, task.waiting = task.waiting, ()
        for reply in waiting:
            if task.direct:
                self._answer(reply, task)
            else:
                reply.ok(None)

    def failed(self, task: Task, record: dict[str, Any]) -> None:
        """The child cannot go on. Whoever waits hears why once it has ended, so that the same id can be used again at once."""
        task.error = record
        task.hooks = None
        task.starting = False
        if task.status == "creating" or task.direct:
            task.forgotten = True  # it never was
        if task.pid == 0:
            self._tell_failure(task)
            self._drop(task)
        elif task.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(task.pidfd, signal.SIGKILL)
        else:
            try:
                os.kill(task.pid, signal.SIGKILL)  # our child all the same, and this thread alone collects it
            except ProcessLookupError:
                self.ended(task, None)
            else:
                self._shim.reaper.expect(task.pid, self._ended, task)

    @staticmethod
    def _tell_failure(task: Task) -> None:
        waiting, task.waiting = task.waiting, ()
        for reply in waiting:
            reply.fail(task.error or {})

    def _unchannel(self, task: Task) -> None:
        if task.channel is not None:
            self._shim.loop.remove(task.channel.fileno())
            task.channel.close()
            task.channel = None

    # start, signal

    def start(self, reply: Reply, id: str, exec_id: str) -> None:
        task = self.get(id, exec_id)
        if task.status == "running":
            reply.ok(None)
        elif task.status == "created" and task.error is not None:
            reply.fail(task.error)
        elif task.status == "created" and not task.direct and task.channel is not None:
            task.waiting = (*task.waiting, reply)
            if not task.starting:
                self._let_go(task)
        else:
            raise Fault("FailedPrecondition", task.name, f"is {task.status}")

    def _let_go(self, task: Task) -> None:
        """Has a child that is ready go on to its execve; who waits is answered then."""
        task.starting = True
        try:
            if task.channel is not None:
                task.channel.send(b"s")
        except OSError:
            self._packet(task)

    def signal(self, id: str, exec_id: str, number: int) -> None:
        task = self.get(id, exec_id)
        if task.status == "stopped" or task.pidfd < 0:
            raise Fault("FailedPrecondition", task.name, f"is {task.status}")
        try:
            pidfd.send_signal(task.pidfd, number)
        except ProcessLookupError:
            raise Fault("FailedPrecondition", task.name, "is stopped") from None

    # the end

    def follow(self, task: Task) -> None:
        """Waits for the end of a process that may not be our child."""
        task.foreign = True
        self._shim.reaper.expect(task.pid, self._ended, task)
        foreign.watch(self._shim, task)

    def ended(self, task: Task, code: int | None) -> None:
        """The process has been reaped."""
        while task.more():  # what it sent last, an error perhaps
            self._packet(task)
        if task.status == "stopped":  # whoever had it spawned said so just now
            return
        if task.starting and task.error is None:  # so short a life that its end was seen before its execve
            self._silent(task)
        self._unchannel(task)
        if task.foreign:
            self._shim.loop.remove(task.pidfd)
        if task.waiting and task.status != "running":
            if task.error is None:
                cause = f"its process ended with status {code} before it was ready"
                task.error = describe(Fault("Error", task.name, cause))
            if task.status == "creating":
                task.forgotten = True
        if task.pidfd >= 0:
            os.close(task.pidfd)
            task.pidfd = -1
        if task.forgotten:
            self._drop(task)
            self._tell_failure(task)
            return
        task.status = "stopped"
        task.code = code
        task.stopped_at = time.time_ns()
        self._note(task)
        if task.direct:
            self._shim.reserve.used()
        if task.error is not None:
            self._tell_failure(task)
        streams = task.streams
        if streams is None or streams.drained or streams.key not in self._shim.keeper.streams:
            self._publish(task, drained=True)
            return
        task.held = self._shim.loop.later(PATIENCE, lambda: self._late(task))
        self._shim.keeper.exited(streams)

    def _publish(self, task: Task, *, drained: bool) -> None:
        """Tells the end of a task; that of a container after those of its execs, whose ends nobody asks for after it."""
        execs = any(other.id == task.id and other.exec_id and other.held is not None for other in self._tasks.values())
        if not task.exec_id and execs:
            task.owed = drained
            return
        task.owed = None
        attributes = {
            "exec_id": task.exec_id,
            "pid": str(task.pid),
            "code": "" if task.code is None else str(task.code),
            "oom_killed": "true" if task.oom else "false",
            "drained": "true" if drained else "false",
        }
        self._shim.events.publish("task.exited", task.id, attributes, task.stopped_at)
        container = self._tasks.get((task.id, ""))
        if container is not None and container.owed is not None:
            self._publish(container, drained=container.owed)

    def tell_again(self, task: Task) -> None:
        """The end of a task that a lost shim had seen; whoever was told already takes no harm."""
        self._publish(task, drained=task.streams is None)

    def _late(self, task: Task) -> None:
        task.held = None
        self._publish(task, drained=False)

    def drained(self, key: str, _eof: bool) -> None:
        """The logger says that all output of a process has arrived."""
        task = self._by_key.get(key)
        if task is None or task.status != "stopped":
            return
        if task.held is not None:
            task.held.cancel()
            task.held = None
            self._publish(task, drained=True)
        elif task.streams is not None:
            self._shim.events.publish("task.drained", task.id, {"exec_id": task.exec_id})
        if _eof:
            task.streams = None
            self._by_key.pop(key, None)

    def forget(self, id: str, exec_id: str) -> None:
        task = self._tasks.get((id, exec_id))
        if task is None:
            return
        if task.status != "stopped":
            if task.error is None:
                raise Fault("FailedPrecondition", task.name, f"is {task.status}")
            task.forgotten = True  # it failed to start, and its end is on the way
            return
        if task.hooks and task.hooks.get("poststop"):
            self._late_hooks(task, "poststop", lambda: None)
        self._drop(task)

    def _drop(self, task: Task) -> None:
        if task.held is not None:
            task.held.cancel()
            task.held = None
        self._unchannel(task)
        if task.streams is not None:
            self._by_key.pop(task.key, None)
            if task.streams.key in self._shim.keeper.streams:
                self._shim.keeper.drop(task.streams)
            elif not task.streams.drained:
                self._shim.keeper.slots.give(task.streams.slot)
                task.streams.close()
            task.streams = None
        if self._tasks.get((task.id, task.exec_id)) is task:
            del self._tasks[task.id, task.exec_id]
            if task.status != "creating":
                self._shim.ledger.note(forget=[task.id, task.exec_id])

    def restore(self, task: Task, *, unpublished: bool) -> None:
        """A task of this process before it replaced itself; unpublished: its exit event is still held back."""
        self.add(task)
        if task.channel is not None:
            self._shim.loop.add(task.channel.fileno(), IN, lambda _events: self._packet(task))
        if task.status != "stopped":
            if task.foreign:
                self.follow(task)
            elif task.pid:
                self._shim.reaper.expect(task.pid, self._ended, task)
        elif unpublished:
            task.held = self._shim.loop.later(PATIENCE, lambda: self._late(task))
