"""A control group of its own for an ordinary user's shim, where that user's service manager delegates one.

Only a group that holds no process can have limited groups below it (cgroup-v2.rst, "No Internal Process Constraint"), and that of a
login shell holds the shell. So the manager is asked for a transient scope, and the shim moves into a leaf below it.
See systemd.resource-control(5), "Delegate=", and the Control Group APIs and Delegation page of systemd.
"""

from __future__ import annotations

import contextlib
import os
import time

from wherry.linux import cgroup

_PATIENCE = 10.0
_V2 = "/sys/fs/cgroup"


def enter(run: str) -> None:
    """Moves this process into ``<scope>/wherry-shim``; leaves it where it is when there is no such manager or it refuses."""
    before = _own()
    if not before or not os.access(f"{_V2}/cgroup.controllers", os.R_OK) or os.path.basename(before) == cgroup.OWN_LEAF:
        return
    _ask(run)
    group = _own()
    leaf = f"{_V2}{group}/{cgroup.OWN_LEAF}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf)
        cgroup.write(f"{leaf}/cgroup.procs", str(os.getpid()))
    except OSError:
        return  # nobody delegated it
    if cgroup.read(f"{_V2}{group}/cgroup.procs").strip():  # others live there, so it can have no limits below it
        with contextlib.suppress(OSError):
            cgroup.write(f"{_V2}{group}/cgroup.procs", str(os.getpid()))
            os.rmdir(leaf)


def _own() -> str:
    """This process's v2 group, "" without one of its own."""
    for line in cgroup.read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:].rstrip("/")
    return ""


def _ask(run: str) -> None:
    """Has the user's manager make a scope around this process, by busctl(1), and waits until it did."""
    directory = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.exists(f"{directory}/systemd/private"):
        return
    before, pid = _own(), os.getpid()
    argv = [
        "busctl", "--user", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))",
        f"wherry-{pid}-{os.stat(run).st_ino}.scope", "fail", "3",
        "Description", "s", f"Wherry in {run}", "Delegate", "b", "true", "PIDs", "au", "1", str(pid), "0",
    ]  # fmt: skip
    environ = {**os.environ, "XDG_RUNTIME_DIR": directory}
    quiet = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
    try:
        child = os.posix_spawnp(argv[0], argv, environ, file_actions=quiet)
    except FileNotFoundError:
        return
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.005)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        return
    while status == 0 and _own() == before and time.monotonic() < end:  # the manager answers before it has moved us
        time.sleep(0.005)
