"""This process's own user namespace, as user_namespaces(7) has it: which one it is, and who its ids are outside."""

from __future__ import annotations

import os

_WHOLE = [(0, 0, 0xFFFFFFFF)]


def id_map(name: str = "uid_map", pid: int | str = "self") -> list[tuple[int, int, int]]:
    """(inside, outside, size) of each line of /proc/PID/uid_map or gid_map. OSError."""
    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)  # half the system calls of a file object's
    try:
        text = b"".join(iter(lambda: os.read(fd, 4096), b""))
    finally:
        os.close(fd)
    return [(int(inside), int(outside), int(size)) for inside, outside, size in map(bytes.split, text.splitlines())]


def confined() -> bool:
    """Whether this process is in another user namespace than the first: its root is an ordinary user, or root of a part of the host."""
    try:
        return id_map() != _WHOLE
    except OSError:  # a kernel without user namespaces
        return False


def translate(id: int, ranges: list[tuple[int, int, int]]) -> int:
    """An id inside as the namespace above names it; -1 when no range holds it."""
    for inside, outside, size in ranges:
        if inside <= id < inside + size:
            return outside + id - inside
    return -1


def outer_uid() -> int:
    """Whom the files of this process belong to, as the namespace above names that user."""
    uid = os.geteuid()
    try:
        found = translate(uid, id_map())
    except OSError:
        return uid
    return uid if found < 0 else found


def groups_denied() -> bool:
    """Whether setgroups(2) is barred for good here, as where a single id was mapped without privilege."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False
