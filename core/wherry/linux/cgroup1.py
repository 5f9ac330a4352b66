"""A container's group on cgroup v1 (Documentation/admin-guide/cgroup-v1/)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from wherry.linux import cgroup, counters, pidfd
from wherry.linux.cgroup import Layout, keyed, make, number, read, until, write

_SIGKILL = 9
#: OCI linux.resources key -> v1 controllers that it needs.
_NEEDS = {
    "cpu": ("cpu", "cpuset"),
    "blockIO": ("blkio",),
    "hugepageLimits": ("hugetlb",),
    "network": ("net_cls", "net_prio"),
}
_UNLIMITED = 1 << 62


class Group1(cgroup.Group):
    """path is below each hierarchy's mount point, "/wherry-1a2b3c4d/ID"."""

    def __init__(self, layout: Layout, path: str, resources: Mapping[str, Any] | None = None) -> None:
        self._layout = layout
        self._path = path
        self._controllers: dict[str, str] = {}
        for name in self._wanted(resources):
            self._controllers[name] = layout.v1[name] + path
        self.directories = tuple(dict.fromkeys(self._controllers.values()))

    def _wanted(self, resources: Mapping[str, Any] | None) -> list[str]:
        """Those always made, those that limits need, and (resources None: found again) those that exist."""
        names = [name for name in cgroup.ALWAYS if name in self._layout.v1]
        for key, controllers in _NEEDS.items():
            for name in controllers:
                if name not in self._layout.v1:
                    continue
                if resources is None:
                    present = os.path.isdir(self._layout.v1[name] + self._path)
                else:
                    present = bool(resources.get(key)) and (name != "cpuset" or _cpuset(resources))
                if present:
                    names.append(name)
        return names

    def binds(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(mounts as (name, directory), links as (name, target)) of /sys/fs/cgroup inside the container."""
        by_directory: dict[str, list[str]] = {}
        for name, directory in self._controllers.items():
            by_directory.setdefault(directory, []).append(name)
        mounts: list[tuple[str, str]] = []
        links: list[tuple[str, str]] = []
        for directory, names in by_directory.items():
            top = os.path.basename(directory[: -len(self._path)])
            mounts.append((top, directory))
            links.extend((name, top) for name in names if name != top)
        return mounts, links

    def create(self, resources: Mapping[str, Any]) -> None:
        made = []
        try:
            for path in self.directories:
                if make(path):
                    made.append(path)
            self.apply(resources, fresh=True)
        except BaseException:
            for path in made:
                try:
                    os.rmdir(path)
                except OSError:
                    continue
            raise

    def _join(self, name: str) -> str:
        """The group of a controller; one that is needed only now is made, and the container's processes move into it."""
        found = self._controllers.get(name)
        if found is not None:
            return found
        if name not in self._layout.v1:
            raise OSError(errno.ENOENT, f"cgroup controller {name} is not mounted here", name)
        path = self._layout.v1[name] + self._path
        if make(path) and name == "cpuset":
            _inherit_cpuset(path, self._layout.v1[name])
        for pid in self.pids():
            try:
                write(f"{path}/cgroup.procs", str(pid))
            except ProcessLookupError:
                continue
        self._controllers[name] = path
        self.directories = tuple(dict.fromkeys(self._controllers.values()))
        return path

    def apply(self, resources: Mapping[str, Any], *, fresh: bool = False) -> None:
        self._devices(resources.get("devices") or (), fresh)
        if memory := resources.get("memory"):
            self._memory(memory)
        if cpu := resources.get("cpu"):
            self._cpu(cpu)
        pids = resources.get("pids") or {}
        if pids.get("limit"):
            limit = int(pids["limit"])
            write(f"{self._join('pids')}/pids.max", str(limit) if limit > 0 else "max")
        if block := resources.get("blockIO"):
            self._blkio(block)
        for entry in resources.get("hugepageLimits") or ():
            write(f"{self._join('hugetlb')}/hugetlb.{entry['pageSize']}.limit_in_bytes", str(entry["limit"]))

    def _devices(self, rules: Any, fresh: bool) -> None:
        if not rules:
            return
        if fresh and len(rules) == 1 and rules[0].get("allow") and not rules[0].get("type"):
            return  # a new group allows what its parent does
        path = self._join("devices")  # or an error: without it the container could make and use the node of any device
        files = {
            allow: os.open(f"{path}/devices.{name}", os.O_WRONLY | os.O_CLOEXEC)
            for allow, name in ((True, "allow"), (False, "deny"))
        }
        try:
            for allow, line in device_lines(rules):
                os.write(files[allow], line.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{path}/devices: {line}") from None
        finally:
            for fd in files.values():
                os.close(fd)

    def _memory(self, memory: Mapping[str, Any]) -> None:
        """The limit on memory and swap together must never be below that on memory: which of them comes first depends."""
        path = self._join("memory")
        limit, swap = memory.get("limit"), memory.get("swap")
        writes = []
        if limit:
            writes.append(("memory.limit_in_bytes", limit))
        if swap and os.path.exists(f"{path}/memory.memsw.limit_in_bytes"):
            writes.append(("memory.memsw.limit_in_bytes", swap))
            now = number(f"{path}/memory.memsw.limit_in_bytes") or _UNLIMITED
            if limit and (limit < 0 or limit > now):
                writes.reverse()
        if memory.get("reservation"):
            writes.append(("memory.soft_limit_in_bytes", memory["reservation"]))
        if memory.get("swappiness") is not None:
            writes.append(("memory.swappiness", memory["swappiness"]))
        if memory.get("disableOOMKiller"):
            writes.append(("memory.oom_control", 1))
        for name, value in writes:
            write(f"{path}/{name}", str(value))

    def _cpu(self, cpu: Mapping[str, Any]) -> None:
        if any(
            cpu.get(key) for key in ("shares", "period", "quota", "realtimeRuntime", "realtimePeriod", "idle", "burst")
        ):
            path = self._join("cpu")
            for key, name in (
                ("shares", "cpu.shares"), ("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"), ("burst", "cpu.cfs_burst_us"),
                ("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us"), ("idle", "cpu.idle"),
            ):  # fmt: skip
                if cpu.get(key):
                    write(f"{path}/{name}", str(cpu[key]))
        if cpu.get("cpus") or cpu.get("mems"):
            path = self._join("cpuset")
            _inherit_cpuset(path, self._layout.v1["cpuset"])
            for key in ("cpus", "mems"):
                if cpu.get(key):
                    write(f"{path}/cpuset.{key}", str(cpu[key]))

    def _blkio(self, block: Mapping[str, Any]) -> None:
        path = self._join("blkio")
        if block.get("weight"):
            name = "blkio.bfq.weight" if os.path.exists(f"{path}/blkio.bfq.weight") else "blkio.weight"
            write(f"{path}/{name}", str(block["weight"]))
        for key, name in (
            ("throttleReadBpsDevice", "read_bps_device"), ("throttleWriteBpsDevice", "write_bps_device"),
            ("throttleReadIOPSDevice", "read_iops_device"), ("throttleWriteIOPSDevice", "write_iops_device"),
        ):  # fmt: skip
            for entry in block.get(key) or ():
                write(f"{path}/blkio.throttle.{name}", f"{entry['major']}:{entry['minor']} {entry['rate']}")

    def _one(self) -> str:
        """A directory that lists every process."""
        return self._controllers.get("freezer") or self._controllers.get("pids") or self.directories[0]

    def pids(self) -> tuple[int, ...]:
        return tuple(cgroup.all_pids(self._one()))

    def freeze(self, frozen: bool) -> None:
        path = self._join("freezer") + "/freezer.state"
        wanted = "FROZEN" if frozen else "THAWED"

        def settled() -> bool:
            # a process that was being moved can keep it at FREEZING: writing again has the kernel look again
            write(path, wanted)
            return read(path).strip() == wanted

        until(settled, path)

    def frozen(self) -> bool:
        path = self._controllers.get("freezer")
        try:
            return path is not None and read(f"{path}/freezer.state").strip() != "THAWED"
        except OSError:
            return False

    def kill(self, signal: int) -> None:
        """Frozen first, so that nothing is born meanwhile and no pid is used again; then each, then thawed to die."""
        was_frozen = self.frozen()
        try:
            self.freeze(True)
        except OSError:
            if self._gone():
                return
        try:
            for pid in self.pids():
                try:
                    fd = pidfd.open(pid)
                except ProcessLookupError:
                    continue
                try:
                    pidfd.send_signal(fd, signal)
                except ProcessLookupError:
                    continue
                finally:
                    os.close(fd)
        finally:
            if not was_frozen or signal == _SIGKILL:
                try:
                    self.freeze(False)
                except OSError:
                    if not self._gone():  # all have ended, and whoever was told of it was quicker
                        raise

    def _gone(self) -> bool:
        return not os.path.isdir(self._one())

    def stats(self) -> dict[str, int]:
        result: dict[str, int | None] = {}
        if memory := self._controllers.get("memory"):
            result["memory.current"] = number(f"{memory}/memory.usage_in_bytes")
            result["memory.peak"] = number(f"{memory}/memory.max_usage_in_bytes")
            limit = number(f"{memory}/memory.limit_in_bytes")
            result["memory.max"] = limit if limit is not None and limit < _UNLIMITED else None
            detail = keyed(f"{memory}/memory.stat")
            result["memory.stat.inactive_file"] = detail.get("total_inactive_file")
            result["memory.stat.anon"] = detail.get("total_rss")
            result["memory.stat.file"] = detail.get("total_cache")
            result["memory.events.oom_kill"] = self.oom_kills()
        if cpuacct := self._controllers.get("cpuacct"):
            usage = number(f"{cpuacct}/cpuacct.usage")
            result["cpu.usage_usec"] = usage // 1000 if usage is not None else None
            ticks = os.sysconf("SC_CLK_TCK")
            for key, value in keyed(f"{cpuacct}/cpuacct.stat").items():
                result[f"cpu.{key}_usec"] = value * 1_000_000 // ticks
        if cpu := self._controllers.get("cpu"):
            for key, value in keyed(f"{cpu}/cpu.stat").items():
                name, divisor = ("throttled_usec", 1000) if key == "throttled_time" else (key, 1)
                result[f"cpu.{name}"] = value // divisor
        if pids := self._controllers.get("pids"):
            result["pids.current"] = number(f"{pids}/pids.current")
            result["pids.max"] = number(f"{pids}/pids.max")
        result.update(self._transferred())
        return {key: value for key, value in result.items() if value is not None}

    def _transferred(self) -> dict[str, int]:
        if blkio := self._controllers.get("blkio"):
            with suppress(OSError):
                return counters.of_blkio(read(f"{blkio}/blkio.throttle.io_service_bytes_recursive"))
        return counters.of_processes(self.pids())

    def oom_kills(self) -> int:
        memory = self._controllers.get("memory")
        return keyed(f"{memory}/memory.oom_control").get("oom_kill", 0) if memory else 0


def _cpuset(resources: Mapping[str, Any]) -> bool:
    cpu = resources.get("cpu") or {}
    return bool(cpu.get("cpus") or cpu.get("mems"))


def _inherit_cpuset(path: str, top: str) -> None:
    """A new cpuset is empty and takes nobody: its parent's values are copied, from the top down."""
    if path == top:
        return
    parent = os.path.dirname(path)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(f"{path}/{name}").strip():
            _inherit_cpuset(parent, top)
            write(f"{path}/{name}", read(f"{parent}/{name}").strip())


def device_lines(rules: Any) -> list[tuple[bool, str]]:
    """(allow, "c 1:3 rwm") of OCI device rules, in order; missing numbers are wildcards, "a" stands alone."""
    lines = []
    for rule in rules:
        kind = rule.get("type") or "a"
        if kind == "a":
            lines.append((bool(rule.get("allow")), "a"))
            continue
        major, minor = rule.get("major"), rule.get("minor")
        numbers = f"{'*' if major in (None, -1) else int(major)}:{'*' if minor in (None, -1) else int(minor)}"
        lines.append((bool(rule.get("allow")), f"{kind} {numbers} {rule.get('access') or 'rwm'}"))
    return lines
