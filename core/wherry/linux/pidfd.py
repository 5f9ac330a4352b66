"""Processes by descriptor: pidfd_open(2), pidfd_send_signal(2) and PIDFD_GET_INFO."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from wherry.linux.syscall import Int, Pointer, Uint, call, check

PIDFD_INFO_EXIT = 1 << 3
_INFO_SIZE = 64  # PIDFD_INFO_SIZE_VER0: what every kernel with this ioctl takes
_GET_INFO = (3 << 30) | (_INFO_SIZE << 16) | (0xFF << 8) | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)

_open = call("pidfd_open", Int, Uint)
_send_signal = call("pidfd_send_signal", Int, Int, Pointer, Uint)


def open(pid: int) -> int:
    """pidfd_open(2), close-on-exec. ProcessLookupError when there is no such process."""
    return check(_open(pid, 0), f"pid {pid}")


def send_signal(fd: int, signal: int) -> None:
    """pidfd_send_signal(2). ProcessLookupError when the process was reaped."""
    check(_send_signal(fd, signal, None, 0), "pidfd_send_signal")


def exit_status(fd: int) -> int | None:
    """The wait status of a reaped process (os.waitstatus_to_exitcode reads it), or None while it is not to be had.

    PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15 and later; the process must have been reaped. OSError with ENOTTY or EINVAL
    where the kernel does not have it.
    """
    buffer = bytearray(_INFO_SIZE)
    struct.pack_into("=Q", buffer, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(fd, _GET_INFO, buffer, True)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return None
        raise
    (mask,) = struct.unpack_from("=Q", buffer, 0)
    if not mask & PIDFD_INFO_EXIT:
        return None
    # mask, cgroupid, pid, tgid, ppid, ruid .. fsgid (8 ids), exit_code
    (status,) = struct.unpack_from("=i", buffer, 8 + 8 + 3 * 4 + 8 * 4)
    return int(status)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat in clock ticks: with pid it names a process for good. ProcessLookupError when it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"pid {pid}") from None
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    return int(text[text.rindex(b")") + 2 :].split()[19])
