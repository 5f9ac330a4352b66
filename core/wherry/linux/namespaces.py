"""Namespaces: clone3(2) that CPython survives, unshare(2), setns(2) and id maps (namespaces(7), user_namespaces(7))."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence

from wherry.linux.syscall import NUMBERS, Int, bind, check, failed, pylibc

NEWTIME, NEWNS, NEWCGROUP, NEWUTS = 0x80, 0x20000, 0x2000000, 0x4000000
NEWIPC, NEWUSER, NEWPID, NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
CLONE_PIDFD, CLONE_PARENT, CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP = 0x1000, 0x8000, 0x100000000, 0x200000000

#: The OCI runtime-spec's namespace types: flag, and file name below /proc/PID/ns.
TYPES: dict[str, tuple[int, str]] = {
    "user": (NEWUSER, "user"),
    "mount": (NEWNS, "mnt"),
    "pid": (NEWPID, "pid"),
    "network": (NEWNET, "net"),
    "ipc": (NEWIPC, "ipc"),
    "uts": (NEWUTS, "uts"),
    "cgroup": (NEWCGROUP, "cgroup"),
    "time": (NEWTIME, "time"),
}

_FIELDS = "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup"


class CloneArgs(ctypes.Structure):
    """struct clone_args of clone3(2)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _FIELDS.split())


_api = ctypes.pythonapi
_clone3 = pylibc.syscall
_unshare = bind("unshare", Int)
_setns = bind("setns", Int, Int)


def clone3(flags: int, *, cgroup: int = -1) -> tuple[int, int]:
    """Forks this single-threaded interpreter into new namespaces: (0, -1) in the child, (pid, pidfd) in the parent.

    flags are NEW* and CLONE_*; a pidfd, close-on-exec, is always made. cgroup is a descriptor of a cgroup v2 directory, -1 for
    this process's own (v1 directories answer EBADF). PyDLL keeps the GIL over the call, so that the child owns it, and the
    PyOS_*Fork calls around it make it a fork for CPython. With CLONE_PARENT the exit signal is the caller's own.
    """
    pidfd = ctypes.c_int(-1)
    args = CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd))
    if not flags & CLONE_PARENT:
        args.exit_signal = signal.SIGCHLD
    if cgroup >= 0:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
    reference, size = ctypes.byref(args), ctypes.sizeof(args)
    _api.PyOS_BeforeFork()
    pid = _clone3(NUMBERS["clone3"], reference, size)
    if pid == 0:
        _api.PyOS_AfterFork_Child()
        return 0, -1
    error = failed("clone3") if pid < 0 else None
    _api.PyOS_AfterFork_Parent()
    if error is not None:
        raise error
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(_unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """setns(2): fd is an nsfs descriptor, or a pidfd with the flags of the namespaces to enter."""
    check(_setns(fd, flags), "setns")


def open_own(type: str) -> int:
    """An nsfs descriptor of this thread's namespace of an OCI type name."""
    return os.open(f"/proc/thread-self/ns/{TYPES[type][1]}", os.O_RDONLY | os.O_CLOEXEC)


def write_id_maps(pid: int, uids: Sequence[Sequence[int]], gids: Sequence[Sequence[int]]) -> None:
    """Writes uid_map and gid_map of a process in a new user namespace, each as (inside, outside, size).

    Each file takes exactly one write. An unprivileged writer must deny setgroups first (user_namespaces(7)); whoever maps more
    than its own id has CAP_SETGID and leaves it allowed.
    """
    for name, entries in (("uid_map", uids), ("gid_map", gids)):
        text = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in entries)
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"/proc/{pid}/{name}") from None
        finally:
            os.close(fd)
