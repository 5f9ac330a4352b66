"""Children and their ends: SIGCHLD wakes the loop, waitid(2) collects, whoever asked is told.

The shim is a child subreaper, so it also collects what containers and delegated runtimes left behind.
"""

from __future__ import annotations

import os
import signal

from wherry.linux.loop import IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from wherry.linux.loop import Loop

_STRAYS = 256  # ends nobody has asked for yet: a child of an intermediate's may end before its pid is known here


def _collected(handle: int) -> bool:
    """Whether a child was waited for: alive or a zombie, waitid(2) still knows it."""
    try:
        os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


class Reaper:
    """One for the process: it owns SIGCHLD and the wake-up descriptor of signals."""

    def __init__(self, loop: Loop) -> None:
        self._wanted: dict[int, tuple[Callable[[Any, int], None], Any]] = {}
        self._strays: dict[int, int] = {}
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        loop.add(self._reader, IN, self._signalled)

    def expect(self, pid: int, callback: Callable[[Any, int], None], subject: Any = None, *, handle: int = -1) -> None:
        """callback(subject, code) once that child has ended. handle: its pidfd, when it may have been collected already.

        An end noted under that pid is this child's only if its own pidfd says that it was collected: else the pid was used before.
        """
        code = self._strays.pop(pid, None)
        if code is None or handle < 0 or not _collected(handle):
            self._wanted[pid] = (callback, subject)
        else:
            callback(subject, code)

    def unexpect(self, pid: int) -> None:
        self._wanted.pop(pid, None)

    def _signalled(self, _events: int) -> None:
        try:
            while len(os.read(self._reader, 512)) == 512:
                pass
        except BlockingIOError:
            pass
        self.collect()

    def collect(self) -> None:
        """Collects every child that has ended."""
        while True:
            try:
                end = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if end is None:
                return
            code = end.si_status if end.si_code == os.CLD_EXITED else 128 + end.si_status
            wanted = self._wanted.pop(end.si_pid, None)
            if wanted is not None:
                callback, subject = wanted
                callback(subject, code)
                continue
            self._strays[end.si_pid] = code
            if len(self._strays) > _STRAYS:
                del self._strays[next(iter(self._strays))]
