"""Roots that a program serves, as fuse-overlayfs does: the shim runs the program, and the container gets its mount as a descriptor.

The program ends with the last mount of its file system, that is, with the container; nobody has to end, forget or find it
(``wherry.linux.fuse``). Its id begins with its driver's, as that of all processes of drivers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from wherry.interfaces.common import IdMap, Mount
from wherry.interfaces.process import Plan, Shim, Stdio
from wherry.linux import fuse

#: Seconds that an interpreter has to make a mount.
PATIENCE = 30.0
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from wherry.linux.fuse import main; main()"
_CORE = str(Path(__file__).resolve().parents[3])
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
_LARGEST = 4096


@contextmanager
def roots(shim: Shim, id: str, mounts: Sequence[Mount]) -> Iterator[tuple[int, ...]]:
    """Detached mounts for those of mounts that programs serve: the ``Plan.fds`` of who is started in the block.

    id: begins with the driver's; what follows keeps two programs apart. Raises FailedPrecondition with what the program said when it
    ended before the block did, OSError, Unavailable.
    """
    made: list[int] = []
    said: list[int] = []
    try:
        for one in mounts:
            if one.type.startswith(fuse.PREFIX):
                said.append(os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
                made.append(_start(shim, f"{id}.{secrets.token_hex(4)}", one, said[-1]))
        yield tuple(made)
    except OSError as error:
        text = " ".join(_text(fd) for fd in said)
        if error.errno != errno.ENOTCONN or not said:
            raise
        what = next(one.source for one in mounts if one.type.startswith(fuse.PREFIX))
        raise FailedPrecondition(f'program "{what}"', text or "it ended before the container had its root") from None
    finally:
        for fd in said:
            # what it says from now on is nobody's, and shall not take memory
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        for fd in (*made, *said):
            os.close(fd)


def _start(shim: Shim, id: str, one: Mount, stderr: int) -> int:
    options = [*(option for option in one.options if option not in ("rw", "ro")), *_mappings(one.idmap)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            argv = (sys.executable, "-I", "-S", "-c", _START, _CORE, one.source, *options)
            plan = Plan(how="spawn", argv=argv, env=_ENVIRONMENT, fds=(theirs.fileno(),))
            shim.spawn(id, "", plan, Stdio(stderr=stderr))
        ours.settimeout(PATIENCE)
        fd = -1
        try:
            while True:
                text, fds, _flags, _address = socket.recv_fds(ours, _LARGEST, 1)
                if fds:
                    fd = fds[0]
                    os.set_inheritable(fd, False)
                elif text:
                    number, _space, message = text.decode(errors="replace").partition(" ")
                    what, _colon, why = message.partition(": ")
                    raise OSError(int(number), why, what)
                elif fd < 0:
                    raise Unavailable(f'program "{one.source}"', _text(stderr) or "it ended before it had a mount")
                else:
                    return fd
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f'program "{one.source}"', f"did not start within {PATIENCE:g} seconds"
                ) from None
            raise


def _mappings(idmap: IdMap) -> list[str]:
    """As fuse-overlayfs(1) has them: the first id on disk, the one that is shown, how many."""
    return [
        f"{name}={':'.join(str(number) for one in ranges for number in one)}"
        for name, ranges in (("uidmapping", idmap.uids), ("gidmapping", idmap.gids))
        if ranges
    ]


def _text(memory: int) -> str:
    """What a program wrote to its stderr, on one line."""
    return " ".join(os.pread(memory, _LARGEST, 0).decode(errors="replace").split())


__all__ = ["PATIENCE", "roots"]
