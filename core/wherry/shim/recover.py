"""A new shim after a lost one: what the ledger says, what the engine knows, what of it still lives.

Containers have lived on, but are no longer our children: they are followed by pidfd. How those ended that died meanwhile the kernel
tells whoever holds a pidfd of theirs (PIDFD_GET_INFO, Linux 6.15), which is the engine; else nobody knows.
"""

from __future__ import annotations

import os

from wherry.linux.loop import report
from wherry.shim.task import Task, same_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from wherry.shim.server import Shim

#: How long the ends that nobody saw wait for an engine that may know more.
_PATIENCE = 10.0


def from_ledger(shim: Shim) -> None:
    """Takes up the tasks and sandboxes of the lost shim."""
    tasks, sandboxes = shim.ledger.read()
    for state in tasks.values():
        try:
            _take(shim, state, -1)
        except (KeyError, TypeError):  # a line of another version; the engine may know that task
            report()
    _restore(shim, list(sandboxes.values()))
    shim.compact()
    shim.loop.later(_PATIENCE, lambda: _give_up(shim))


def from_engine(
    shim: Shim, tasks: Sequence[dict[str, Any]], sandboxes: Sequence[dict[str, Any]], fds: Sequence[int], *, last: bool
) -> None:
    """Adds what the engine knows; fds are the pidfds of tasks, in order, and stay the caller's. last: nothing more is to come."""
    for state, fd in zip(tasks, fds, strict=True):
        known = shim.tasks.find(state["id"], state["exec_id"])
        if known is None:
            _take(shim, state, os.dup(fd))
        elif (known.id, known.exec_id) in shim.tasks.undecided:
            shim.tasks.undecided.discard((known.id, known.exec_id))
            _finish(shim, known, os.dup(fd))
    _restore(shim, sandboxes)
    if last:
        _give_up(shim)


def _take(shim: Shim, state: dict[str, Any], handle: int) -> None:
    """One task: alive, it is followed; ended, its exit is told again, or asked for."""
    task = Task(state["id"], state["exec_id"], state["sandbox_id"])
    task.pid, task.start_time, task.user = state["pid"], state["start_time"], state.get("user", "")
    task.status = state["status"]
    task.streams = shim.keeper.streams.get(task.key)
    shim.tasks.add(task)
    if exit := state.get("exit"):
        task.status, task.code, task.stopped_at, task.oom = "stopped", exit["code"], exit["time"], exit["oom_killed"]
        shim.tasks.tell_again(task)
        return
    alive = same_process(task.pid, task.start_time)
    if alive >= 0:
        if handle >= 0:
            os.close(handle)
        task.pidfd = alive
        if task.status == "creating":
            task.status = "created"
        if task.status == "created":  # its start pipe went with the lost shim: it ends by itself
            task.status = "running"
        shim.tasks.follow(task)
        return
    if handle >= 0:
        _finish(shim, task, handle)
    else:
        shim.tasks.undecided.add((task.id, task.exec_id))


def _finish(shim: Shim, task: Task, handle: int) -> None:
    """Its end, from the pidfd that the engine kept."""
    task.pidfd = handle
    shim.tasks.follow(task)


def _give_up(shim: Shim) -> None:
    """Ends that nobody knows are told as unknown, never as 0."""
    undecided, shim.tasks.undecided = shim.tasks.undecided, set()
    for id, exec_id in undecided:
        task = shim.tasks.find(id, exec_id)
        if task is not None and task.status != "stopped":
            shim.tasks.ended(task, None)


def _restore(shim: Shim, records: Sequence[dict[str, Any]]) -> None:
    for record in records:
        try:
            shim.sandboxes.restore(dict(record))
        except OSError as error:  # its members will be told when they ask for it
            os.write(2, f"sandbox {record['id']}: {error}\n".encode())
