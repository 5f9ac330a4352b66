"""The mounts of a container as steps: host sources to open first, the root, and what is placed in it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from wherry.linux import mount as linux_mount
from wherry.linux.fuse import PREFIX
from wherry.oci import steps as s
from wherry.oci.errors import SpecError
from wherry.oci.options import MountOptions


class IdMapLike(Protocol):
    """As wherry.api.IdMap."""

    @property
    def uids(self) -> tuple[tuple[int, int, int], ...]: ...
    @property
    def gids(self) -> tuple[tuple[int, int, int], ...]: ...


class MountLike(Protocol):
    """As wherry.api.Mount."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def idmap(self) -> IdMapLike: ...


class HostFacts:
    """What compiling needs to know of the host and the driver's choices.

    sandboxed: the sandbox lends network, ipc and uts, and its user namespace where the spec wants one; else the plan
    makes its own. unified: cgroup v2. cgroup_binds: on v1, (name below /sys/fs/cgroup, host directory) to show inside;
    cgroup_links: (link, target) beside them. filter: BPF and seccomp(2) flags, None for no filter.
    spawns: whether posix_spawn(3) is known to go under that filter. apparmor: whether it is on.
    confined: the shim is in a user namespace of its own, in which no device node can be made. gids: (inside, outside, size) of the
    groups that there are then, empty for all.
    """

    __slots__ = (
        "apparmor",
        "cgroup_binds",
        "cgroup_links",
        "confined",
        "filter",
        "gids",
        "sandboxed",
        "spawns",
        "unified",
    )

    def __init__(
        self,
        *,
        sandboxed: bool = True,
        unified: bool = False,
        cgroup_binds: Sequence[tuple[str, str]] = (),
        cgroup_links: Sequence[tuple[str, str]] = (),
        filter: tuple[bytes, int] | None = None,
        spawns: bool = False,
        apparmor: bool = False,
        confined: bool = False,
        gids: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.sandboxed = sandboxed
        self.unified = unified
        self.cgroup_binds = cgroup_binds
        self.cgroup_links = cgroup_links
        self.filter = filter
        self.spawns = spawns
        self.apparmor = apparmor
        self.confined = confined
        self.gids = gids


class MountTree:
    """Collects the sources to open first and the mounts to place after the root."""

    def __init__(self, user_namespace: bool) -> None:
        self.sources: list[s.Step] = []
        self.placed: list[s.Step] = []
        self.user_namespace = user_namespace
        self.dev_is_ours = False
        self._slot = 0

    def slot(self) -> int:
        self._slot += 1
        return self._slot - 1

    def root(self, entry: MountLike) -> s.Step:
        """The source of the root; answers the step that places it."""
        options = MountOptions(entry.options)
        slot = self.slot()
        if entry.type == "overlay":
            lowers: list[str] = []
            data: list[s.Option] = [("source", "overlay")]
            for key, value in options.data:
                if key == "lowerdir" and value is not None:
                    lowers.extend(_split_lowers(value))
                else:
                    data.append((key, value))
            uids, gids = entry.idmap.uids, entry.idmap.gids
            if uids or gids:
                self.sources.append(s.MappedOverlay(slot, lowers, data, options.attributes, uids, gids))
            else:
                self.sources.append(s.Overlay(slot, lowers, data, options.attributes))
            return s.Root(slot, 0, 0)
        if entry.type in ("bind", "none", ""):
            self.sources.append(s.Source(slot, entry.source, options.recursive, entry.idmap.uids, entry.idmap.gids))
            return s.Root(slot, options.set, options.clear & ~linux_mount.ATTR_RDONLY)
        if entry.type.startswith(PREFIX):
            self.sources.append(s.ReceivedMount(slot))
            return s.Root(slot, options.set, 0)
        self.sources.append(
            s.Filesystem(slot, entry.type, [("source", entry.source), *options.data], options.attributes)
        )
        return s.Root(slot, 0, 0)

    def bind(self, source: str, path: str, options: MountOptions, uids: Any = (), gids: Any = ()) -> None:
        slot = self.slot()
        self.sources.append(s.Source(slot, source, options.recursive, uids, gids, self._propagation(options)))
        clear = options.clear & ~linux_mount.ATTR_RDONLY
        if options.recursive_set or options.recursive_clear:
            wanted, unwanted = options.recursive_set | options.set, options.recursive_clear | clear
            self.placed.append(s.Bind(slot, path, wanted, unwanted, 1))
        else:
            self.placed.append(s.Bind(slot, path, options.set, clear, 0))

    def _propagation(self, options: MountOptions) -> int:
        """Private unless the user asks. The root of a user namespace mounts nothing on the host, whoever asks: there a shared bind is a
        slave with peers of its own, as the kernel has it in less privileged mount namespaces (mount_namespaces(7))."""
        kind = (options.propagation & ~linux_mount.MS_REC) or linux_mount.MS_PRIVATE
        if kind == linux_mount.MS_SHARED and self.user_namespace:
            kind |= linux_mount.MS_SLAVE
        return kind

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        """The host's node of a device, where none can be made."""
        slot = self.slot()
        self.sources.append(s.DeviceSource(slot, path, mode, major, minor))
        self.placed.append(s.Bind(slot, path, 0, 0, 0))

    def add(self, entry: Mapping[str, Any], host: HostFacts, own: Mapping[str, str]) -> None:
        """One entry of spec.mounts."""
        path, kind = str(entry.get("destination", "")), str(entry.get("type") or "")
        if not path.startswith("/"):
            path = "/" + path
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in path:
            raise SpecError(f'mount "{path}"', "a target may hold no .. and no zero byte")
        path = "/" + "/".join(parts)
        if path == "/":
            raise SpecError("mount '/'", "the root is not to be mounted over")
        options = MountOptions(entry.get("options") or ())
        source = str(entry.get("source") or kind)
        if kind in ("bind", "none", "") or options.bind:
            uids, gids = ([id_map(row) for row in entry.get(key) or ()] for key in ("uidMappings", "gidMappings"))
            self.bind(source, path, options, uids, gids)
        elif kind == "cgroup":
            self.cgroup(path, options, host)
        elif kind == "sysfs" and self.user_namespace and "network" not in own:
            # sysfs belongs to the network namespace's owner, which is the host here
            options.recursive = True
            self.bind("/sys", path, options)
        else:
            if path == "/dev":
                self.dev_is_ours = True
            if host.gids:
                options.data = [entry for entry in options.data if entry[0] != "gid" or _held(entry[1], host.gids)]
            self.placed.append(
                s.MountNew(path, kind, [("source", source), *options.data], options.attributes, options.propagation)
            )

    def cgroup(self, path: str, options: MountOptions, host: HostFacts) -> None:
        """v2: the own subtree by the cgroup namespace. v1: a tmpfs that shows the container's own group of each hierarchy."""
        if host.unified:
            self.placed.append(
                s.MountNew(path, "cgroup2", [("source", "cgroup")], options.attributes, options.propagation)
            )
            return
        data: list[s.Option] = [("source", "tmpfs"), ("mode", "755")]
        self.placed.append(
            s.MountNew(path, "tmpfs", data, options.attributes & ~linux_mount.ATTR_RDONLY, options.propagation)
        )
        for name, directory in host.cgroup_binds:
            self.bind(directory, f"{path}/{name}", options)
        for link, target in host.cgroup_links:
            self.placed.append(s.Link(target, f"{path}/{link}"))
        if options.set & linux_mount.ATTR_RDONLY:
            self.placed.append(s.Remount(path, linux_mount.ATTR_RDONLY, 0))


def _held(gid: str | None, ranges: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a group is one that there is; what is no number is the kernel's to refuse."""
    if not gid or not gid.isdecimal():
        return True
    return any(first <= int(gid) < first + size for first, _outside, size in ranges)


def _split_lowers(text: str) -> list[str]:
    """lowerdir's layers: parted by colons, a backslash keeps the next character (overlayfs.rst)."""
    result, current, index = [], "", 0
    while index < len(text):
        mark = text[index]
        if mark == "\\" and index + 1 < len(text):
            index += 1
            current += text[index]
        elif mark == ":":
            result.append(current)
            current = ""
        else:
            current += mark
        index += 1
    return [part for part in (*result, current) if part]


def id_map(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    row = tuple(entry.get(key) for key in ("containerID", "hostID", "size"))
    if not all(isinstance(number, int) and 0 <= number < 1 << 32 for number in row) or not row[2]:
        raise SpecError(f"id mapping {dict(entry)!r}", "not three numbers, the last above 0")
    return row  # type: ignore[return-value]  # three ints, as checked
