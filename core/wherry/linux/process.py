"""What a process says about itself: prctl(2), close_range(2), keyctl(2), execve(2), execveat(2), rlimits, the loopback."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence

from wherry.linux.syscall import Int, Pointer, Text, Uint, Ulong, bind, call, check, libc

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 4, 8, 15, 23, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
CLOSE_RANGE_CLOEXEC = 4
_KEYCTL_JOIN_SESSION_KEYRING, _KEYCTL_SETPERM, _KEYCTL_DESCRIBE = 1, 5, 6
_LAST = 0xFFFFFFFF
_SPAWN_SETSIGDEF, _SPAWN_SETSIGMASK, _SPAWN_SETSID, _SPAWN_SETCGROUP = 0x04, 0x08, 0x80, 0x100  # <spawn.h>
_SPAWN = _SPAWN_SETSIGDEF | _SPAWN_SETSIGMASK | _SPAWN_SETSID
#: A sigset_t of 32 and 33, which a C library keeps for itself: glibc has a process that it spawns ignore them, also after its execve.
_INTERNAL = (0b11 << 31).to_bytes(128, "little")

#: prctl(2) with all five arguments, its result unchecked.
raw_prctl = bind("prctl", Int, Ulong, Ulong, Ulong, Ulong)
_close_range = call("close_range", Uint, Uint, Int)
_keyctl = call("keyctl", Int, Text, Ulong, Ulong, Ulong)
_execveat = call("execveat", Int, Text, Pointer, Pointer, Int)
_rt_sigaction = call("rt_sigaction", Int, Pointer, Pointer, ctypes.c_size_t)
_execve = bind("execve", Text, Pointer, Pointer)
_posix_spawn = bind("posix_spawn", Pointer, Text, Pointer, Pointer, Pointer, Pointer)
_sethostname = bind("sethostname", Text, ctypes.c_size_t)
_setfsuid = bind("setfsuid", Uint)
_setfsgid = bind("setfsgid", Uint)
_setdomainname = bind("setdomainname", Text, ctypes.c_size_t)


def prctl(option: int, second: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """prctl(2) with integer arguments."""
    return check(raw_prctl(option, second, third, fourth, fifth), f"prctl {option}")


def set_dumpable(dumpable: bool) -> None:
    """PR_SET_DUMPABLE: whether ptrace and /proc/PID (its root, its exe, its descriptors) are open to the same user."""
    prctl(PR_SET_DUMPABLE, int(dumpable))


def set_name(name: str) -> None:
    """PR_SET_NAME: what ps and /proc/PID/comm show, 15 bytes at most."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def set_no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS, for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_disposition(number: int, *, ignored: bool) -> None:
    """rt_sigaction(2) itself: SIG_IGN or SIG_DFL, also for 32 and 33, which the C library keeps for itself."""
    action = (ctypes.c_ulong * 4)(int(ignored))
    check(_rt_sigaction(number, action, None, 8), "rt_sigaction")


def set_child_subreaper() -> None:
    """PR_SET_CHILD_SUBREAPER: orphaned descendants become this process's children."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def close_others(keep: Iterable[int], flags: int = 0) -> None:
    """close_range(2) over every descriptor that is not in keep."""
    start = 0
    for fd in sorted(set(keep)):
        if fd > start:
            check(_close_range(start, fd - 1, flags), "close_range")
        start = fd + 1
    check(_close_range(start, _LAST, flags), "close_range")


def close_from(first: int, flags: int = 0) -> None:
    """close_range(2) from first on; CLOSE_RANGE_CLOEXEC only marks them."""
    check(_close_range(first, _LAST, flags), "close_range")


def join_session_keyring(name: bytes) -> int:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): a new session keyring of that name; its serial number."""
    return check(_keyctl(_KEYCTL_JOIN_SESSION_KEYRING, name, 0, 0, 0), "keyctl")


def set_hostname(name: bytes) -> None:
    """sethostname(2)."""
    check(_sethostname(name, len(name)), "sethostname")


def set_domainname(name: bytes) -> None:
    """setdomainname(2)."""
    check(_setdomainname(name, len(name)), "setdomainname")


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsuid(2), setfsgid(2): who this thread is to file systems. OSError (EPERM) where that is refused.

    From 0 to another uid the kernel takes the capabilities about files from the effective set, and gives them back on the way to 0.
    """
    _setfsgid(gid)
    _setfsuid(uid)
    if (_setfsuid(uid), _setfsgid(gid)) != (uid, gid):  # neither says by itself that it failed
        raise OSError(1, os.strerror(1), "setfsuid")


def strings(items: Sequence[bytes], spare: int = 0) -> ctypes.Array[ctypes.c_char_p]:
    """A NULL-terminated array for execve(2), with room for spare more strings."""
    return (ctypes.c_char_p * (len(items) + 1 + spare))(*items)


def execve(path: bytes, argv: ctypes.Array[ctypes.c_char_p], env: ctypes.Array[ctypes.c_char_p]) -> None:
    """execve(2) with arrays made by ``strings``; returns only by OSError."""
    check(_execve(path, argv, env), path)


def execve_fd(fd: int, argv: Sequence[str | bytes], env: Sequence[str | bytes]) -> None:
    """execveat(2) of an open descriptor (AT_EMPTY_PATH); env is "KEY=value" strings; returns only by OSError."""
    arguments = strings([os.fsencode(item) for item in argv])
    environment = strings([os.fsencode(item) for item in env])
    check(_execveat(fd, b"", arguments, environment, 0x1000), "execveat")


class SpawnAttributes:
    """posix_spawnattr_t for ``spawn``: a session of its own, no blocked signal, and none that is ignored but by this process."""

    __slots__ = ("_buffer", "address")

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(1024)  # more than any C library's
        self.address = ctypes.addressof(self._buffer)
        for name, argument in (
            ("posix_spawnattr_init", None),
            ("posix_spawnattr_setsigmask", bytes(128)),
            ("posix_spawnattr_setsigdefault", _INTERNAL),
        ):
            _succeed(getattr(libc, name)(*([self._buffer] if argument is None else [self._buffer, argument])), name)
        self._set_flags(_SPAWN)

    def _set_flags(self, flags: int) -> None:
        _succeed(libc.posix_spawnattr_setflags(self._buffer, ctypes.c_short(flags)), "posix_spawnattr_setflags")

    def set_cgroup(self, fd: int) -> None:
        """The process is born in that cgroup v2 directory; see ``spawns_into_cgroups``."""
        _succeed(libc.posix_spawnattr_setcgroup_np(self._buffer, fd), "posix_spawnattr_setcgroup_np")
        self._set_flags(_SPAWN | _SPAWN_SETCGROUP)


def spawns_into_cgroups() -> bool:
    """Whether the C library has posix_spawnattr_setcgroup_np: glibc from 2.39 on."""
    return hasattr(libc, "posix_spawnattr_setcgroup_np")


def spawn(
    path: bytes, argv: ctypes.Array[ctypes.c_char_p], env: ctypes.Array[ctypes.c_char_p], attributes: SpawnAttributes
) -> int:
    """posix_spawn(3) with arrays made by ``strings``: the pid, once execve has succeeded. OSError says why it did not.

    The process has this one's memory until then, so nothing is copied, and everything else that a child inherits.
    """
    pid = ctypes.c_int(0)
    _succeed(_posix_spawn(ctypes.addressof(pid), path, None, attributes.address, argv, env), path)
    return pid.value


def _succeed(error: int, what: str | bytes) -> None:
    if error:
        raise OSError(error, os.strerror(error), what)
