"""Moving bytes between pipes without ever holding them: splice(2), tee(2), FIONREAD.

Descriptors that came from a client share their open file description with it, so O_NONBLOCK is never set on them: a pipe, tty or
file is opened again through /proc/self/fd, which gives a description of our own; a socket takes MSG_DONTWAIT instead.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import termios

_NONBLOCK = 2
_MOVE = 1
_INT = struct.Struct("i")
_SETPIPE_SZ, _GETPIPE_SZ = 1031, 1032

CHUNK = 1 << 16
LARGEST = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_tee = _libc.tee
_tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_tee.restype = ctypes.c_ssize_t


def staging() -> int:
    """A pipe as one descriptor that is read and written, non-blocking: never at end of file, so it only holds bytes."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(reader)
        os.close(writer)


def pending(fd: int) -> int:
    """How many bytes a pipe holds."""
    (count,) = _INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


def splice(source: int, target: int, count: int) -> int:
    """splice(2), one of both a pipe: bytes moved, 0 at end of file. BlockingIOError; EINVAL where the two can't be joined."""
    return os.splice(source, target, count, flags=_NONBLOCK | _MOVE)


def tee(source: int, target: int, count: int) -> int:
    """tee(2): duplicates what source holds into target. BlockingIOError when there is no room."""
    result: int = _tee(source, target, count, _NONBLOCK)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "tee")
    return result


def discard(pipe: int, count: int, null: int) -> None:
    """Drops the first count bytes of a pipe; null is /dev/null, open for writing."""
    while count > 0:
        count -= splice(pipe, null, count)


def grow(pipe: int) -> bool:
    """Gives a pipe four times its slots; False when it has the most it may have."""
    size = fcntl.fcntl(pipe, _GETPIPE_SZ)
    if size >= LARGEST:
        return False
    try:
        fcntl.fcntl(pipe, _SETPIPE_SZ, min(LARGEST, size * 4))
    except OSError:
        return False
    return True


def match(pipe: int, other: int) -> None:
    """Makes other as large as pipe, so that a tee of all of pipe fits into it."""
    size = fcntl.fcntl(pipe, _GETPIPE_SZ)
    if fcntl.fcntl(other, _GETPIPE_SZ) < size:
        fcntl.fcntl(other, _SETPIPE_SZ, size)


def reopen(fd: int, flags: int) -> tuple[int, bool]:
    """(descriptor, non-blocking): a description of our own for what fd names, else fd itself (a socket, or not permitted)."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return fd, False
    if stat.S_ISREG(mode):
        return fd, True  # never blocks, and its offset is to be shared with the client's
    try:
        own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return fd, False
    os.close(fd)
    return own, True


def unsupported(error: OSError) -> bool:
    """Whether splice answered that these two can't be joined (O_APPEND, an odd driver): copy instead."""
    return error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
