"""A process cloned before it is asked for, which makes one more process in a running container: exec.

It is in the shim's own namespaces, holds nothing of any container, and waits for a plan that ends by "spawn". Then it enters the
container and has the process born there (wherry.oci.execute_process.spawn). The pages of the shim's that it changes it has copied
before anybody waits. It serves one plan, or none, and ends with the shim, whose end of the channel it watches.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping, Sequence

from wherry.linux import caps, path, process
from wherry.linux import namespaces as ns
from wherry.oci import packets, users
from wherry.oci import spawn as oci
from wherry.oci.child import Child, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN = 2  # the version of marshal that says the same of the same, whoever else refers to it


def fits(plan: Mapping[str, Any]) -> bool:
    """Whether a plan is one for a runner."""
    steps = plan.get("steps") or []
    if not steps or steps[-1][0] != "spawn" or not plan.get("target") or plan.get("join"):
        return False
    cgroups = plan.get("cgroups") or ()
    return not cgroups or os.path.exists(f"{cgroups[0]}/tasks") or _unified(plan)


def _unified(plan: Mapping[str, Any]) -> bool:
    """Whether its process can be born in a cgroup v2: by clone3, which filters refuse, as they can't look at its flags. And whoever has
    entered a cgroup namespace may put nothing into it from outside: ENOENT, where the hierarchy is mounted with nsdelegate, as systemd
    does (Documentation/admin-guide/cgroup-v2.rst, "Delegation Containment")."""
    if not process.spawns_into_cgroups():
        return False
    return not any(step[0] == "filter" or (step[0] == "enter" and step[1] & ns.NEWCGROUP) for step in plan["steps"])


def early(plan: Mapping[str, Any]) -> Sequence[Any] | None:
    """The step of a plan that a runner has done before it was given: what leaves the bounding set. None where a user namespace is
    entered first, which sets it anew."""
    found = None
    for step in plan["steps"]:
        if step[0] == "enter" and step[1] & ns.NEWUSER:
            return None
        if step[0] == "bounding":
            found = step
    return found


class ExecZygote:
    """The process that runners are forks of: a shim that forked them itself would share all its pages anew with each, and copy again
    what it goes on to change. It is the shim's fork of the first exec, does nothing else, and ends when it is let go of.

    like: a plan as those to come may be, for a runner to get used to. pid and pidfd: its own.
    """

    __slots__ = ("_channel", "early", "pid", "pidfd")

    def __init__(self, like: Mapping[str, Any]) -> None:
        """OSError when it cannot be cloned."""
        if oci.stray():
            raise OSError(1, os.strerror(1), "clone3")
        self.early = early(like)
        child = Child()
        child.program = [("bear", _bear, (like,))]
        self._channel, child.channel = packets.pair()
        try:
            self.pid, self.pidfd = ns.clone3(ns.CLONE_CLEAR_SIGHAND)
            if self.pid == 0:
                run(child)
        except BaseException:
            os.close(self._channel)
            raise
        finally:
            os.close(child.channel)

    def runner(self) -> ExecHelper:
        """One that will be there in a moment: it can be given a plan at once. OSError when the mother has ended."""
        ours, theirs = packets.pair()
        try:
            packets.send(self._channel, b"r", [theirs])
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return ExecHelper(ours, self.early)

    def close(self) -> None:
        """It ends by itself, and is to be reaped."""
        os.close(self._channel)
        os.close(self.pidfd)


class ExecHelper:
    """One that waits, a child of the shim's. early: what it has done, which a plan has to have in the same words."""

    __slots__ = ("_channel", "early")

    def __init__(self, channel: int, early: Sequence[Any] | None) -> None:
        self._channel = channel
        self.early = early

    def spawn(
        self, plan: Mapping[str, Any], *, stdio: Sequence[int], fds: Sequence[int], target: int
    ) -> oci.HeldProcess | None:
        """Gives it a plan, as wherry.oci.spawn.spawn does. None when it cannot serve this one, and is still there.

        OSError when it has ended, or a file of the plan cannot be opened.
        """
        child = Child()
        unified = -1
        try:
            unified = oci.open_cgroups(child, plan.get("cgroups") or ())
            if unified >= 0 and not _unified(plan):
                return None
            given = [*(fd for fd in stdio if fd >= 0), *fds, *child.tasks, target, *([unified] if unified >= 0 else [])]
            steps = [step for step in plan["steps"] if step != self.early]
            data = marshal.dumps(
                (
                    marshal.dumps(steps, _PLAIN),
                    plan["argv"],
                    plan["env"],
                    [fd >= 0 for fd in stdio],
                    len(fds),
                    len(child.tasks),
                )
            )
            if len(data) > packets.LARGEST or len(given) > packets.DESCRIPTORS:
                return None
            packets.send(self._channel, data, given)
        finally:
            for fd in (*child.tasks, unified):
                if fd >= 0:
                    os.close(fd)
        return oci.HeldProcess(0, -1, self._channel)

    def close(self) -> None:
        """It ends by itself, and is to be reaped."""
        os.close(self._channel)


def _bear(child: Child, like: Mapping[str, Any]) -> None:
    """The mother's life. It returns in each runner, whose program follows."""
    process.close_others((0, 1, 2, child.channel))
    while True:
        _data, (theirs,) = packets.receive(child.channel)
        try:
            pid, pidfd = ns.clone3(ns.CLONE_PARENT | ns.CLONE_CLEAR_SIGHAND)
        except OSError:  # the shim sees its end of the channel close, and does without
            os.close(theirs)
            continue
        if pid == 0:
            os.close(child.channel)
            child.channel = theirs
            break
        os.close(pidfd)
        os.close(theirs)
    if (step := early(like)) is not None:
        child.program += oci.bind([step])[1:]
    steps = [step for step in like["steps"] if step != early(like)]
    ready = ExecReady(marshal.dumps(steps, _PLAIN), oci.bind(steps)[1:])
    child.program += [("warm", _warm, (like,)), ("adopt", _adopt, (ready,))]


class ExecReady:
    """Steps as they travel, and what they become: most execs of a container have the same."""

    __slots__ = ("program", "steps")

    def __init__(self, steps: bytes, program: list[Any]) -> None:
        self.steps = steps
        self.program = program


def _warm(child: Child, like: Mapping[str, Any]) -> None:
    """Does once, to no effect, what a plan will ask for: a page of the mother's costs 2 us to copy at its first change."""
    child.attributes = process.SpawnAttributes()
    trial = Child()
    oci.set_command(trial, *marshal.loads(marshal.dumps((like["argv"], like["env"]))))  # noqa: S302 (our own)
    nowhere = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    users.resolve(nowhere, b"", 0, 0, ())  # there is no etc/passwd in it
    os.close(nowhere)
    users.memberships(b"root:x:0:root\n", b"root")
    caps.set(*caps.get())
    caps.set_ambient(0)
    path.inside()
    try:
        os.stat(b"/proc/self/no-such-command")
    except OSError:
        pass
    os.close(os.pidfd_open(os.getpid()))


def _adopt(child: Child, ready: ExecReady) -> None:
    """Waits for a plan, which follows this step."""
    data, fds = packets.receive(child.channel)
    steps, argv, env, stdio, more, tasks = marshal.loads(data)  # noqa: S302 (the shim's own)
    left = iter(fds)
    child.stdio = tuple([next(left) if present else -1 for present in stdio])  # type: ignore[assignment]  # three of them
    child.fds = tuple([next(left) for _ in range(more)])
    child.tasks = [next(left) for _ in range(tasks)]
    child.target = next(left)
    child.unified = next(left, -1)
    oci.set_command(child, argv, env)
    child.program += oci.bind(())  # the streams
    child.program += ready.program if steps == ready.steps else oci.bind(marshal.loads(steps))[1:]  # noqa: S302 (as above)
