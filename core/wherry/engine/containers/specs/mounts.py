"""The mounts of a container: the default ones, the three files under /etc, and what the user asks for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from wherry.api import Bind, FailedPrecondition, Invalid, Mount, NotFound, RunRequest
from wherry.engine.containers.specs.profile import MOUNTS

if TYPE_CHECKING:
    from wherry.engine.containers.records import MountedVolume

#: The files below /proc that a user may mount over (runc, libcontainer/rootfs_linux.go, checkProcMount).
_PROC_FILES = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "sys/kernel/ns_last_pid",
    )
)
_OPPOSITE = {"exec": "noexec", "suid": "nosuid", "dev": "nodev"}
_PROPAGATION = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"})
_WRITABLE = "writable"
_RELABEL = frozenset({"z", "Z"})
INIT_TARGET = "/sbin/docker-init"
INIT_PROGRAMS = (
    "/usr/bin/tini-static",
    "/usr/libexec/docker/docker-init",
    "/usr/bin/docker-init",
    "/usr/sbin/docker-init",
    "/usr/libexec/podman/catatonit",
    "/usr/bin/catatonit",
)


def clean_target(text: str) -> str:
    """A mount point: absolute, normalised, not the root. Invalid otherwise, and below /proc (CVE-2019-16884)."""
    if not text.startswith("/") or "\0" in text:
        raise Invalid(f'mount target "{text}"', "not an absolute path")
    target = posixpath.normpath("/" + text.lstrip("/"))
    if target == "/":
        raise Invalid(f'mount target "{text}"', "is the root of the container")
    if (target == "/proc" or target.startswith("/proc/")) and target not in _PROC_FILES:
        raise Invalid(f'mount target "{text}"', "nothing may be mounted over /proc")
    return target


def _read_only(options: Sequence[str]) -> list[str]:
    """For all that is mounted below as well, as docker has it, unless that shall stay "writable"."""
    deep = "rbind" in options and _WRITABLE not in options
    return ["rro" if deep and option == "ro" else option for option in options if option != _WRITABLE]


def _bind(wish: Bind, target: str) -> dict[str, Any]:
    source = Path(wish.source)
    if not source.is_absolute() or "\0" in wish.source:
        raise Invalid(f'bind source "{wish.source}"', "not an absolute path", "name a volume, or start it with / or ./")
    if not source.exists():
        if not wish.create:
            raise NotFound(f'bind source "{wish.source}"', "no such file or directory on the host", "make it first")
        source.mkdir(parents=True, exist_ok=True)
    options = [option for option in wish.options if option not in _RELABEL]
    if "bind" not in options and "rbind" not in options:
        options.insert(0, "rbind")
    options = _read_only(options)
    if not _PROPAGATION.intersection(options):
        options.append("rprivate")
    return {"destination": target, "type": "bind", "source": str(source), "options": options}


def _tmpfs(wish: Bind, target: str) -> dict[str, Any]:
    asked = [option for option in wish.options if option != "rw"]
    base = [flag for word, flag in _OPPOSITE.items() if word not in asked and flag not in asked]
    options = [*sorted(base), *(option for option in asked if option not in _OPPOSITE)]
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}


def with_volumes(request: RunRequest, uses: Sequence[MountedVolume], *, own_ids: bool = False) -> RunRequest:
    """The request with the volumes that its container has, those of the image too. own_ids: in a user namespace of its own, to which
    they show their ids as they are on disk."""
    if not uses:
        return request
    more = ("idmap",) if own_ids else ()
    others = tuple(wish for wish in request.mounts if wish.type != "volume")
    volumes = tuple(Bind("volume", use.name, use.target, (*use.options, *more)) for use in uses)
    return attrs.evolve(request, mounts=others + volumes)


def _volume(wish: Bind, target: str, mounts: Sequence[Mount]) -> list[dict[str, Any]]:
    """What its driver mounts, with what is asked for beside it."""
    if not mounts:
        raise FailedPrecondition(f'volume "{wish.source}"', "its driver gives nothing to mount")
    asked = [option for option in wish.options if option not in _RELABEL and option != "nocopy"]
    found = []
    for mount in mounts:
        options = _read_only([*mount.options, *(option for option in asked if option not in mount.options)])
        if mount.type == "bind" and not _PROPAGATION.intersection(options):
            options.append("rprivate")
        destination = posixpath.join(target, mount.target) if mount.target else target
        found.append({"destination": destination, "type": mount.type, "source": mount.source, "options": options})
    return found


def user_mounts(wishes: Iterable[Bind], volumes: Mapping[str, Sequence[Mount]] = {}) -> list[dict[str, Any]]:
    """OCI mounts for what the user asks, outer before inner; volumes: the mounts of each, by its target. Invalid, NotFound."""
    found: dict[str, dict[str, Any]] = {}
    inner: list[dict[str, Any]] = []
    for wish in wishes:
        target = clean_target(wish.target)
        if target in found:
            raise Invalid(f'mount target "{wish.target}"', "named twice")
        if wish.type == "bind":
            found[target] = _bind(wish, target)
        elif wish.type == "tmpfs":
            found[target] = _tmpfs(wish, target)
        else:
            found[target], *more = _volume(wish, target, volumes.get(wish.target, ()))
            inner += more
    return sorted([*found.values(), *inner], key=lambda mount: str(mount["destination"]).count("/"))


def init_mount() -> dict[str, Any]:
    """The bind of a static init program. FailedPrecondition when the host has none."""
    for program in INIT_PROGRAMS:
        if Path(program).exists():
            return {
                "destination": INIT_TARGET,
                "type": "bind",
                "source": program,
                "options": ["bind", "ro", "rprivate"],
            }
    raise FailedPrecondition(
        "init",
        "no static init program on this host",
        "install the package tini, or tini-static where that is one of its own",
    )


def all_mounts(
    request: RunRequest, files: Path | None, volumes: Mapping[str, Sequence[Mount]] = {}
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(OCI mounts, owners of those that are not defaults by index). A wish replaces the default with the same target.

    files is the directory with resolv.conf, hostname and hosts.
    """
    wished = user_mounts(request.mounts, volumes)
    taken = {mount["destination"] for mount in wished}
    result: list[dict[str, Any]] = []
    for default in MOUNTS:
        if default["destination"] in taken:
            continue
        mount = dict(default)
        if mount["source"] == "shm":
            mount["options"] = [*mount["options"], f"size={request.shm_size}"]
        elif request.privileged and mount["type"] in ("sysfs", "cgroup"):
            mount["options"] = [option for option in mount["options"] if option != "ro"] + ["rw"]
        result.append(mount)
    if files is not None:
        # The engine writes them by another mount, so these can be as the root is.
        options = ["rbind", "rprivate", *(("ro",) if request.read_only else ())]
        result.extend(
            {"destination": target, "type": "bind", "source": str(files / name), "options": list(options)}
            for name in ("resolv.conf", "hostname", "hosts")
            if (target := "/etc/" + name) not in taken
        )
    owners = {}
    if request.init:
        owners[f"/mounts/{len(result)}"] = "request"
        result.append(init_mount())
    for mount in wished:
        owners[f"/mounts/{len(result)}"] = "request"
        result.append(mount)
    return result, owners
