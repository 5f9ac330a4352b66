"""File systems that a program serves (fuse(4)): the mount is made here, without a place, and the program is given its device.

libfuse takes /dev/fd/N for a mount point that is somebody else's (libfuse, fuse_session_mount). Such a mount is in nobody's mount
table but that of who gets it, and the program ends with it: the kernel hangs up when the last mount of the file system goes. So
nothing is left behind, whoever is killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Sequence

from wherry.linux import mount, namespaces, process

DEVICE = "/dev/fuse"
#: The type of a mount that a program of that name serves begins so, as in mount.fuse3(8).
PREFIX = "fuse."
_CHANNEL = 3
#: Options whose directories are parts of one tree, topmost first.
_UPPER, _WORK, _LOWER = "upperdir=", "workdir=", "lowerdir="


def make(name: str, attributes: int = 0) -> tuple[int, int]:
    """(detached mount, device): file system calls wait until somebody serves the device. Both are the caller's, close-on-exec. The
    kernel asks that whoever opens the device mounts it, in one user namespace. OSError."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options: list[tuple[mount.Path, mount.Path | int | None]] = [
            ("source", name), ("subtype", name), ("fd", str(device)), ("rootmode", "40000"), ("user_id", "0"),
            ("group_id", "0"), ("default_permissions", None), ("allow_other", None),
        ]  # fmt: skip
        return mount.new_mount("fuse", options, attributes), device
    except BaseException:
        os.close(device)
        raise


def command(program: str, options: Sequence[str], device: int) -> list[str]:
    """argv of a program of libfuse's, which stays in the foreground."""
    return [program, "-f", "-o", ",".join(options), f"/dev/fd/{device}"]


def read_only(options: Sequence[str]) -> list[str]:
    """The options of an overlay whose upper directory is the topmost of those that are only read: the program that writes there
    may run meanwhile, and its work directory is its own."""
    upper = "".join(option.removeprefix(_UPPER) + ":" for option in options if option.startswith(_UPPER))
    return [
        f"{_LOWER}{upper}{option.removeprefix(_LOWER)}" if option.startswith(_LOWER) else option
        for option in options
        if not option.startswith((_UPPER, _WORK))
    ]


def serve(program: str, options: Sequence[str], attributes: int = 0) -> int:
    """A detached mount that a child of this process serves, and ends with; for a process with one thread.

    OSError: ENOTCONN where the program ended at once, having said why on stderr.
    """
    made, device = make(os.path.basename(program), attributes)
    try:
        try:
            parent = os.getpid()
            if os.fork() == 0:
                try:
                    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
                    if os.getppid() == parent:
                        _become(program, options, device)
                finally:
                    os._exit(127)
        finally:
            os.close(device)  # the program's alone from now on: else the next call would wait for one that has ended
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=made))  # once it is served
    except OSError as error:
        os.close(made)
        if error.errno == errno.ENOTCONN:
            raise OSError(errno.ENOTCONN, "ended before it served anything", program) from None
        raise
    return made


def _become(program: str, options: Sequence[str], device: int) -> None:
    """A mount namespace in which the mount never is: else the program would hold what it ends with."""
    namespaces.unshare(namespaces.NEWNS)
    # It may have been one of the first three, where they were closed.
    device = fcntl.fcntl(device, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    process.close_others((0, 1, 2, device))
    os.set_inheritable(device, True)
    os.execv(program, command(program, options, device))  # noqa: S606 (an absolute path)


def main() -> None:
    """PROGRAM OPTION...: sends a detached mount over the socket that is descriptor 3 and becomes the program that serves it.

    What failed is sent instead, or after it, as text: "errno what: why"; the end of file means that the program runs.
    """
    program, *options = sys.argv[1:]
    channel = socket.socket(fileno=_CHANNEL)
    channel.set_inheritable(False)
    try:
        made, device = make(os.path.basename(program))
        socket.send_fds(channel, [b"mount"], [made])
        os.close(made)
        os.set_inheritable(device, True)
        os.execv(program, command(program, options, device))  # noqa: S606 (an absolute path)
    except OSError as error:
        name = error.filename
        what = os.fsdecode(name) if isinstance(name, (str, bytes)) else "fuse"
        channel.send(f"{error.errno} {what}: {error.strerror}".encode())
        sys.exit(1)


__all__ = ["DEVICE", "PREFIX", "command", "main", "make", "read_only", "serve"]
