"""A container's group on cgroup v2 (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from wherry.linux import cgroup, counters, device_filter, pidfd
from wherry.linux.cgroup import Layout, keyed, make, number, read, until, write

_SIGKILL = 9
_WANTED = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")


class Group2(cgroup.Group):
    """path is below the mount point of the v2 tree."""

    def __init__(self, layout: Layout, path: str) -> None:
        self._layout = layout
        self.path = layout.v2 + path
        self.directories = (self.path,)

    def create(self, resources: Mapping[str, Any]) -> None:
        parent = os.path.dirname(self.path)
        make(parent)
        self._delegate(parent)
        made = make(self.path)
        try:
            self.apply(resources)
        except BaseException:
            if made:
                os.rmdir(self.path)
            raise

    def _delegate(self, parent: str) -> None:
        """Turns the controllers on for the children of every group down to the parent."""
        parts = parent[len(self._layout.v2) :].strip("/").split("/")
        groups = [self._layout.v2 + "".join(f"/{part}" for part in parts[:count]) for count in range(len(parts) + 1)]
        for group in dict.fromkeys(groups):
            have = set(read(f"{group}/cgroup.controllers").split())
            on = set(read(f"{group}/cgroup.subtree_control").split())
            missing = [name for name in _WANTED if name in have and name not in on]
            if missing:
                write(f"{group}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing))

    def apply(self, resources: Mapping[str, Any]) -> None:
        if memory := resources.get("memory"):
            self._memory(memory)
        if cpu := resources.get("cpu"):
            self._cpu(cpu)
        pids = resources.get("pids") or {}
        if pids.get("limit"):
            self._set("pids.max", _limit(pids["limit"]))
        if block := resources.get("blockIO"):
            self._io(block)
        for entry in resources.get("hugepageLimits") or ():
            self._set(f"hugetlb.{entry['pageSize']}.max", entry["limit"])
        for name, value in (resources.get("unified") or {}).items():
            if "/" in name:
                raise OSError(errno.EINVAL, "not the name of a control file", name)
            self._set(name, value)
        if rules := resources.get("devices"):
            device_filter.attach(self.path, rules)

    def _set(self, name: str, value: object) -> None:
        write(f"{self.path}/{name}", str(value))

    def _memory(self, memory: Mapping[str, Any]) -> None:
        limit, swap = memory.get("limit"), memory.get("swap")
        if limit:
            self._set("memory.max", _limit(limit))
        if swap:
            # OCI counts memory and swap together, v2 swap alone
            self._set("memory.swap.max", "max" if swap < 0 or not limit or limit < 0 else max(0, swap - limit))
        if memory.get("reservation"):
            self._set("memory.low", max(0, memory["reservation"]))  # -1: nothing is kept, where v1 has a limit to lift

    def _cpu(self, cpu: Mapping[str, Any]) -> None:
        if shares := cpu.get("shares"):
            self._set("cpu.weight", weight(int(shares)))
        quota, period = cpu.get("quota"), cpu.get("period")
        if quota or period:
            self._set("cpu.max", f"{quota if quota and quota > 0 else 'max'} {period or 100000}")
        for key, name in (
            ("burst", "cpu.max.burst"),
            ("idle", "cpu.idle"),
            ("cpus", "cpuset.cpus"),
            ("mems", "cpuset.mems"),
        ):
            if cpu.get(key):
                self._set(name, cpu[key])

    def _io(self, block: Mapping[str, Any]) -> None:
        if block.get("weight"):
            # blkio 10..1000 onto io 1..10000, as the OCI runtimes do
            self._set("io.weight", 1 + (int(block["weight"]) - 10) * 9999 // 990)
        for key, name in (
            ("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"),
            ("throttleReadIOPSDevice", "riops"), ("throttleWriteIOPSDevice", "wiops"),
        ):  # fmt: skip
            for entry in block.get(key) or ():
                self._set("io.max", f"{entry['major']}:{entry['minor']} {name}={entry['rate']}")

    def pids(self) -> tuple[int, ...]:
        return tuple(cgroup.all_pids(self.path))

    def freeze(self, frozen: bool) -> None:
        self._set("cgroup.freeze", int(frozen))
        until(lambda: keyed(f"{self.path}/cgroup.events").get("frozen") == int(frozen), self.path)

    def frozen(self) -> bool:
        return number(f"{self.path}/cgroup.freeze") == 1

    def kill(self, signal: int) -> None:
        if signal == _SIGKILL:
            try:
                self._set("cgroup.kill", 1)
            except FileNotFoundError:
                if not os.path.isdir(self.path):
                    return
            else:
                return
        for pid in self.pids():
            try:
                fd = pidfd.open(pid)
            except ProcessLookupError:
                continue
            try:
                if pid in self.pids():  # the descriptor is of the process that is in the group
                    pidfd.send_signal(fd, signal)
            except ProcessLookupError:
                continue
            finally:
                os.close(fd)

    def stats(self) -> dict[str, int]:
        result: dict[str, int] = {}
        for name in ("memory.current", "memory.peak", "memory.max", "memory.swap.current", "pids.current", "pids.max"):
            value = number(f"{self.path}/{name}")
            if value is not None:
                result[name] = value
        for name in ("cpu.stat", "memory.events"):
            prefix = name.removesuffix(".stat")
            result.update((f"{prefix}.{key}", value) for key, value in keyed(f"{self.path}/{name}").items())
        detail = keyed(f"{self.path}/memory.stat")
        result.update((f"memory.stat.{key}", detail[key]) for key in ("anon", "file", "inactive_file") if key in detail)
        try:
            transferred = counters.of_io_stat(cgroup.read(f"{self.path}/io.stat"))
        except OSError:  # without the controller io
            transferred = counters.of_processes(self.pids())
        return result | transferred

    def oom_kills(self) -> int:
        return keyed(f"{self.path}/memory.events").get("oom_kill", 0)


def _limit(value: int) -> str:
    return str(value) if value > 0 else "max"


def weight(shares: int) -> int:
    """cpu.weight of v1 cpu.shares: 2..262144 onto 1..10000 (runtime-spec, config-linux.md; the linear form)."""
    shares = min(max(shares, 2), 262144)
    return 1 + (shares - 2) * 9999 // 262142
