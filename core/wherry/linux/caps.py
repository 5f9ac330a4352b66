"""Capabilities (capabilities(7)) as 64-bit masks: bit n is capability n of include/uapi/linux/capability.h."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from wherry.linux import process
from wherry.linux.syscall import Pointer, call, check

NAMES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
    "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
NUMBER: dict[str, int] = {name: number for number, name in enumerate(NAMES)}
_VERSION_3 = 0x20080522

_capget = call("capget", Pointer, Pointer)
_capset = call("capset", Pointer, Pointer)
_header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)


def mask(names: Iterable[str]) -> int:
    """The mask of names such as "CAP_CHOWN" or "chown". KeyError for an unknown one."""
    result = 0
    for name in names:
        upper = name.upper()
        result |= 1 << NUMBER[upper if upper.startswith("CAP_") else f"CAP_{upper}"]
    return result


def names(mask: int) -> tuple[str, ...]:
    """The names of the capabilities in a mask, in the kernel's order."""
    return tuple(name for number, name in enumerate(NAMES) if mask >> number & 1)


def get() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this thread: capget(2)."""
    data = (ctypes.c_uint32 * 6)()
    check(_capget(_header, data), "capget")
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def set(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2)."""
    low = 0xFFFFFFFF
    data = (ctypes.c_uint32 * 6)(
        effective & low, permitted & low, inheritable & low, effective >> 32, permitted >> 32, inheritable >> 32
    )
    check(_capset(_header, data), "capset")


def bounding() -> int:
    """The bounding set of this thread."""
    result = 0
    for number in range(len(NAMES)):
        try:
            result |= process.prctl(process.PR_CAPBSET_READ, number) << number
        except OSError:
            break  # EINVAL: this kernel knows no more
    return result


def drop_bounding(keep: int, last: int) -> None:
    """Drops from the bounding set every capability up to number last that is not in the mask keep."""
    drop, prctl = process.PR_CAPBSET_DROP, process.raw_prctl
    for number in range(last + 1):
        if not keep >> number & 1:
            check(prctl(drop, number, 0, 0, 0), "prctl PR_CAPBSET_DROP")


def set_ambient(mask: int) -> None:
    """Makes the ambient set equal to mask; permitted and inheritable must hold it already."""
    process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_RAISE, number)


def last() -> int:
    """The highest capability number that this kernel knows and this table names."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
            return min(int(file.read()), len(NAMES) - 1)
    except OSError:
        return len(NAMES) - 1
