"""What this Linux kernel can do: the flags of ``Context.features``, found by asking, without a mount, a fork or an unshare."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def probe() -> frozenset[str]:
    """The features found, asked once."""
    found = set()
    for name, ask in _PROBES.items():
        with suppress(OSError):
            if ask():
                found.add(name)
    return frozenset(found)


def _overlay() -> bool:
    return "\toverlay\n" in Path("/proc/filesystems").read_text("ascii")


def _overlay_userxattr() -> bool:
    """fsconfig(2) refuses an option that the file system does not know before anything is mounted."""
    from wherry.linux import mount

    context = mount.fsopen("overlay")
    try:
        mount.fsconfig(context, mount.FSCONFIG_SET_FLAG, "userxattr")
    finally:
        os.close(context)
    return True


def _mount_idmapped() -> bool:
    """mount_setattr(2) knows MOUNT_ATTR_IDMAP: it then looks at the descriptor, and a bad one is EBADF."""
    from wherry.linux import mount, syscall

    attributes = mount.MountAttr(attr_set=mount.ATTR_IDMAP, userns_fd=0x7FFFFFFF)
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        attempt = mount._mount_setattr(root, b"", mount.AT_EMPTY_PATH, attributes, 32)
        syscall.check(attempt, "mount_setattr")
    except OSError as error:
        return error.errno in {errno.EBADF, errno.EPERM}
    finally:
        os.close(root)
    return True


def _mounted(fstype: str) -> bool:
    return any(
        line.split()[2] == fstype for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    )


def _userns() -> bool:
    limit = Path("/proc/sys/user/max_user_namespaces")
    return Path("/proc/self/ns/user").exists() and (not limit.exists() or int(limit.read_text("ascii")) > 0)


def _seccomp() -> bool:
    return "allow" in Path("/proc/sys/kernel/seccomp/actions_avail").read_text("ascii")


def _time_ns() -> bool:
    return Path("/proc/self/ns/time").exists()


def _pidfd_exit() -> bool:
    """PIDFD_GET_INFO exists since 6.13 and tells exit codes since 6.15; only a reaped child would show the difference."""
    from wherry.linux import pidfd

    descriptor = pidfd.open(os.getpid())
    try:
        pidfd.exit_status(descriptor)
    finally:
        os.close(descriptor)
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) >= (6, 15)


_PROBES: dict[str, Callable[[], bool]] = {
    "overlay": _overlay,
    "overlay.userxattr": _overlay_userxattr,
    "mount.idmapped": _mount_idmapped,
    "cgroup2": lambda: _mounted("cgroup2"),
    "cgroup1": lambda: _mounted("cgroup"),
    "userns": _userns,
    "seccomp": _seccomp,
    "time-ns": _time_ns,
    "pidfd.exit": _pidfd_exit,
}
