"""Each test process in namespaces of its own: mount, network and PID, with an init that reaps.

Two test processes never see each other's mounts, links and processes, so a leak is always found by the test that made it;
and whatever is left in the end dies with the PID namespace. Without root, or where unshare(1) is refused, tests run as they
are: the header of the run says so.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess

MARK = "WHERRY_TESTS_ISOLATED"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def isolated() -> bool:
    """Whether this process is already inside."""
    return os.environ.get(MARK) == "1"


def wrapper() -> list[str]:
    """The command that runs what follows it in new namespaces: its own /proc, private mounts, an init that reaps."""
    return [
        "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        "env", f"{MARK}=1", "tini", "-s", "--",
    ]  # fmt: skip


def refused() -> str:
    """Why there can be no isolation here, or ""."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("unshare", "tini"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run([*wrapper(), "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else tried.stderr.strip() or f"unshare exited with {tried.returncode}"


def raise_loopback() -> None:
    """Sets lo up (netdevice(7)): a new network namespace has it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        if not flags & _IFF_UP:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))
