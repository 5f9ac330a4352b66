"""Starting, awaiting and restarting the engine, without ever waiting for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

from wherry.linux import pidfd
from wherry.linux.loop import HUP, IN
from wherry.shim import wire
from wherry.shim.wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.linux.loop import Loop, Timer
    from wherry.shim.boot import ShimOptions
    from wherry.shim.reaper import Reaper
    from wherry.shim.server import Reply

_READY = 60.0
_STOP = 10.0
_SOON = 5.0  # an engine that ends within this many seconds of its start makes the next start wait
_LOG = 8 << 20
_READY_FD = 3


class EngineSupervisor:
    """One engine: its start is asked for by any number of clients at once and happens once."""

    def __init__(self, options: ShimOptions, loop: Loop, reaper: Reaper) -> None:
        self._options = options
        self._loop = loop
        self._reaper = reaper
        self.pid = 0
        self.ready = False
        self._ready_fd = -1
        self._text = b""
        self._waiting: list[Reply] = []
        self._timer: Timer | None = None
        self._started = 0.0
        self._failures = 0
        self._restarting = False
        self._pausing = False

    def engine(self, reply: Reply, *, restart: bool = False, config: str = "") -> None:
        """Answers once an engine accepts connections."""
        if not self._options.python:
            raise Fault("FailedPrecondition", "engine", "this shim belongs to an engine in another process")
        if config:
            self._options.config = config
        if restart:
            self._waiting.append(reply)
            self._restart()
        elif self.pid and self.ready:
            reply.ok({"pid": self.pid})
        elif self.pid or self._restarting or self._pausing:
            self._waiting.append(reply)
        elif pid := self._other():
            reply.ok({"pid": pid})
        else:
            self._waiting.append(reply)
            self._start_soon()

    def _other(self) -> int:
        """The pid of an engine that somebody else started, 0 for none."""
        try:
            sock = wire.connect(f"{self._options.run}/engine.sock")
        except OSError:
            return 0
        with sock:
            return wire.peer(sock)[0]

    def _start_soon(self) -> None:
        """At once, or a little later after engines that ended right after their start."""
        if not self._failures:
            self._start()
            return
        self._pausing = True
        delay = min(2.0, 0.1 * 2 ** (self._failures - 1))
        self._loop.later(max(0.0, self._started + delay - time.monotonic()), self._start)

    def _start(self) -> None:
        self._pausing = False
        if self.pid:
            return
        options = self._options
        argv = [options.python, "-I", "-m", "wherry.engine.main", "--root", options.root, "--run", options.run]
        if options.config:
            argv += ["--config", options.config]
        argv += ["--ready-fd", str(_READY_FD)]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        log = -1
        try:
            log = self._open_log()
            high = [dup_above(fd, 16) for fd in (log, writer)]
            try:
                pid = os.posix_spawn(
                    options.python,
                    argv,
                    options.env,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, high[0], 1),
                        (os.POSIX_SPAWN_DUP2, high[0], 2),
                        (os.POSIX_SPAWN_DUP2, high[1], _READY_FD),
                    ],
                    setsid=True,
                    setsigmask=(),
                    setsigdef=range(1, 32),
                )
            finally:
                for fd in high:
                    os.close(fd)
        except OSError as error:
            os.close(reader)
            self._answer(Fault("Unavailable", "engine", f"{error.filename or 'spawn'}: {error.strerror}"))
            return
        finally:
            os.close(writer)
            if log >= 0:
                os.close(log)
        reset_oom(pid)
        self.pid, self.ready, self._text = pid, False, b""
        self._started = time.monotonic()
        self._ready_fd = reader
        self._loop.add(reader, IN, self._said)
        self._timer = self._loop.later(_READY, self._overdue)
        self._reaper.expect(pid, self._ended)

    def _open_log(self) -> int:
        path = f"{self._options.run}/engine.log"
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_size > _LOG:
                os.rename(path, f"{path}.1")
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _said(self, events: int) -> None:
        try:
            data = os.read(self._ready_fd, 4096)
        except BlockingIOError:
            return
        self._text += data
        if b"\n" not in self._text and data and not events & HUP:
            return
        self._close_ready()
        if self._text.startswith(b"ready"):
            self.ready = True
            self._failures = 0
            self._answer(None)
        elif self._text:
            self._answer(self._complaint())

    def _complaint(self) -> Fault:
        text = self._text.decode(errors="replace").strip().split("\n")[0]
        return Fault(
            "Unavailable", "engine", text or "it ended before it was ready", f'see "{self._options.run}/engine.log"'
        )

    def _close_ready(self) -> None:
        if self._ready_fd >= 0:
            self._loop.remove(self._ready_fd)
            os.close(self._ready_fd)
            self._ready_fd = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        self._timer = None
        self._answer(Fault("Unavailable", "engine", f"it was not ready after {_READY:.0f} s", "it was ended"))
        self._kill(signal.SIGKILL)

    def _answer(self, error: Fault | None) -> None:
        waiting, self._waiting = self._waiting, []
        for reply in waiting:
            if error is None:
                reply.ok({"pid": self.pid})
            else:
                reply.fail(error)

    def _ended(self, _subject: None, code: int) -> None:
        was_ready = self.ready
        if self._ready_fd >= 0:
            with contextlib.suppress(OSError):
                self._text += os.read(self._ready_fd, 4096)
            self._close_ready()
        self.pid, self.ready = 0, False
        if code and time.monotonic() - self._started < _SOON:
            self._failures += 1
        if self._restarting:
            self._restarting = False
            self._start()
        elif self._waiting:
            if was_ready:
                self._start_soon()
            else:
                if not self._text:
                    self._text = f"it ended with status {code} before it was ready".encode()
                self._answer(self._complaint())

    def busy(self) -> bool:
        """Whether a start or stop is on its way."""
        return bool(self._waiting or self._restarting or self._pausing or self._ready_fd >= 0)

    def restore(self, pid: int, started: float, failures: int) -> None:
        """The engine of this process before it replaced itself."""
        self.pid, self.ready, self._started, self._failures = pid, bool(pid), started, failures
        if pid:
            self._reaper.expect(pid, self._ended)

    def state(self) -> tuple[int, float, int]:
        """For ``restore``."""
        return self.pid, self._started, self._failures

    # restart

    def _restart(self) -> None:
        if self._restarting:
            return
        if self.pid:
            self._restarting = True
            self._kill(signal.SIGTERM)
            pid = self.pid
            self._loop.later(_STOP, lambda: self._kill(signal.SIGKILL) if self.pid == pid else None)
        elif other := self._other():
            self._restarting = True
            self._stop_other(other)
        elif not self._pausing:
            self._start()

    def _stop_other(self, pid: int) -> None:
        """An engine that is not our child: one that a lost shim had started."""
        try:
            handle = pidfd.open(pid)
        except ProcessLookupError:
            self._other_ended(-1)
            return
        signal_if_there(handle, signal.SIGTERM)
        timer = self._loop.later(_STOP, lambda: signal_if_there(handle, signal.SIGKILL))

        def ended(_events: int) -> None:
            timer.cancel()
            self._other_ended(handle)

        self._loop.add(handle, IN, ended)

    def _other_ended(self, handle: int) -> None:
        if handle >= 0:
            self._loop.remove(handle)
            os.close(handle)
        self._restarting = False
        self._start()

    def _kill(self, number: int) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # our child, reaped by this thread alone


def signal_if_there(handle: int, number: int) -> None:
    """To a process by its pidfd; one that has ended is not an error: its descriptor says so to who waits."""
    with contextlib.suppress(ProcessLookupError):
        pidfd.send_signal(handle, number)


def dup_above(fd: int, least: int) -> int:
    """A duplicate that no dup2 to a low number will overwrite."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def reset_oom(pid: int) -> None:
    """A child does not share the shim's protection from the OOM killer."""
    if _protected():
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)


def unprotected(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of an exec that nobody holds, for a clone of this process: its first step gives up the protection. ``reset_oom`` of
    its pid, which comes when it may run already, would be too late for what it has forked by then."""
    steps = plan.get("steps") or []
    if not (_protected() and plan.get("start") and plan.get("target")) or any(step[0] == "oom_score" for step in steps):
        return plan
    return {**plan, "steps": [["oom_score", 0], *steps]}


def _protected() -> bool:
    return bool(_state)


_state: list[int] = []


def protect() -> None:
    """Makes the kernel's OOM killer spare this process, where it is allowed to ask (CAP_SYS_RESOURCE)."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"-999")
            _state.append(-999)
        finally:
            os.close(fd)
