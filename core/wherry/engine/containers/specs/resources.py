"""Limits, devices and sysctls of a container: the OCI ``linux.resources``, ``linux.devices`` and ``linux.sysctl``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from wherry.api import Invalid, NotFound, RunRequest
from wherry.engine.containers.specs.profile import ALLOWED_NODES, DENIED_NODES, NET_SYSCTLS

CPU_PERIOD = 100_000
MIN_MEMORY = 6 << 20  # Docker's: below it the start itself is killed
_SYSCTL = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*\Z")
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"]
)
_CPUSET = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z")
_SKIPPED_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"})


def limits(request: RunRequest) -> dict[str, Any]:
    """memory, cpu and pids of the OCI ``linux.resources``; what is 0 in the request is left out. Invalid for nonsense."""
    resources: dict[str, Any] = {}
    if request.memory:
        if request.memory < MIN_MEMORY:
            raise Invalid(f"memory limit {request.memory}", f"less than {MIN_MEMORY} bytes (6m)")
        if 0 < request.memory_swap < request.memory:
            raise Invalid(f"memory swap limit {request.memory_swap}", "less than the memory limit: it counts both")
        # Without a word on swap as much swap as memory is allowed, which makes the sum the double.
        resources["memory"] = {"limit": request.memory, "swap": request.memory_swap or 2 * request.memory}
    elif request.memory_swap > 0:
        raise Invalid("memory swap limit", "set without a memory limit", "add --memory")
    if request.memory_reservation:
        if request.memory_reservation < 0 or 0 < request.memory < request.memory_reservation:
            raise Invalid(f"memory reservation {request.memory_reservation}", "negative, or more than the memory limit")
        resources.setdefault("memory", {})["reservation"] = request.memory_reservation
    cpu: dict[str, Any] = {}
    if request.cpus:
        count = os.cpu_count() or 1
        if not 0.01 <= request.cpus <= count:
            raise Invalid(f"cpus {request.cpus:g}", f"not between 0.01 and {count}, the number of CPUs here")
        cpu["quota"], cpu["period"] = int(request.cpus * CPU_PERIOD), CPU_PERIOD
    if request.cpu_shares:
        if request.cpu_shares < 0:
            raise Invalid(f"cpu shares {request.cpu_shares}", "negative")
        cpu["shares"] = request.cpu_shares
    if request.cpuset:
        cpu["cpus"] = _cpuset(request.cpuset)
    if cpu:
        resources["cpu"] = cpu
    if request.pids_limit > 0:
        resources["pids"] = {"limit": request.pids_limit}
    elif request.pids_limit < -1:
        raise Invalid(f"pids limit {request.pids_limit}", "negative")
    return resources


def _cpuset(text: str) -> str:
    """A list of CPUs that there are, as it is. Invalid for another."""
    if not _CPUSET.match(text):
        raise Invalid(f'cpuset "{text}"', "not a list such as 0-2,4")
    last = os.sysconf("SC_NPROCESSORS_CONF") - 1
    for part in text.split(","):
        low, _, high = part.partition("-")
        if int(high or low) > last:
            raise Invalid(f'cpuset "{text}"', f"there is no CPU {high or low} here, the last is {last}")
        if high and int(low) > int(high):
            raise Invalid(f'cpuset "{text}"', f"{part} ends before it begins")
    return text


def _rule(
    allow: bool, kind: str = "", node: tuple[int, int | None] | None = None, access: str = "rwm"
) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": allow, "access": access}
    if kind:
        rule["type"] = kind
    if node is not None:
        rule["major"] = node[0]
        if node[1] is not None:
            rule["minor"] = node[1]
    return rule


@cache
def _default_rules() -> tuple[dict[str, Any], ...]:
    return (
        _rule(False),
        _rule(True, "c", access="m"),
        _rule(True, "b", access="m"),
        *(_rule(True, "c", node) for node in ALLOWED_NODES),
        *(_rule(False, "c", node) for node in DENIED_NODES),
    )


def _node(host: Path, inside: str) -> dict[str, Any]:
    status = host.stat()
    return {
        "path": inside,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _is_node(path: Path) -> bool:
    try:
        return stat.S_IFMT(path.stat().st_mode) in (stat.S_IFCHR, stat.S_IFBLK)
    except OSError:
        return False


def _below(host: Path) -> Iterable[Path]:
    for directory, names, files in os.walk(host):
        names[:] = [name for name in names if name not in _SKIPPED_DEVICES]
        for name in files:
            path = Path(directory, name)
            if name not in _SKIPPED_DEVICES and not path.is_symlink() and _is_node(path):
                yield path


def devices(wished: Iterable[str], *, privileged: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(linux.devices, rules of the device cgroup). A wish is "/dev/x[:/dev/y][:rwm]"; a directory stands for its nodes."""
    found: dict[str, dict[str, Any]] = {}
    rules = [_rule(True)] if privileged else list(_default_rules())
    if privileged:
        found.update((str(path), _node(path, str(path))) for path in _below(Path("/dev")))
    for wish in wished:
        host_text, inside, access = _parse_device(wish)
        host = Path(host_text)
        if not host.exists():
            raise NotFound(f'device "{host_text}"', "no such file on the host")
        if host.is_dir():
            pairs = [(path, inside + str(path)[len(host_text.rstrip("/")) :]) for path in _below(host)]
        elif _is_node(host):
            pairs = [(host, inside)]
        else:
            raise Invalid(f'device "{host_text}"', "not a device node")
        for path, target in pairs:
            node = found[target] = _node(path, target)
            if not privileged:
                rules.append(_rule(True, node["type"], (node["major"], node["minor"]), access))
    return list(found.values()), rules


def _parse_device(wish: str) -> tuple[str, str, str]:
    parts = wish.split(":")
    access = "rwm"
    if len(parts) > 1 and parts[-1] and set(parts[-1]) <= set("rwm"):
        access = parts.pop()
    if not 1 <= len(parts) <= 2 or not all(part.startswith("/") for part in parts):
        raise Invalid(f'device "{wish}"', "not /dev/HOST[:/dev/INSIDE][:rwm]")
    return parts[0], parts[-1], access


def sysctls(wished: Mapping[str, str], *, own_network: bool, own_ipc: bool) -> dict[str, str]:
    """linux.sysctl: the defaults and the request's, which must belong to a namespace of the container (CVE-2022-0811)."""
    chosen = dict(NET_SYSCTLS) if own_network else {}
    for name, value in wished.items():
        if not _SYSCTL.match(name) or ".." in name or "\n" in value or "\0" in value:
            raise Invalid(f'sysctl "{name}"', "not a name such as net.core.somaxconn, or a value with a line break")
        if name.startswith("net."):
            if not own_network:
                raise Invalid(f'sysctl "{name}"', "would change another network namespace than the container's own")
        elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            if not own_ipc:
                raise Invalid(f'sysctl "{name}"', "would change another IPC namespace than the container's own")
        else:
            raise Invalid(f'sysctl "{name}"', "does not belong to a namespace: it would change the host")
        chosen[name] = value
    return chosen
