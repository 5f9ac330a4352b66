"""The steps of a plan: frozen data that a person can read (``describe``) and the shim can execute (``encode``).

One class for each executor of ``wherry.oci.execute_*``; the constructor's arguments are the executor's. A step holds no
descriptor and has no effect by itself. The order in which ``compile`` puts them is that of docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from wherry.linux import mount as linux_mount

Option = tuple[str, str | None]
Maps = Sequence[tuple[int, int, int]]


class Step(tuple[Any, ...]):
    """One frozen action: ``name`` is its executor, ``words`` its description with the arguments by position."""

    __slots__ = ()
    name: ClassVar[str] = ""
    words: ClassVar[str] = ""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls, args)

    def encode(self) -> tuple[object, ...]:
        """(name, argument, ...), which JSON can carry."""
        return (self.name, *self)

    def describe(self) -> str:
        """One line in the words of the system call that it becomes."""
        return self.words.format(*self)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


def _options(options: Sequence[Option]) -> str:
    return ",".join(key if value is None else f"{key}={value}" for key, value in options)


class Cgroup(Step):
    """Enter the cgroup v1 directories of the plan."""

    name, words = "cgroup", "write 0 to tasks of each v1 cgroup"


class Source(Step):
    """(slot, path, recursive, uids, gids, propagation): clone a host mount, idmapped when there are maps.

    propagation: what the clone is to its source, as wherry.linux.mount.clone_tree has it.
    """

    name, words = "source", "open_tree {1}, propagation {5:#x} -> {0}"

    def __new__(
        cls,
        slot: int,
        path: str,
        recursive: bool,
        uids: Maps = (),
        gids: Maps = (),
        propagation: int = linux_mount.MS_PRIVATE,
    ) -> Self:
        return super().__new__(cls, slot, path, int(recursive), list(uids), list(gids), propagation)


class DeviceSource(Step):
    """(slot, path, mode with type, major, minor): clone the host's node of a device, which is at that path or elsewhere in /dev."""

    name, words = "device_source", "open_tree the device {3}:{4}, {1} perhaps -> {0}"

    def __new__(cls, slot: int, path: str, mode: int, major: int, minor: int) -> Self:
        return super().__new__(cls, slot, path, mode, major, minor)


class Overlay(Step):
    """(slot, lowers, options, attributes): a detached overlay; the first lower is the topmost."""

    name, words = "overlay", ""

    def __new__(cls, slot: int, lowers: Sequence[str], options: Sequence[Option], attributes: int) -> Self:
        return super().__new__(cls, slot, list(lowers), [list(option) for option in options], attributes)

    def describe(self) -> str:
        return f"fsopen overlay of {len(self[1])} layers, {_options(self[2])} -> {self[0]}"


class MappedOverlay(Step):
    """(slot, lowers, options, attributes, uids, gids): the same of idmapped layers: files keep the image's ids."""

    name, words = "mapped_overlay", ""

    def __new__(
        cls, slot: int, lowers: Sequence[str], options: Sequence[Option], attributes: int, uids: Maps, gids: Maps
    ) -> Self:
        data = [list(option) for option in options]
        return super().__new__(cls, slot, list(lowers), data, attributes, list(uids), list(gids))

    def describe(self) -> str:
        return f"fsopen overlay of {len(self[1])} layers idmapped by {self[4]}, {self[5]}, {_options(self[2])} -> {self[0]}"


class ReceivedMount(Step):
    """(slot): the first of the plan's descriptors, a detached mount that somebody else made."""

    name, words = "given", "descriptor of a mount -> {0}"

    def __new__(cls, slot: int) -> Self:
        return super().__new__(cls, slot)


class Filesystem(Step):
    """(slot, type, options, attributes): a detached instance of another file system, for the root."""

    name, words = "filesystem", ""

    def __new__(cls, slot: int, fstype: str, options: Sequence[Option], attributes: int) -> Self:
        return super().__new__(cls, slot, fstype, [list(option) for option in options], attributes)

    def describe(self) -> str:
        return f"fsopen {self[1]}, {_options(self[2])} -> {self[0]}"


class UserNamespace(Step):
    """Join the sandbox's user namespace, or make a new one, and be born again in it."""

    name, words = "userns", "user namespace, ids 0, second clone3"


class Enter(Step):
    """(flags): all namespaces of the target by its pidfd."""

    name, words = "enter", "setns(pidfd, {0:#x})"


class PidNamespace(Step):
    """Be born again in the pid namespace of the target or the sandbox."""

    name, words = "pidns", "setns(pidfd, pid namespace), second clone3"


class Join(Step):
    """(types): namespaces of the sandbox and of nsfs paths; a missing one is an error."""

    name, words = "join", "setns {0}"

    def __new__(cls, types: Sequence[str]) -> Self:
        return super().__new__(cls, list(types))


class Unshare(Step):
    """(flags): namespaces that are made after others were entered."""

    name, words = "unshare", "unshare({0:#x})"


class TimeNamespace(Step):
    """(offsets as (clock, seconds, nanoseconds))."""

    name, words = "timens", "unshare(CLONE_NEWTIME), offsets {0}, setns"

    def __new__(cls, offsets: Sequence[tuple[str, int, int]]) -> Self:
        return super().__new__(cls, [list(offset) for offset in offsets])


class Loopback(Step):
    """lo up, in a network namespace of the plan's own."""

    name, words = "loopback", "ip link set lo up"


class Hostname(Step):
    """(name)."""

    name, words = "hostname", "sethostname {0}"


class Domainname(Step):
    """(name)."""

    name, words = "domainname", "setdomainname {0}"


class OomScore(Step):
    """(value)."""

    name, words = "oom_score", "oom_score_adj {0}"


class Rlimits(Step):
    """(limits as (number, soft, hard)); -1 is unlimited."""

    name, words = "rlimits", "setrlimit {0}"


class Setsid(Step):
    """A session of its own."""

    name, words = "setsid", "setsid"


class Propagation(Step):
    """(flags): of the whole tree of the new mount namespace."""

    name, words = "propagation", "mount_setattr / propagation {0:#x} recursive"


class Root(Step):
    """(slot, set, clear): place the root."""

    name, words = "root", "move_mount {0} /"


class MountNew(Step):
    """(path, type, options, attributes, propagation)."""

    name, words = "mount", ""

    def __new__(cls, path: str, fstype: str, options: Sequence[Option], attributes: int, propagation: int = 0) -> Self:
        return super().__new__(cls, path, fstype, [list(option) for option in options], attributes, propagation)

    def describe(self) -> str:
        return f"mount {self[1]} on {self[0]} ({_options(self[2])}; {self[3]:#x})"


class Bind(Step):
    """(slot, path, set, clear, recursive): place a cloned source."""

    name, words = "bind", "move_mount {0} {1} (set {2:#x} clear {3:#x})"


class Remount(Step):
    """(path, set, clear): attributes of a mount in the root."""

    name, words = "remount", "mount_setattr {0} (set {1:#x} clear {2:#x})"


class Devices(Step):
    """(nodes as (path, mode, major, minor, uid, gid))."""

    name, words = "devices", "mknod {0}"


class Links(Step):
    """(links as (target, path))."""

    name, words = "links", "symlink {0}"


class Link(Step):
    """(target, path): a symbolic link anywhere in the root."""

    name, words = "link", "symlink {0} {1}"


class Directory(Step):
    """(path): made in the root where it is missing."""

    name, words = "directory", "mkdir -p {0}"


class Sysctl(Step):
    """(values as (path below /proc/sys, value))."""

    name, words = "sysctl", "sysctl {0}"


class Mask(Step):
    """(paths): hidden below /dev/null or an empty directory."""

    name, words = "mask", "mask {0}"


class ReadOnly(Step):
    """(paths): bound over themselves, read-only."""

    name, words = "readonly", "read-only {0}"


class Account(Step):
    """(passwd line, group line): the root's own files have them afterwards, where they know neither the name nor the id."""

    name, words = "account", "passwd line {0!r}, group line {1!r}"


class User(Step):
    """(username, uid, gid, additional gids): resolved by the root's own files."""

    name, words = "user", "user {0!r} {1}:{2} {3}"


class Console(Step):
    """(rows, columns, bind /dev/console)."""

    name, words = "console", "pty {0}x{1}, /dev/console {2}"


class OwnStdio(Step):
    """The terminal or the pipes belong to the user."""

    name, words = "own_stdio", "fchown stdio"


class RuntimeHooks(Step):
    """Wait for the shim's createRuntime hooks."""

    name, words = "runtime_hooks", "createRuntime hooks by the shim"


class Hooks(Step):
    """(moment, hooks as (path, argv, env, timeout), state as JSON text)."""

    name, words = "hooks", "{0} hooks"


class Pivot(Step):
    """(propagation flags of the root)."""

    name, words = "pivot", "pivot_root, let go of the old root"


class Keyring(Step):
    """(name)."""

    name, words = "keyring", "keyctl join session {0}"


class Umask(Step):
    """(mask)."""

    name, words = "umask", "umask {0:#o}"


class Created(Step):
    """Report, and wait for the start."""

    name, words = "created", "report created, wait for start"


class Label(Step):
    """(AppArmor profile)."""

    name, words = "label", "apparmor exec {0}"


class Bounding(Step):
    """(mask of the capabilities to keep)."""

    name, words = "bounding", "keep bounding {0:#x}"


class Filter(Step):
    """(BPF as base64, seccomp(2) flags)."""

    name, words = "filter", ""

    def describe(self) -> str:
        return f"seccomp filter of {len(self[0]) * 3 // 4 // 8} instructions, flags {self[1]:#x}"


class NoNewPrivileges(Step):
    """PR_SET_NO_NEW_PRIVS."""

    name, words = "no_new_privileges", "prctl no_new_privs"


class Identity(Step):
    """(effective, permitted, inheritable, ambient): groups, ids, capabilities."""

    name, words = "identity", "setgroups, setresgid, setresuid, capset {0:#x} {1:#x} {2:#x}, ambient {3:#x}"


class Signals(Step):
    """All to default, none blocked."""

    name, words = "signals", "signals to default, empty mask"


class Chdir(Step):
    """(path)."""

    name, words = "chdir", "chdir {0}, inside the root"


class Execute(Step):
    """The end."""

    name, words = "execute", "execve"


class Spawn(Step):
    """Another end: by a second process, which is born there, in the pid namespace that was entered."""

    name, words = "spawn", "posix_spawn"
