"""What tells namespaces apart, who owns one, and this process's user namespace: ioctl_nsfs(2), namespaces(7), user_namespaces(7)."""

from __future__ import annotations

import fcntl
import os

from wherry.linux.userns import confined, id_map, outer_uid

__all__ = ["Identity", "confined", "id_map", "identity", "outer_uid", "own", "owns_network"]

_GET_USERNS = 0xB701  # NS_GET_USERNS

Identity = tuple[int, int]
"""(device, inode) of the nsfs file: equal for equal namespaces, for as long as one of them is held."""


def identity(fd: int) -> Identity:
    """Of a namespace by an nsfs descriptor."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def own(type: str) -> Identity:
    """Of this thread's namespace; type as below /proc/PID/ns, e.g. "net"."""
    found = os.stat(f"/proc/thread-self/ns/{type}")
    return found.st_dev, found.st_ino


def owns_network() -> bool:
    """Whether this thread's network namespace belongs to its user namespace, and it is root there: then it may make links."""
    fds: list[int] = []
    try:
        fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        fds.append(fcntl.ioctl(fds[0], _GET_USERNS))
        return identity(fds[1]) == own("user") and os.geteuid() == 0
    except OSError:  # EPERM: its owner is above us
        return False
    finally:
        for fd in fds:
            os.close(fd)
