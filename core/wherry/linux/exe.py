"""An interpreter that no container can write to (CVE-2019-5736).

A process inside a container that opens ``/proc/PID/exe`` of a process of ours holds the host's interpreter; once nobody runs
it any more, it could be written. So a resident process re-executes its interpreter through a detached read-only bind mount:
the file behind ``/proc/PID/exe`` then lies on a mount that refuses writing, whoever opens it. Where the mount API is not
permitted (an unprivileged user), a sealed memfd copy does the same; libraries then stay the host's own, which that user's
containers cannot write either unless the user can.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Mapping, Sequence

from wherry.linux import mount, process


def open_readonly(exe: str) -> int:
    """A descriptor of the file exe, on a detached read-only mount or as a sealed memfd, for ``process.execve_fd``."""
    try:
        fd = mount.clone_tree(exe)
    except OSError:
        return _sealed_copy(exe)
    try:
        mount.set_attributes(fd, set=mount.ATTR_RDONLY)
    except OSError:
        os.close(fd)
        return _sealed_copy(exe)
    return fd


def _sealed_copy(exe: str) -> int:
    source = os.open(exe, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            copy = os.memfd_create("python", flags | 0x10)  # MFD_EXEC, for vm.memfd_noexec; Linux 6.3
        except OSError:
            copy = os.memfd_create("python", flags)
        size = os.fstat(source).st_size
        sent = 0
        while sent < size:
            count = os.sendfile(copy, source, sent, size - sent)
            if not count:
                raise OSError(5, os.strerror(5), exe)
            sent += count
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    finally:
        os.close(source)
    return copy


def reexec(argv: Sequence[str], env: Mapping[str, str] | None = None, exe: str = sys.executable) -> None:
    """Replaces this process by exe with argv, through a read-only mount; returns only by OSError.

    env is os.environ when None. argv[0] should be exe's own path: Python finds its prefix, and a virtual environment, by it.
    The new process is to call ``process.set_dumpable(False)`` first, since exec makes it dumpable again.
    """
    environment = os.environ if env is None else env
    fd = open_readonly(os.path.realpath(exe))
    try:
        process.execve_fd(fd, argv, [f"{key}={value}" for key, value in environment.items()])
    finally:
        os.close(fd)
