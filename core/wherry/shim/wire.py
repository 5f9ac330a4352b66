"""The shim's sockets, and the errors that travel over them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Fault(Exception):
    """An error that goes to the caller by the class name that wherry.errors has for it."""

    def __init__(self, cls: str, what: str, cause: str, hint: str = "") -> None:
        super().__init__(cls, what, cause, hint)
        self.record: dict[str, Any] = {"class": cls, "what": what, "cause": cause, "hint": hint}


def describe(error: BaseException) -> dict[str, Any]:
    """The record of an error: class, what, cause, hint, and errno for a failed system call."""
    if isinstance(error, Fault):
        return error.record
    if isinstance(error, OSError) and error.errno is not None:
        what = error.filename if error.filename is not None else "shim"
        what = os.fsdecode(what) if isinstance(what, bytes | str) else str(what)
        return {"class": "OSError", "what": what, "cause": error.strerror or "", "hint": "", "errno": error.errno}
    if isinstance(error, KeyError | TypeError | ValueError | IndexError):
        return {"class": "Invalid", "what": "shim request", "cause": f"{type(error).__name__}: {error}", "hint": ""}
    return {"class": "Error", "what": "shim", "cause": f"{type(error).__name__}: {error}", "hint": ""}


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that connected (unix(7), SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", data)
    return pid, uid, gid


def address(path: str) -> tuple[str, int]:
    """A name for path that fits sun_path (108 bytes) however long it is, and the descriptor it needs meanwhile, or -1."""
    if len(os.fsencode(path)) < 100:
        return path, -1
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    return f"/proc/self/fd/{fd}/{name}", fd


def listen(path: str, mode: int = 0o600) -> socket.socket:
    """A listening stream socket at path, replacing what is there; nobody can connect before its mode is set."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}.{os.getpid()}"
    mask = os.umask(0o777 & ~mode)
    name, fd = address(temporary)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        sock.bind(name)
    finally:
        os.umask(mask)
        if fd >= 0:
            os.close(fd)
    sock.listen(128)
    os.rename(temporary, path)
    sock.setblocking(False)
    return sock


def connect(path: str) -> socket.socket:
    """A stream socket connected to path. OSError when nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name, fd = address(path)
    try:
        sock.connect(name)
    except OSError:
        sock.close()
        raise
    finally:
        if fd >= 0:
            os.close(fd)
    return sock
