"""From an encoded plan to a held process: the shim's half of ``wherry.oci``. Single-threaded, and never waits for the child.

The plan is the JSON form of wherry.api.Plan (how "clone"): {"argv", "env", "flags", "cgroups", "idmap": {"uids", "gids"}, "join",
"steps": [[name, argument, ...], ...], "hooks", "target", "start"}. The channel is a SOCK_SEQPACKET socket to the child.

Packets of the child, JSON:

- ``{"created": {"user": "uid:gid"}}``, with the terminal's master by SCM_RIGHTS, when all is ready;
- ``{"error": {"class", "what", "cause", "hint", "errno"}}``, the last one;
- ``{"hooks": "createRuntime"}``: run plan["hooks"]["prestart"] and plan["hooks"]["createRuntime"] with plan["hooks"]["state"] and the
  pid in it on stdin, and answer ``b"h"``, or kill the child when one fails;
- ``{"pid": n, "created": {...}, "running": true}`` with the pidfd, in place of all others: a plan that ends by "spawn" has done so;
- end of file after the start: execve succeeded.

Packets to the child: ``b"s"`` starts it; an exec whose plan says "start" waits for it with a terminal only.

**User namespaces.** A step "userns" means that the cloned process is an intermediate, which makes the real one as its sibling
(CLONE_PARENT) and, having the shim's privileges, writes its id maps. So does a step "pidns", but for the maps, which is put in where
the shim is in a user namespace of its own and the pid namespace is another one's: from there the shim itself could not come back
(pid_namespaces(7)). ``Held.pid`` is then 0 and pidfd -1 until the packet ``{"pid": n}`` arrives, with the pidfd by SCM_RIGHTS; the
intermediate's own pid is ``Held.intermediate``, and the shim reaps it (status 0; else an error packet came, and there is no real one).
"""

from __future__ import annotations

import binascii
import fcntl
import os
from collections.abc import Mapping, Sequence

from wherry.linux import namespaces as ns
from wherry.linux import process, seccomp, userns
from wherry.oci import execute_files, execute_process, execute_root, hooks, packets
from wherry.oci.child import Child, Function, run
from wherry.oci.sandbox import make_sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["TABLE", "HeldProcess", "make_sandbox", "spawn"]

TABLE: dict[str, Function] = {**execute_root.STEPS, **execute_files.STEPS, **execute_process.STEPS, **hooks.STEPS}
_NS_GET_NSTYPE = 0xB703
_FIRST: tuple[str, Function, tuple[Any, ...]] = ("stdio", execute_process.stdio, ())

_SECOND: tuple[str, Function, tuple[Any, ...]] = ("pidns", execute_process.pidns, ())

_own_pid_namespace = -1
_lost = False


class HeldProcess:
    """A process that waits before execve. channel and pidfd are descriptors of the caller's."""

    __slots__ = ("channel", "intermediate", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, channel: int, intermediate: int = 0) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.intermediate = intermediate


def bytes_of(value: Any) -> Any:
    """Strings as bytes, lists as tuples, all the way down: what executors take."""
    if isinstance(value, str):
        return os.fsencode(value)
    if isinstance(value, (list, tuple)):
        return tuple([bytes_of(item) for item in value])
    return value


def bind(steps: Sequence[Sequence[Any]]) -> list[tuple[str, Function, tuple[Any, ...]]]:
    """Encoded steps as (name, executor, arguments). ValueError for an unknown name or a filter that is none."""
    program = [_FIRST]
    for name, *args in steps:
        function = TABLE.get(name)
        if function is None:
            raise ValueError(f'plan: no such step "{name}"')
        if name == "filter":
            try:
                code = binascii.a2b_base64(args[0])  # base64 would bring in re: half a megabyte
            except (binascii.Error, TypeError) as error:
                raise ValueError(f"plan: filter is not base64: {error}") from None
            program.append((name, function, (seccomp.Program(code), args[1])))
        else:
            program.append((name, function, bytes_of(args)))
    return program


def candidates(argv: Sequence[bytes], env: Sequence[bytes]) -> tuple[tuple[bytes, ...], bool]:
    """What to execve, and whether it is a search of PATH."""
    name = argv[0] if argv else b""
    if b"/" in name or not name:
        return (name,), False
    for item in reversed(env):
        if item.startswith(b"PATH="):
            return tuple([(part or b".") + b"/" + name for part in item[5:].split(b":")]), True
    return (), True


def _prepare(plan: Mapping[str, Any]) -> Child:
    child = Child()
    child.program = bind(plan["steps"])
    child.flags = plan.get("flags", 0)
    child.idmap = plan.get("idmap") or {}
    child.starts = bool(plan.get("start") and plan.get("target"))  # a container's is to be noted first
    set_command(child, plan["argv"], plan["env"])
    return child


def set_command(child: Child, words: Sequence[str], variables: Sequence[str]) -> None:
    """What it will execve, in the form that the call takes."""
    argv = [os.fsencode(item) for item in words]
    env = [os.fsencode(item) for item in variables]
    child.argv = process.strings(argv)
    child.env = process.strings(env, spare=1)
    child.env_count = len(env)
    child.wants_home = not any(item.startswith(b"HOME=") for item in env)
    child.candidates, child.search = candidates(argv, env)


def open_cgroups(child: Child, paths: Sequence[str]) -> int:
    """Opens ``tasks`` of each v1 directory; answers the descriptor of the one v2 directory, -1 without one."""
    unified = -1
    for path in paths:
        try:
            child.tasks.append(os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            if unified >= 0:
                os.close(unified)
            unified = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return unified


def _open_joins(child: Child, paths: Sequence[str]) -> list[int]:
    """Opens nsfs paths: a user or pid namespace gets its own key, the rest are "path/N" in order."""
    opened = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        opened.append(fd)
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        key = {ns.NEWUSER: "user", ns.NEWPID: "pid"}.get(kind, f"path/{len(opened) - 1}")
        child.namespaces[key] = fd
    return opened


def _enter_pid_namespace(fd: int) -> None:
    """The next child is born in the pid namespace of fd (an nsfs descriptor or a pidfd)."""
    global _own_pid_namespace  # noqa: PLW0603 (opened once, before anything is entered)
    if _own_pid_namespace < 0:
        _own_pid_namespace = ns.open_own("pid")
    _return_pid_namespace()
    ns.setns(fd, ns.NEWPID)


def _return_pid_namespace() -> None:
    """Back to this process's own. While that fails nothing is cloned: it would be born in a container's namespace."""
    global _lost  # noqa: PLW0603 (a fact about this process)
    if _own_pid_namespace >= 0:
        _lost = True
        ns.setns(_own_pid_namespace, ns.NEWPID)
    _lost = False


def stray() -> bool:
    """Whether this process is still in a container's pid namespace for its children; a try to return is made first."""
    if _lost:
        try:
            _return_pid_namespace()
        except OSError:
            return True
    return False


def spawn(
    plan: Mapping[str, Any],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    fds: Sequence[int] = (),
    namespaces: Mapping[str, int] = {},
    target: int = -1,
) -> HeldProcess:
    """Clones the process of a plan; see the module for what follows. The plan is not kept.

    stdin, stdout, stderr: descriptors, -1 for the caller's own. fds become 3, 4, ... namespaces: nsfs descriptors of the sandbox
    by type ("user", "net", "ipc", "uts", "pid"). target: the pidfd of a container's first process for an exec. All of them stay
    the caller's. Raises OSError and ValueError (a plan that is none); nothing is left behind then.
    """
    if _lost:
        _return_pid_namespace()
    child = _prepare(plan)
    child.stdio = (stdin, stdout, stderr)
    child.fds = tuple(fds)
    child.target = target
    child.namespaces = dict(namespaces)
    opened: list[int] = []
    ours = theirs = unified = -1
    try:
        opened = _open_joins(child, plan.get("join") or ())
        unified = open_cgroups(child, plan.get("cgroups") or ())
        ours, theirs = packets.pair()
        child.channel = theirs
        names = [step[0] for step in child.program]
        spawns = "spawn" in names
        two_stage = spawns or "userns" in names or "pidns" in names
        pid_namespace = -1 if spawns else child.namespaces.pop("pid", target)
        if pid_namespace >= 0:
            child.flags &= ~ns.NEWPID  # the members of a sandbox share one
            if "pidns" in names or userns.confined():
                child.pidns, pid_namespace = pid_namespace, -1
                if not two_stage:
                    child.program.insert(names.index("enter") + 1 if "enter" in names else 1, _SECOND)
                    two_stage = True
            else:
                _enter_pid_namespace(pid_namespace)
        flags = (0 if two_stage else child.flags) | ns.CLONE_CLEAR_SIGHAND
        try:
            pid, pidfd = ns.clone3(flags, cgroup=unified)
            if pid == 0:
                run(child)
        finally:
            if pid_namespace >= 0:
                _return_pid_namespace()
    except BaseException:
        if ours >= 0:
            os.close(ours)
        raise
    finally:
        for fd in (theirs, unified, *opened, *child.tasks):
            if fd >= 0:
                os.close(fd)
    if two_stage:
        os.close(pidfd)
        return HeldProcess(0, -1, ours, pid)
    return HeldProcess(pid, pidfd, ours)
