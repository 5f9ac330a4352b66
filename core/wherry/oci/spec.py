"""Reading an OCI spec's smaller parts: capabilities, rlimits, sysctls, devices, hooks. All raise SpecError."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wherry.linux import caps
from wherry.oci.errors import SpecError

_RLIMIT_NAMES = "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"
_RLIMITS: dict[str, int] = {name: number for number, name in enumerate(_RLIMIT_NAMES.split())}
_UNLIMITED = (1 << 64) - 1
MAX_ID = (1 << 31) - 1

#: Made in every /dev of our own (config-linux.md, "Default Devices"): path, mode, major, minor, uid, gid.
DEFAULT_DEVICES: tuple[tuple[str, int, int, int, int, int], ...] = tuple(
    (f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor, 0, 0)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
#: Always allowed, whatever the spec says, as OCI runtimes do: any node may be made, these may be used.
_ALLOWED: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, -1))
    ),
)
DEFAULT_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
)
_IPC_SYSCTLS = frozenset(
    "kernel/" + name for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_SYSCTL_NAME = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_.-]+)+\Z")


def capability_masks(process: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
    """(bounding, effective, permitted, inheritable, ambient)."""
    sets = process.get("capabilities") or {}
    result = []
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        try:
            result.append(caps.mask(sets.get(name) or ()))
        except KeyError as error:
            raise SpecError(f"capability {error}", "no such capability") from None
    bounding, effective, permitted, inheritable, ambient = result
    if effective & ~permitted:
        raise SpecError(
            "capabilities", "effective ones must be permitted: " + ", ".join(caps.names(effective & ~permitted))
        )
    if ambient & ~(permitted & inheritable):
        missing = caps.names(ambient & ~(permitted & inheritable))
        raise SpecError("capabilities", "ambient ones must be permitted and inheritable: " + ", ".join(missing))
    return bounding, effective, permitted, inheritable, ambient


def rlimits(process: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(number, soft, hard); unlimited is -1."""
    found: dict[int, tuple[int, int, int]] = {}
    for entry in process.get("rlimits") or ():
        name = str(entry.get("type", ""))
        number = _RLIMITS.get(name.removeprefix("RLIMIT_"))
        if number is None or not name.startswith("RLIMIT_"):
            raise SpecError(f'rlimit "{name}"', "no such limit")
        if number in found:
            raise SpecError(f'rlimit "{name}"', "named twice")
        soft, hard = int(entry.get("soft", 0)), int(entry.get("hard", 0))
        if not 0 <= soft <= hard <= _UNLIMITED:
            raise SpecError(f'rlimit "{name}"', f"soft limit {soft} is above the hard limit {hard}, or negative")
        found[number] = (number, *(-1 if value >= _UNLIMITED >> 1 else value for value in (soft, hard)))  # type: ignore[assignment]
    return list(found.values())


def sysctls(values: Mapping[str, Any], own: Collection[str]) -> list[tuple[str, str]]:
    """(path below /proc/sys, value) of sysctls that belong to a namespace of the container's own (CVE-2022-0811).

    own: its namespace types, "network", "ipc", "uts". Names as sysctl(8) takes them: dots, or slashes where a part has a dot.
    """
    result = []
    for name, value in values.items():
        if not _SYSCTL_NAME.match(name) or ".." in name or not isinstance(value, str) or "\n" in value or "\0" in value:
            raise SpecError(f'sysctl "{name}"', "not a name such as net.core.somaxconn, or a value with a line break")
        first = next(mark for mark in name if mark in "./")
        path = name.translate({ord("."): "/", ord("/"): "."}) if first == "." else name
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise SpecError(f'sysctl "{name}"', "not a name such as net.core.somaxconn")
        if path.startswith("net/"):
            needed = "network"
        elif path in _IPC_SYSCTLS or path.startswith("fs/mqueue/"):
            needed = "ipc"
        elif path == "kernel/domainname":
            needed = "uts"
        else:
            raise SpecError(f'sysctl "{name}"', "does not belong to a namespace: it would change the host")
        if needed not in own:
            raise SpecError(f'sysctl "{name}"', f"would change another {needed} namespace than the container's own")
        result.append((path, value))
    return result


def devices(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int, int, int, int]]:
    """(path, mode with type, major, minor, uid, gid) of linux.devices."""
    kinds = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
    result = []
    for entry in entries:
        path, kind = str(entry.get("path", "")), kinds.get(str(entry.get("type", "")))
        if kind is None or not path.startswith("/") or ".." in path.split("/"):
            raise SpecError(f'device "{path}"', "needs an absolute path and a type of c, u, b or p")
        mode = int(entry.get("fileMode") or 0o666) & 0o7777
        numbers = [int(entry.get(key) or 0) for key in ("major", "minor", "uid", "gid")]
        if min(numbers) < 0:
            raise SpecError(f'device "{path}"', "a number is negative")
        result.append((path, kind | mode, numbers[0], numbers[1], numbers[2], numbers[3]))
    return result


def device_rules(rules: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """linux.resources.devices as it comes into force: all denied first where nothing is said, the default devices allowed last.

    A lone rule that allows all stays alone.
    """
    if len(rules) == 1 and rules[0].get("allow") and rules[0].get("type") in (None, "", "a"):
        return list(rules)
    listed = list(rules) or [{"allow": False, "access": "rwm"}]
    return [*listed, *(rule for rule in _ALLOWED if rule not in listed)]


def user(process: Mapping[str, Any]) -> tuple[str, int, int, list[int]]:
    """(username, uid, gid, additional gids)."""
    entry = process.get("user") or {}
    uid, gid = entry.get("uid", 0), entry.get("gid", 0)
    additional = list(entry.get("additionalGids") or ())
    for number in (uid, gid, *additional):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ID:
            raise SpecError(f"user id {number!r}", f"ids go from 0 to {MAX_ID}")
    return str(entry.get("username") or ""), uid, gid, additional


#: Annotations with a line of passwd(5) and one of group(5) that the container's own files are to have.
PASSWD, GROUP = "io.wherry.passwd", "io.wherry.group"
_ACCOUNTS = {
    PASSWD: re.compile(r"[^:\n\0]+:[^:\n\0]*:[0-9]{1,10}:[0-9]{1,10}:[^:\n\0]*:/[^:\n\0]*:[^:\n\0]*\Z"),
    GROUP: re.compile(r"[^:\n\0]+:[^:\n\0]*:[0-9]{1,10}:[^:\n\0]*\Z"),
}


def account(spec: Mapping[str, Any]) -> tuple[str, str]:
    """The two lines, "" for none."""
    found = [str((spec.get("annotations") or {}).get(key) or "") for key in _ACCOUNTS]
    for text, (key, form) in zip(found, _ACCOUNTS.items(), strict=True):
        if text and not form.match(text):
            raise SpecError(f'annotation "{key}"', f'"{text}" is no such line')
    return found[0], found[1]


def hooks(entries: Sequence[Mapping[str, Any]], moment: str) -> list[tuple[str, list[str], list[str], int]]:
    """(path, argv, env, timeout in seconds, 0 for none)."""
    result = []
    for entry in entries:
        path, timeout = entry.get("path"), entry.get("timeout") or 0
        if not isinstance(path, str) or not path.startswith("/"):
            raise SpecError(f'{moment} hook "{path}"', "not an absolute path")
        if not isinstance(timeout, int) or timeout < 0:
            raise SpecError(f'{moment} hook "{path}"', f"timeout {timeout!r} is not a positive number of seconds")
        result.append(
            (
                path,
                [str(word) for word in entry.get("args") or ()],
                [str(word) for word in entry.get("env") or ()],
                timeout,
            )
        )
    return result


def state(id: str, bundle: str, spec: Mapping[str, Any], status: str) -> dict[str, Any]:
    """The container's state as a hook gets it (runtime.md, "State"); the pid is put in by who runs it."""
    return {
        "ociVersion": spec.get("ociVersion", "1.2.1"),
        "id": id,
        "status": status,
        "pid": 0,
        "bundle": bundle,
        "annotations": dict(spec.get("annotations") or {}),
    }
