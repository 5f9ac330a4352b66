"""What runs in a container, as the host's /proc has it (proc_pid_stat(5), proc_pid_status(5), proc_pid_cmdline(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable

from wherry.api import ContainerProcess

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def look(pids: Iterable[int]) -> tuple[ContainerProcess, ...]:
    """By their numbers; one that has ended meanwhile is left out."""
    booted = _booted()
    found = []
    for pid in sorted(pids):
        try:
            found.append(_one(pid, booted))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return tuple(found)


def _booted() -> int:
    """When the machine was started, in ns since the epoch (proc_stat(5), btime)."""
    with open("/proc/stat", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("btime ")) * 1_000_000_000


def _one(pid: int, booted: int) -> ContainerProcess:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        head, _, tail = file.read().rpartition(")")
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    owner = os.stat(f"/proc/{pid}")
    fields = tail.split()
    name = head.partition("(")[2]
    return ContainerProcess(
        pid=pid,
        parent=int(fields[1]),
        uid=owner.st_uid,
        gid=owner.st_gid,
        state=fields[0],
        terminal=_terminal(int(fields[4])),
        started=booted + int(fields[19]) * _TICK_NS,
        cpu=(int(fields[11]) + int(fields[12])) * _TICK_NS,
        threads=int(fields[17]),
        virtual=int(fields[20]),
        resident=int(fields[21]) * _PAGE,
        name=name,
        command=tuple(os.fsdecode(word) for word in words if words != [b""]),
    )


def _terminal(number: int) -> str:
    """The name below /dev of a controlling terminal, "" for none: those of devpts have the major numbers 136 to 143."""
    major, minor = os.major(number), os.minor(number)
    if 136 <= major <= 143:
        return f"pts/{minor + ((major - 136) << 8)}"
    return f"tty{minor}" if major == 4 else ""
