"""The child of the reference isolation: enters its root, waits for a byte, becomes the command. Stdlib only."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import sys
import termios
import warnings  # execvpe imports it, after the root is another one

NEWNS, REC_PRIVATE, BIND = 0x20000, 0x44000, 0x5000
assert warnings
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter(order: dict) -> None:  # type: ignore[type-arg]
    """The mount namespace and root of the container, its own or that of a running process."""
    root = order["root"]
    if order["target"]:
        fd = os.open(f"/proc/{order['target']}/ns/mnt", os.O_RDONLY)
        check(libc.setns(fd, NEWNS))
        os.close(fd)
    else:
        check(libc.unshare(NEWNS))
        check(libc.mount(None, b"/", None, ctypes.c_ulong(REC_PRIVATE), None))
        check(libc.mount(b"/dev", os.fsencode(root + "/dev"), None, ctypes.c_ulong(BIND), None))
        check(libc.mount(b"proc", os.fsencode(root + "/proc"), b"proc", ctypes.c_ulong(0), None))
    os.chroot(root)


def main() -> None:
    order = json.loads(sys.argv[1])
    process, ready, go, report = order["process"], order["ready"], order["go"], order["report"]
    try:
        os.setsid()
        if process.get("terminal"):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        enter(order)
        os.chdir(process.get("cwd", "/"))
        user = process.get("user", {})
        os.setgroups(user.get("additionalGids", []))
        os.setgid(user.get("gid", 0))
        os.setuid(user.get("uid", 0))
        environment = dict(entry.split("=", 1) for entry in process.get("env", []))
        os.write(ready, b"r")
        os.close(ready)
        if not os.read(go, 1):
            os._exit(125)
        os.close(go)
        os.set_inheritable(report, False)
        os.execvpe(process["args"][0], process["args"], environment)
    except OSError as error:
        os.write(report, str(error.errno).encode())
        os._exit(127)


main()
