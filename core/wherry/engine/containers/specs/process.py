"""The OCI ``process`` object: arguments, environment, user, limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wherry.api import ExecRequest, Invalid, RunRequest
from wherry.engine.containers.specs import capabilities
from wherry.engine.containers.specs.profile import DEFAULT_PATH

UNLIMITED = (1 << 64) - 1
_RLIMITS = frozenset(
    ("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio")
    + ("rttime", "sigpending", "stack")
)
_ID_LIMIT = (1 << 32) - 2
_DECIMAL = re.compile(r"[0-9]+\Z")


def _words(value: object) -> tuple[str, ...]:
    if not value:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise Invalid("image config", "Entrypoint or Cmd is not a list of strings")


def command_of(image: Mapping[str, Any], request: RunRequest) -> tuple[tuple[str, ...], str]:
    """(argv, owner). An entrypoint of the request drops the image's command as well, an empty one only clears (docker run,
    "ENTRYPOINT"). Invalid when nothing is left to run."""
    owner = "image" if request.command is None else "request"
    if request.entrypoint is not None:
        entry = () if request.entrypoint == ("",) else request.entrypoint
        argv = (*entry, *(request.command or ()))
        owner = "request"
    else:
        argv = (*_words(image.get("Entrypoint")), *(request.command or _words(image.get("Cmd"))))
    if not argv:
        raise Invalid("container", "no command: neither the image nor the request names one", "add one after the image")
    return argv, owner


def environment(
    image: Iterable[object], request: Iterable[str], *, hostname: str, tty: bool, base: Iterable[str] | None = None
) -> list[str]:
    """Defaults, then the image's, then the request's: a later value of a name takes the earlier one's place.

    An entry of the image without "=" is dropped: it must never be filled in from the host (CVE-2026-57231). One of the
    request removes the name, as in Docker's API.
    """
    merged: dict[str, str | None] = {}
    if base is None:
        merged["PATH"] = "PATH=" + DEFAULT_PATH
        merged["HOSTNAME"] = "HOSTNAME=" + hostname
    else:
        for entry in base:
            merged[entry.partition("=")[0]] = entry
    if tty:
        merged["TERM"] = "TERM=xterm"
    for item in image:
        if isinstance(item, str) and (name := item.partition("=")[0]) and name != item and "\0" not in item:
            merged[name] = item
    for entry in request:
        name, equals, _value = entry.partition("=")
        if not name or "\0" in entry:
            raise Invalid(f'environment variable "{entry}"', "not NAME=value")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return [entry for entry in merged.values() if entry is not None]


def user_of(text: str) -> dict[str, Any]:
    """``name[:group]`` or ``uid[:gid]`` for the child to resolve inside the root; "" is uid 0 with root's groups.

    Numbers are decimal and below 2**32 - 1 (CVE-2024-40635): refused here already, the child checks again.
    """
    for part in text.split(":", 1):
        if _DECIMAL.match(part) and int(part) > _ID_LIMIT:
            raise Invalid(f'user "{text}"', f"{part} is not a user or group id")
    if text.startswith(":") or "\0" in text or "\n" in text:
        raise Invalid(f'user "{text}"', "not name[:group] or uid[:gid]")
    return {"uid": 0, "gid": 0, "username": text or "0"}


def working_directory(text: str) -> str:
    if text and (not text.startswith("/") or "\0" in text):
        raise Invalid(f'working directory "{text}"', "not an absolute path")
    return text or "/"


def rlimits(limits: Iterable[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """OCI ``process.rlimits`` from (name, soft, hard); -1 is unlimited."""
    found: dict[str, dict[str, Any]] = {}
    for name, soft, hard in limits:
        if name not in _RLIMITS:
            raise Invalid(f'ulimit "{name}"', "no such limit", "one of " + ", ".join(sorted(_RLIMITS)))
        low, high = (UNLIMITED if value == -1 else value for value in (soft, hard))
        if low < 0 or high < low:
            raise Invalid(f'ulimit "{name}"', f"soft limit {soft} is above the hard limit {hard}, or negative")
        found[name] = {"type": "RLIMIT_" + name.upper(), "soft": low, "hard": high}
    return list(found.values())


def exec_process(
    base: Mapping[str, Any], request: ExecRequest, *, user: str, default_capabilities: Sequence[str]
) -> dict[str, Any]:
    """The process object of an exec: the container's own (base), with what the request changes.

    user is the container's, which an exec without one shares. Capabilities are those of the container's start, so that an
    exec of a hardened container gains nothing; privileged asks for all.
    """
    if not request.command or not request.command[0]:
        raise Invalid("exec", "no command", "add one after the container")
    process = {key: value for key, value in base.items() if key not in ("args", "env", "cwd", "user", "terminal")}
    process["args"] = list(request.command)
    process["env"] = environment((), request.env, hostname="", tty=request.tty, base=base.get("env", ()))
    process["cwd"] = working_directory(request.workdir or str(base.get("cwd", "/")))
    process["user"] = user_of(request.user or user)
    process["terminal"] = request.tty
    if request.privileged:
        process["capabilities"] = capabilities.sets(capabilities.choose((), (), privileged=True))
    elif "capabilities" not in process:
        process["capabilities"] = capabilities.sets(default_capabilities)
    return process
