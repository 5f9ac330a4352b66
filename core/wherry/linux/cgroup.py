"""Control groups: which hierarchies this host has, and one container's group in them (cgroups(7)).

A host is "unified" when the v2 tree holds the memory and pids controllers; else v1 is used, also where a v2 tree is mounted beside it
(systemd's hybrid set-up, or one with a controller or two). Existing mounts and groups of others are never changed.
"""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wherry.linux import userns

#: v1 controllers that every container gets a group of; the others only when a limit of theirs is set.
ALWAYS = ("memory", "pids", "freezer", "devices", "cpuacct")
_V1 = frozenset({*ALWAYS, "cpu", "cpuset", "blkio", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"})
PATIENCE = 5.0


class Layout:
    """The hierarchies of a host. v1: controller -> mount point; v2: the mount point of the v2 tree, "" without one."""

    __slots__ = ("unified", "v1", "v2", "v2_controllers")

    def __init__(self, v1: Mapping[str, str], v2: str, v2_controllers: Iterable[str]) -> None:
        self.v1 = dict(v1)
        self.v2 = v2
        self.v2_controllers = frozenset(v2_controllers)
        self.unified = bool(v2) and "memory" in self.v2_controllers and "memory" not in self.v1

    def available(self) -> bool:
        return self.unified or "memory" in self.v1 or "pids" in self.v1


def detect() -> Layout:
    """Reads /proc/self/mountinfo; the first mount of a hierarchy counts.

    In a user namespace of an ordinary user's there is what is delegated: a part of the v2 tree, or nothing.
    """
    v1: dict[str, str] = {}
    v2 = ""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().splitlines():
            left, _dash, right = line.partition(b" - ")
            kind, _source, options = (*right.split(b" ", 2), b"", b"")[:3]
            if kind not in (b"cgroup", b"cgroup2"):
                continue
            point = _unescape(left.split(b" ")[4])
            if kind == b"cgroup2":
                v2 = v2 or point
            else:
                for option in options.decode().split(","):
                    if option in _V1:
                        v1.setdefault(option, point)
    controllers: list[str] = []
    if userns.confined():
        v1, v2 = {}, delegated(v2) if v2 else ""
    if v2:
        try:
            controllers = read(f"{v2}/cgroup.controllers").split()
        except OSError:
            v2 = ""
    return Layout(v1, v2, controllers)


#: The group, below one delegated to it, that a shim leaves that one for: a group with groups below it holds no process.
OWN_LEAF = "wherry-shim"


def delegated(v2: str) -> str:
    """The directory of the v2 group above this process's leaf, if groups may be made there; else ""."""
    for line in read("/proc/self/cgroup").splitlines():
        if line.startswith("0::") and os.path.basename(line) == OWN_LEAF:
            path = v2 + os.path.dirname(line[3:])
            wanted = (path, f"{path}/cgroup.subtree_control", f"{path}/cgroup.procs")
            if path != v2 and all(os.access(name, os.W_OK) for name in wanted):
                return path
    return ""


def _unescape(text: bytes) -> str:
    for code, mark in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        text = text.replace(code, mark)
    return os.fsdecode(text)


def read(path: str) -> str:
    """A control file's text."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while data := os.read(fd, 1 << 16):
            parts.append(data)
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")


def write(path: str, value: str) -> None:
    """One write to a control file. The path is in the error."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def number(path: str) -> int | None:
    """A control file's number; None where there is no such file or no number in it ("max")."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return None


def keyed(path: str) -> dict[str, int]:
    """A flat keyed control file; {} where there is none."""
    try:
        text = read(path)
    except OSError:
        return {}
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].lstrip("-").isdigit()}


def make(path: str) -> bool:
    """mkdir, parents first; False when it is there already."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    except FileNotFoundError:
        make(os.path.dirname(path))
        return make(path)
    return True


def remove(path: str) -> None:
    """rmdir, groups below first; nothing happens when it is gone. OSError with EBUSY while processes are in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        try:
            with os.scandir(path) as entries:
                below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return
        if not below:
            raise
        for child in below:
            remove(child)
        os.rmdir(path)


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Waits for a change that the kernel makes by itself; OSError (EBUSY) when it does not."""
    delay, deadline = 0.0002, time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), what)
        time.sleep(delay)
        delay = min(delay * 2, 0.02)


class Group(ABC):
    """One container's group, over all hierarchies. Paths are absolute; every method but ``create`` accepts that it is gone."""

    directories: tuple[str, ...]

    @abstractmethod
    def create(self, resources: Mapping[str, Any]) -> None:
        """Makes it and applies the OCI linux.resources; on an error nothing is left."""

    @abstractmethod
    def apply(self, resources: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """Every process in it and below it."""

    @abstractmethod
    def freeze(self, frozen: bool) -> None:
        """Returns once it is so."""

    @abstractmethod
    def frozen(self) -> bool: ...

    @abstractmethod
    def kill(self, signal: int) -> None:
        """Every process of it."""

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """By the names of cgroup v2."""

    @abstractmethod
    def oom_kills(self) -> int: ...

    def delete(self) -> bool:
        """Removes it; False while processes are in it."""
        try:
            for path in self.directories:
                remove(path)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            return False
        return True


def all_pids(path: str) -> list[int]:
    """cgroup.procs of a group and of those below it."""
    found: list[int] = []
    try:
        found.extend(int(word) for word in read(f"{path}/cgroup.procs").split())
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return found
        raise
    for child in below:
        found.extend(all_pids(child))
    return found
