"""The C library and system-call numbers: every wrapper of this package is built from ``call`` or ``bind``.

A failed call raises OSError with errno and the path (or the name of the call), never anything else. Numbers are those of
x86_64 and arm64 (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h); all of those used here from
pidfd_send_signal (424) on are the same on both.
"""

from __future__ import annotations

import ctypes
import os
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MACHINE = os.uname().machine
_ARM = MACHINE in ("aarch64", "arm64")

#: Releases the GIL during the call.
libc = ctypes.CDLL(None, use_errno=True)
#: Keeps the GIL: clone3, whose child must own it.
pylibc = ctypes.PyDLL(None, use_errno=True)

pylibc.syscall.restype = ctypes.c_long

NUMBERS: dict[str, int] = {
    "rt_sigaction": 134 if _ARM else 13,
    "getcwd": 17 if _ARM else 79,
    "pivot_root": 41 if _ARM else 155,
    "keyctl": 219 if _ARM else 250,
    "seccomp": 277 if _ARM else 317,
    "bpf": 280 if _ARM else 321,
    "execveat": 281 if _ARM else 322,
    "capget": 90 if _ARM else 125,
    "capset": 91 if _ARM else 126,
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}

Pointer = ctypes.c_void_p
Int = ctypes.c_int
Uint = ctypes.c_uint
Long = ctypes.c_long
Ulong = ctypes.c_ulong
Text = ctypes.c_char_p


def bind(name: str, *argtypes: Any, restype: Any = Int, library: Any = libc) -> Any:
    """A function of the C library with its types declared; the caller checks the result with ``check``."""
    prototype = ctypes.CFUNCTYPE(restype, *argtypes, use_errno=True)
    return prototype((name, library))


def call(name: str, *argtypes: Any, library: Any = libc) -> Any:
    """A system call by its number, as a function of the given argument types; the caller checks the result with ``check``."""
    prototype = ctypes.CFUNCTYPE(Long, Long, *argtypes, use_errno=True)
    return partial(prototype(("syscall", library)), NUMBERS[name])


def failed(what: str | bytes) -> OSError:
    """The OSError for the last call of this thread; what is its path or name."""
    errno = ctypes.get_errno()
    return OSError(errno, os.strerror(errno), what)


def check(result: int, what: str | bytes) -> int:
    """The result of a call, or OSError when it is negative."""
    if result < 0:
        raise failed(what)
    return result
