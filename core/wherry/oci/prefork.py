"""A process cloned before it is asked for: most of a start's work is the same for every container, and is done ahead.

A spare is born in a new pid namespace, holds detached mounts of its own (proc, the tmpfs of /dev with its nodes, ...), has dropped what
leaves the bounding set, and waits for the rest of a plan. It has no mount namespace of its own until then: it would miss what
the host mounts meanwhile, and hold what the host lets go of. It serves one plan, or none, and ends with the shim, whose end of the
channel it watches.

Only what a plan says in so many words is done ahead, and a plan takes a spare only when all of that is the same in both.
"""

from __future__ import annotations

import binascii
import marshal
import os
from collections.abc import Mapping, Sequence

from wherry.linux import mount, process
from wherry.linux import namespaces as ns
from wherry.oci import execute_process, packets
from wherry.oci import spawn as oci
from wherry.oci.child import Child, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Steps = list[Sequence[Any]]

_DONE = frozenset({"timens", "setsid", "bounding", "devices", "links"})
_MOUNTS = frozenset({"proc", "tmpfs", "devpts"})  # sysfs and mqueue belong to namespaces that are joined later
_BESIDE = frozenset({"/dev/pts", "/dev/shm", "/dev/mqueue"})
#: These need the clone itself, or all capabilities, or are for a container that is there already.
_UNFIT = frozenset({"userns", "enter", "hooks"})


def shared(plan: Mapping[str, Any]) -> Steps | None:
    """The steps of a plan that can be done ahead; None when it needs a clone of its own."""
    steps: Steps = plan.get("steps") or []
    flags = plan.get("flags", 0)
    if plan.get("how", "clone") != "clone" or plan.get("join") or plan.get("target"):
        return None
    if not flags & ns.NEWPID or not flags & ns.NEWNS or any(step[0] in _UNFIT for step in steps):
        return None
    plain = _plain_dev(steps)
    result: Steps = []
    for step in steps:
        name = step[0]
        if name in ("devices", "links"):
            fit = plain
        elif name == "mount":
            fit = step[2] in _MOUNTS
        elif name == "timens":
            fit = not step[1]
        else:
            fit = name in _DONE
        if fit:
            result.append(step)
    return result


def _plain_dev(steps: Steps) -> bool:
    """Whether /dev is a tmpfs with nothing but the usual mounts in it, and all nodes and links are its own."""
    found = False
    for step in steps:
        if step[0] == "mount" or step[0] == "bind":
            path = step[1] if step[0] == "mount" else step[2]
            if path == "/dev":
                found = step[0] == "mount" and step[2] == "tmpfs"
            elif path.startswith("/dev/") and path not in _BESIDE:
                return False
        elif step[0] == "link":
            if step[2].startswith("/dev/"):
                return False
        elif step[0] == "devices" and not all(node[0].startswith("/dev/") for node in step[1]):
            return False
    return found


class PreforkedInit:
    """pid and pidfd of one that waits. early: what it has done."""

    __slots__ = ("_channel", "early", "pid", "pidfd")

    def __init__(self, early: Steps) -> None:
        """OSError when it cannot be cloned."""
        if oci.stray():
            raise OSError(1, os.strerror(1), "clone3")
        self.early = early
        child = Child()
        child.program = [
            ("prepare", _prepare, (oci.bind(early)[1:],)),
            ("warm", _warm, (early,)),
            ("adopt", _adopt, ()),
        ]
        self._channel, theirs = packets.pair()
        child.channel = theirs
        try:
            self.pid, self.pidfd = ns.clone3(ns.NEWPID | ns.CLONE_CLEAR_SIGHAND)
            if self.pid == 0:
                run(child)
        except BaseException:
            os.close(self._channel)
            raise
        finally:
            os.close(theirs)

    def spawn(
        self,
        plan: Mapping[str, Any],
        *,
        stdio: Sequence[int],
        fds: Sequence[int] = (),
        namespaces: Mapping[str, int] = {},
    ) -> oci.HeldProcess | None:
        """Gives it a plan, as wherry.oci.spawn.spawn does. None when it cannot serve this one, and is still there.

        The plan's ``shared`` steps are its own. OSError when it has ended, or a file of the plan cannot be opened.
        """
        if "pid" in namespaces:
            return None
        child = Child()
        own = child.tasks
        try:
            unified = oci.open_cgroups(child, plan.get("cgroups") or ())
            if unified >= 0:  # cgroup v2 takes a process without delay only at its clone
                own.append(unified)
                return None
            steps = [step for step in plan["steps"] if step[0] == "mount" or step not in self.early]
            names = tuple(namespaces)
            data = marshal.dumps(
                (steps, plan["argv"], plan["env"], plan["flags"], [fd >= 0 for fd in stdio], len(fds), len(own), names)
            )
            given = [*(fd for fd in stdio if fd >= 0), *fds, *own, *namespaces.values()]
            if len(data) > packets.LARGEST or len(given) > packets.DESCRIPTORS:
                return None
            packets.send(self._channel, data, given)
        finally:
            for fd in own:
                os.close(fd)
        return oci.HeldProcess(self.pid, self.pidfd, self._channel)

    def close(self) -> None:
        """It ends by itself, and is to be reaped."""
        os.close(self._channel)
        os.close(self.pidfd)


def _prepare(child: Child, program: list[Any]) -> None:
    """What can be done ahead, in the order of the plan. The shim's 0, 1 and 2 stay until there are others."""
    process.close_others((0, 1, 2, child.channel))
    for name, function, args in program:
        if name == "mount":
            path, fstype, options, attributes, _propagation = args
            fd = mount.new_mount(fstype, list(options), attributes)
            child.ready.append(((fstype, options, attributes), fd))
            if path == b"/dev":
                child.dev = fd
        else:
            function(child, *args)
    child.dev = -1  # until it has its place


def _warm(_child: Child, early: Steps) -> None:
    """Does once, to no effect, what the rest of a plan will ask for: a page of the shim's costs 2 us to copy at its first change."""
    program = binascii.b2a_base64(bytes(8 * 400)).decode()
    steps, words, variables = marshal.loads(marshal.dumps((early, ["true"], ["PATH=/bin"])))  # noqa: S302 (our own)
    oci.bind([*steps, ["filter", program, 0]])
    oci.set_command(Child(), words, variables)


def _adopt(child: Child) -> None:
    """Waits for the rest of a plan, which follows this step."""
    data, fds = packets.receive(child.channel)
    steps, argv, env, flags, stdio, more, tasks, names = marshal.loads(data)  # noqa: S302 (the shim's own)
    left = iter(fds)
    child.stdio = tuple([next(left) if present else -1 for present in stdio])  # type: ignore[assignment]  # three of them
    child.fds = tuple([next(left) for _ in range(more)])
    child.tasks = [next(left) for _ in range(tasks)]
    child.namespaces = dict(zip(names, left, strict=True))
    oci.set_command(child, argv, env)
    child.program.append(("unshare", execute_process.unshare, (flags & ~ns.NEWPID,)))
    child.program += oci.bind(steps)
