"""A container's processes where there is no control group: those of its pid namespace, whose first one takes all others along."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wherry.api import FailedPrecondition
from wherry.kit import cgroups, processes

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIMITS = {
    "memory": "memory", "cpu": "cpu", "pids": "pids", "blockIO": "block I/O", "hugepageLimits": "huge pages", "network": "network",
    "rdma": "RDMA", "unified": "cgroup v2",
}  # fmt: skip
_KILL = 9


class ProcessGroup(cgroups.Group):
    """As a control group that can neither limit nor freeze.

    The first process is noted in a file, before it starts: it is found again even where shim and logger were both lost.
    """

    directories = ()

    def __init__(self, id: str, note: Path, *, fresh: bool) -> None:
        self._id = id
        self._note = note
        self._pid = 0
        self._started = 0
        self._namespace = ""
        if not fresh:
            self._find()

    @property
    def known(self) -> bool:
        """Whether there is a first process, alive or not."""
        return bool(self._pid)

    def follow(self, pid: int) -> None:
        """pid: the container's first process. Nothing happens when it has ended."""
        try:
            started = processes.start_time(pid)
        except ProcessLookupError:
            return
        if self._look(pid, started):
            self._note.write_text(f"{pid} {self._started}\n", encoding="ascii")

    def _find(self) -> None:
        try:
            pid, started = map(int, self._note.read_text(encoding="ascii").split())
        except (OSError, ValueError):  # it was never started
            return
        self._look(pid, started)

    def _look(self, pid: int, started: int) -> bool:
        """Takes a process for the first one; False when it has ended."""
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/pid")
            alive = processes.start_time(pid) == started
        except (OSError, ProcessLookupError):
            return False
        if alive:
            self._pid, self._started = pid, started
            self._namespace = namespace if namespace != os.readlink("/proc/self/ns/pid") else ""
        return alive

    def create(self, resources: Mapping[str, Any]) -> None:
        self.apply(resources)

    def apply(self, resources: Mapping[str, Any]) -> None:
        """FailedPrecondition where a limit is asked for: one that does not hold is worse than none."""
        for key, name in _LIMITS.items():
            if resources.get(key):
                raise FailedPrecondition(
                    f"{name} limit",
                    "this user has no control groups to set it in",
                    'limits of one process go without: --ulimit; "wherry info" tells why there are none',
                )

    def _alive(self) -> bool:
        try:
            return bool(self._pid) and processes.start_time(self._pid) == self._started
        except (ProcessLookupError, OSError):
            return False

    def pids(self) -> tuple[int, ...]:
        if not self._alive():
            return ()
        if not self._namespace:
            return (self._pid,)
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if os.readlink(f"/proc/{name}/ns/pid") == self._namespace:
                        found.append(int(name))
                except OSError:  # it has ended, or is nobody's that we may look at
                    continue
        return tuple(sorted(found))

    def freeze(self, frozen: bool) -> None:
        if frozen:
            raise FailedPrecondition(f'container "{self._id}"', "can't be paused without a control group")

    def frozen(self) -> bool:
        return False

    def kill(self, signal: int) -> None:
        """SIGKILL to the first takes all others along (pid_namespaces(7)); any other signal goes to each."""
        for pid in (self._pid,) if signal == _KILL and self._namespace else self.pids():
            try:
                fd = processes.open_pidfd(pid)
            except OSError:
                continue
            try:
                if pid == self._pid and not self._alive():
                    continue
                processes.send_signal(fd, signal)
            except ProcessLookupError:
                continue
            finally:
                os.close(fd)

    def stats(self) -> dict[str, int]:
        """Sums over the processes, by the names of cgroup v2."""
        result = {"memory.current": 0, "pids.current": 0, "cpu.usage_usec": 0}
        for pid in self.pids():
            try:
                resident = int(cgroups.read(f"/proc/{pid}/statm").split()[1])
                fields = cgroups.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            except (OSError, IndexError):
                continue
            result["pids.current"] += 1
            result["memory.current"] += resident * _PAGE
            result["cpu.usage_usec"] += (int(fields[11]) + int(fields[12])) * 1_000_000 // _TICKS
        return result | cgroups.of_processes(self.pids())

    def oom_kills(self) -> int:
        return 0

    def delete(self) -> bool:
        """False while its first process lives: the others end with it."""
        if self._alive():
            return False
        self._note.unlink(missing_ok=True)
        return True
