"""From an OCI spec to a plan: the order of steps in which a container comes to be, or one more process enters it.

Pure: nothing is opened or changed. The driver resolves what depends on the host (cgroup directories, the filter's BPF) and hands it
in. Raises SpecError for a spec that can never work.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.linux import mount as linux_mount
from wherry.linux import namespaces as ns
from wherry.oci import spec as reading
from wherry.oci import steps as s
from wherry.oci.errors import SpecError
from wherry.oci.options import propagation
from wherry.oci.tree import HostFacts, MountLike, MountTree, id_map

__all__ = ["Compiled", "HostFacts", "container", "exec", "id_maps"]

_PTRACE = "CAP_SYS_PTRACE"
_NOFILE = 7  # RLIMIT_NOFILE
#: With RLIMIT_FSIZE, RLIMIT_CORE and RLIMIT_MEMLOCK: what needs memory or a process goes on under them.
_HARMLESS_LIMITS = {1, 4, _NOFILE, 8}
#: So many descriptors are enough for a process that has another one spawned: for its pidfd, and for all that it passes on.
_ROOM = 256
#: Containers that may have fewer processes than these are often a single one short of it.
_FEW = 64
_SHARED_TYPES = {"network": "net", "ipc": "ipc", "uts": "uts"}


class Compiled:
    """A plan's parts, as wherry.api.Plan names them."""

    __slots__ = ("argv", "env", "flags", "hooks", "idmap", "join", "steps")

    def __init__(self, process: Mapping[str, Any]) -> None:
        argv = process.get("args")
        if (
            not isinstance(argv, (list, tuple))
            or not argv
            or not all(isinstance(word, str) for word in argv)
            or not argv[0]
        ):
            raise SpecError("process.args", "no command to run")
        env = process.get("env") or []
        for text in (*argv, *env):
            if "\0" in text:
                raise SpecError("process", "a zero byte in an argument or variable")
        self.argv: tuple[str, ...] = tuple(argv)
        # without "=" a variable would be taken from whoever runs the command next (CVE-2026-57231)
        self.env: tuple[str, ...] = tuple(entry for entry in env if "=" in entry[1:])
        self.flags = 0
        self.join: list[str] = []
        self.idmap: tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]] = ((), ())
        self.steps: list[s.Step] = []
        self.hooks: dict[str, Any] = {}


def _namespaces(spec: Mapping[str, Any]) -> dict[str, str]:
    """type -> nsfs path, "" for a new one."""
    found: dict[str, str] = {}
    for entry in (spec.get("linux") or {}).get("namespaces") or ():
        kind = str(entry.get("type", ""))
        if kind not in ns.TYPES:
            raise SpecError(f'namespace "{kind}"', "no such type", "one of " + ", ".join(ns.TYPES))
        if kind in found:
            raise SpecError(f'namespace "{kind}"', "named twice")
        path = str(entry.get("path") or "")
        if path and (not path.startswith("/") or len(path) > 4095):
            raise SpecError(f'namespace "{kind}"', "its path is not absolute, or too long")
        found[kind] = path
    return found


def _unsupported(spec: Mapping[str, Any]) -> None:
    """Fields that would be silently weaker if they were ignored."""
    linux, process = spec.get("linux") or {}, spec.get("process") or {}
    for where, name in (
        (linux, "intelRdt"), (linux, "personality"), (linux, "memoryPolicy"), (process, "selinuxLabel"), (process, "scheduler"),
        (process, "ioPriority"), (process, "execCPUAffinity"),
    ):  # fmt: skip
        if where.get(name):
            raise SpecError(f'spec field "{name}"', "not supported by this isolation driver")


def id_maps(spec: Mapping[str, Any]) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]]:
    """linux.uidMappings and gidMappings; SpecError where two of one kind overlap."""
    linux = spec.get("linux") or {}
    result = []
    for key in ("uidMappings", "gidMappings"):
        rows = tuple(id_map(row) for row in linux.get(key) or ())
        for column in (0, 1):
            ranges = sorted((row[column], row[column] + row[2]) for row in rows)
            if any(first[1] > second[0] for first, second in itertools.pairwise(ranges)):
                raise SpecError(f"linux.{key}", "two ranges overlap")
        result.append(rows)
    return result[0], result[1]


def container(
    id: str, spec: Mapping[str, Any], rootfs: Sequence[MountLike], host: HostFacts, *, bundle: str = ""
) -> Compiled:
    """The plan of a container's first process. rootfs: the first mount with an empty target is the root."""
    _unsupported(spec)
    process, linux = spec.get("process") or {}, spec.get("linux") or {}
    result = Compiled(process)
    own = _namespaces(spec)
    if own.get("mount", "-"):
        raise SpecError('namespace "mount"', "a container needs a new one of its own")
    tree = MountTree("user" in own or host.confined)
    roots = [entry for entry in rootfs if not entry.target.strip("/")]
    if len(roots) != 1:
        raise SpecError("root mounts", f"{len(roots)} mounts for the root, not one")
    place_root = tree.root(roots[0])
    for entry in rootfs:
        if entry.target.strip("/"):
            mounted = {
                "destination": "/" + entry.target,
                "type": entry.type,
                "source": entry.source,
                "options": entry.options,
            }
            tree.add(mounted, host, own)
    for mount in spec.get("mounts") or ():
        tree.add(mount, host, own)
    extra = reading.devices(linux.get("devices") or ())
    nodes = _devices(tree, extra)

    add = result.steps.append
    add(s.Cgroup())
    if process.get("oomScoreAdj") is not None:
        add(s.OomScore(_number(process["oomScoreAdj"], -1000, 1000, "oomScoreAdj")))
    result.steps += tree.sources
    if "user" in own and (limits := reading.rlimits(process)):
        add(s.Rlimits(limits))  # raising one needs the host's CAP_SYS_RESOURCE
    _join(result, own, host, spec)
    add(s.Setsid())
    if spec.get("hostname") and "uts" in own:
        add(s.Hostname(spec["hostname"]))
    if spec.get("domainname") and "uts" in own:
        add(s.Domainname(spec["domainname"]))
    wanted = linux.get("rootfsPropagation") or ""
    try:
        flags = propagation(wanted) if wanted else 0
    except KeyError:
        raise SpecError(f'rootfsPropagation "{wanted}"', "no such propagation") from None
    # whatever is wished for the container's own mounts comes with the change of root: until then the tree is the host's, and in a
    # shared one the container's root would be mounted over the host's as well
    add(s.Propagation(linux_mount.MS_SLAVE))
    add(place_root)
    if any(account := reading.account(spec)):
        add(s.Account(*account))
    result.steps += tree.placed
    if nodes:
        add(s.Devices(nodes))
    if tree.dev_is_ours:
        add(s.Links(reading.DEFAULT_LINKS))
    cwd = _cwd(process)
    if cwd != "/":
        add(s.Directory(cwd))
    add(s.User(*reading.user(process)))
    _early_hooks(result, id, bundle, spec)
    if values := reading.sysctls(linux.get("sysctl") or {}, own):
        add(s.Sysctl(values))
    if masked := linux.get("maskedPaths"):
        add(s.Mask(list(masked)))
    if readonly := linux.get("readonlyPaths"):
        add(s.ReadOnly(list(readonly)))
    if process.get("terminal"):
        add(s.Console(*_size(process), 1))
    add(s.OwnStdio())
    if (spec.get("root") or {}).get("readonly"):
        add(s.Remount("/", linux_mount.ATTR_RDONLY, 0))
    add(s.Pivot(flags))
    _tail(result, id, spec, process, host, bundle)
    return result


def _join(result: Compiled, own: Mapping[str, str], host: HostFacts, spec: Mapping[str, Any]) -> None:
    """Flags of the clone, namespaces to join, and those that are made after them."""
    lent = [_SHARED_TYPES[kind] for kind, path in own.items() if host.sandboxed and kind in _SHARED_TYPES and not path]
    late = 0
    for kind, path in own.items():
        flag = ns.TYPES[kind][0]
        if path:
            result.join.append(path)
            if kind not in ("user", "pid"):
                lent.append(f"path/{len(result.join) - 1}")
        elif kind == "cgroup":
            late |= flag
        elif kind not in ("time", "user") and not (host.sandboxed and kind in _SHARED_TYPES):
            result.flags |= flag
    if "user" in own:
        if not own["user"]:
            result.idmap = id_maps(spec)
        result.steps.append(s.UserNamespace())
    if lent:
        result.steps.append(s.Join(lent))
    if late:
        result.steps.append(s.Unshare(late))
    if own.get("time") == "":
        result.steps.append(s.TimeNamespace(_time_offsets(spec)))
    if result.flags & ns.NEWNET:
        result.steps.append(s.Loopback())


def _time_offsets(spec: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    result = []
    for clock, offset in ((spec.get("linux") or {}).get("timeOffsets") or {}).items():
        if clock not in ("monotonic", "boottime"):
            raise SpecError(f'time offset "{clock}"', "no such clock", "monotonic or boottime")
        result.append((clock, int(offset.get("secs") or 0), int(offset.get("nanosecs") or 0)))
    return result


def _devices(
    tree: MountTree, extra: list[tuple[str, int, int, int, int, int]]
) -> list[tuple[str, int, int, int, int, int]]:
    """The nodes to make; in a user namespace, where none can be made, the host's are bound instead."""
    nodes = list(reading.DEFAULT_DEVICES) if tree.dev_is_ours else []
    taken = {node[0] for node in extra}
    nodes = [node for node in nodes if node[0] not in taken] + [node for node in extra if node[0] != "/dev/ptmx"]
    if not tree.user_namespace:
        return nodes
    for name, mode, major, minor, _uid, _gid in nodes:
        tree.device(name, mode, major, minor)
    return []


def _early_hooks(result: Compiled, id: str, bundle: str, spec: Mapping[str, Any]) -> None:
    wanted = spec.get("hooks") or {}
    for moment in ("prestart", "createRuntime", "poststart", "poststop"):
        if wanted.get(moment):
            result.hooks[moment] = [
                {"path": path, "args": argv, "env": env, "timeout": timeout}
                for path, argv, env, timeout in reading.hooks(wanted[moment], moment)
            ]
    if result.hooks:
        result.hooks["state"] = reading.state(id, bundle, spec, "creating")
    if result.hooks.get("createRuntime") or result.hooks.get("prestart"):
        result.steps.append(s.RuntimeHooks())
    if wanted.get("createContainer"):
        listed = reading.hooks(wanted["createContainer"], "createContainer")
        result.steps.append(s.Hooks("createContainer", listed, json.dumps(reading.state(id, bundle, spec, "creating"))))


def _tail(
    result: Compiled,
    id: str,
    spec: Mapping[str, Any],
    process: Mapping[str, Any],
    host: HostFacts,
    bundle: str,
    *,
    hooks: bool = True,
) -> None:
    """From the new root to execve: the same for a container's first process and for one more."""
    add = result.steps.append
    add(s.Keyring(f"_ses.{id}"))
    umask = (process.get("user") or {}).get("umask")
    add(s.Umask(0o022 if umask is None else _number(umask, 0, 0o7777, "umask")))
    add(s.Created())
    if label := process.get("apparmorProfile"):
        if not host.apparmor:
            raise SpecError(f'AppArmor profile "{label}"', "AppArmor is not on here")
        add(s.Label(label))
    if limits := reading.rlimits(process):
        add(s.Rlimits(limits))  # late, since few descriptors or little memory must not stop the steps above
    bounding, effective, permitted, inheritable, ambient = reading.capability_masks(process)
    add(s.Bounding(bounding))
    loaded = s.Filter(base64.b64encode(host.filter[0]).decode(), host.filter[1]) if host.filter else None
    restricted = bool(process.get("noNewPrivileges"))
    if loaded and not restricted:
        add(loaded)  # it needs CAP_SYS_ADMIN, which identity takes away
    add(s.Identity(effective, permitted, inheritable, ambient))
    if restricted:
        add(s.NoNewPrivileges())
        if loaded:
            add(loaded)
    add(s.Signals())
    add(s.Chdir(_cwd(process)))
    if hooks and (wanted := (spec.get("hooks") or {}).get("startContainer")):
        # these programs are the image's: they may do what its own may, no more
        listed = reading.hooks(wanted, "startContainer")
        add(s.Hooks("startContainer", listed, json.dumps(reading.state(id, bundle, spec, "created"))))
    add(s.Execute())


def _cwd(process: Mapping[str, Any]) -> str:
    cwd = process.get("cwd") or "/"
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
        raise SpecError(f'working directory "{cwd}"', "not an absolute path")
    return cwd


def _size(process: Mapping[str, Any]) -> tuple[int, int]:
    size = process.get("consoleSize") or {}
    return _number(size.get("height", 0), 0, 65535, "consoleSize"), _number(
        size.get("width", 0), 0, 65535, "consoleSize"
    )


def _number(value: object, low: int, high: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SpecError(f"{what} {value!r}", f"not between {low} and {high}")
    return value


def _ptrace(spec: Mapping[str, Any]) -> bool:
    """Whether a container's processes may look into others: one that joins must not be seen there while it still is the host's."""
    sets = (spec.get("process") or {}).get("capabilities") or {}
    return _PTRACE in (sets.get("bounding") or ()) or _PTRACE in (sets.get("permitted") or ())


def _pids(spec: Mapping[str, Any]) -> int:
    """How many processes the container may have, 0 for any number."""
    limit = (((spec.get("linux") or {}).get("resources") or {}).get("pids") or {}).get("limit") or 0
    return _number(limit, -1, 1 << 62, "pids.limit")


def _spawned(spec: Mapping[str, Any], process: Mapping[str, Any], host: HostFacts) -> bool:
    """Whether one more process can be born at the very end, by posix_spawn(3): where nobody can look into it meanwhile, and nothing
    that was set before would stop it, or be lost."""
    limits = reading.rlimits(process)
    return (
        host.spawns
        and all(number in _HARMLESS_LIMITS for number, _soft, _hard in limits)
        and not any(number == _NOFILE and 0 <= soft < _ROOM for number, soft, _hard in limits)
        and not _ptrace(spec)
        and not 0 < _pids(spec) < _FEW  # there are two of them in the container's cgroup for a moment
        and not process.get("terminal")  # which belongs to a session's leader
        and not process.get("apparmorProfile")  # of this process's own next execve
    )


def exec(
    id: str, spec: Mapping[str, Any], process: Mapping[str, Any], host: HostFacts, *, start: bool = False
) -> Compiled:
    """The plan of one more process in a running container; spec is the container's own. start: nothing waits before its execve."""
    _unsupported({"process": process})
    result = Compiled(process)
    own = _namespaces(spec)
    spawned = start and _spawned(spec, process, host)
    flags = ns.NEWNS
    for kind in own:
        if kind != "pid" or spawned:  # else this process was born in it, or is born again
            flags |= ns.TYPES[kind][0]
    add = result.steps.append
    add(s.Cgroup())
    if process.get("oomScoreAdj") is not None:
        add(s.OomScore(_number(process["oomScoreAdj"], -1000, 1000, "oomScoreAdj")))
    add(s.Enter(flags))
    if "pid" in own and _ptrace(spec):
        add(s.PidNamespace())
    if not spawned:
        add(s.Setsid())
    add(s.User(*reading.user(process)))
    if process.get("terminal"):
        add(s.Console(*_size(process), 0))
    add(s.OwnStdio())
    _tail(result, id, spec, process, host, "", hooks=False)
    if spawned:
        result.steps = [step for step in result.steps if step.name not in ("created", "execute")]
        add = result.steps.append
        add(s.Spawn())
    return result
