"""The end of a process that may not be the shim's child, by its pidfd."""

from __future__ import annotations

import errno

from wherry.linux.loop import IN
from wherry.shim.task import exit_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wherry.shim.server import Shim
    from wherry.shim.task import Task

_TRIES = 100


def watch(shim: Shim, task: Task) -> None:
    """Tells the tasks of its end, with the code where that can be had."""
    shim.loop.add(task.pidfd, IN, lambda _events: _ended(shim, task, 0))


def _ended(shim: Shim, task: Task, tries: int) -> None:
    shim.loop.remove(task.pidfd)
    shim.reaper.collect()
    if task.status == "stopped":
        return
    code: int | None = None
    try:
        code = exit_code(task.pidfd)
    except OSError as error:
        tries = _TRIES if error.errno in (errno.ENOTTY, errno.EINVAL) else tries
    if code is None and tries < _TRIES:  # its parent has not reaped it yet
        shim.loop.later(0.002 + tries * 0.001, lambda: _ended(shim, task, tries + 1))
        return
    shim.reaper.unexpect(task.pid)
    shim.tasks.ended(task, code)
