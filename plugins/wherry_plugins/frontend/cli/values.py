"""Option values as docker users write them: sizes, durations, mounts, ports, limits. Each raises ValueError with the cause.

Formats: docker's CLI reference of ``run``. Sizes are powers of 1024 there ("512m"), times are Go durations ("1m30s") or RFC 3339.
"""

from __future__ import annotations

import ipaddress
import re
import time
from datetime import UTC, datetime

from wherry.api import Bind, Invalid, Port
from wherry_plugins.frontend.cli.command import BadOption

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PROPAGATION = frozenset({"shared", "slave", "private", "rshared", "rslave", "rprivate"})
#: Options of -v that ask for what is so anyway here: no SELinux labels, no osxfs, no copy into a bind.
_VOID = frozenset({"z", "Z", "rw", "cached", "delegated", "consistent", "default", "nocopy"})
_SIZES = " kmgtp"


def size(text: str) -> int:
    """Bytes: "512m", "1.5g", "64KiB", "1048576"."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f'"{text}" is not a size such as 64m or 1.5g')
    return int(float(match[1]) * 1024 ** _SIZES.index(match[2].lower() or " "))


def swap(text: str) -> int:
    """A size, or -1 for no limit."""
    return -1 if text.strip() == "-1" else size(text)


def cpus(text: str) -> float:
    """A positive number of cores."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1 << 20:
        raise ValueError(f'"{text}" is not a number of cores such as 1.5')
    return number


def duration(text: str) -> float:
    """Seconds: "90", "1m30s", "250ms"."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _DURATION.sub("", text):
        raise ValueError(f'"{text}" is not a duration such as 10s or 1m30s')
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def moment(text: str) -> int:
    """Nanoseconds since the epoch: a Unix time, a time ("2024-05-01T10:00:00Z"), or how long ago ("10m")."""
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 10**9 + int((fraction + "0" * 9)[:9])
    try:
        parsed = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        try:
            return time.time_ns() - int(duration(text) * 1e9)
        except ValueError:
            raise ValueError(
                f'"{text}" is neither a time such as 2024-05-01T10:00:00Z nor how long ago, such as 10m'
            ) from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return int(parsed.timestamp()) * 10**9 + parsed.microsecond * 1000


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE; without "=" the value is empty."""
    key, _, value = text.partition("=")
    if not key.strip():
        raise ValueError(f'"{text}" has no name before "="')
    return key, value


def setting(text: str) -> tuple[str, str]:
    """KEY=VALUE, where "=" must be there."""
    if "=" not in text:
        raise ValueError(f'"{text}" is not KEY=VALUE')
    return pair(text)


def ulimit(text: str) -> tuple[str, int, int]:
    """NAME=SOFT[:HARD], -1 being unlimited."""
    name, _, numbers = text.partition("=")
    soft, _, hard = numbers.partition(":")
    try:
        limits = int(soft), int(hard or soft)
    except ValueError:
        raise ValueError(f'"{text}" is not NAME=SOFT[:HARD] such as nofile=1024:2048') from None
    if not name or (limits[1] >= 0 and not -1 <= limits[0] <= limits[1]) or min(limits) < -1:
        raise ValueError(f'"{text}" has a soft limit above its hard one')
    return (name, *limits)


def volume(text: str, resolve: object) -> Bind:
    """-v [SOURCE:]TARGET[:OPTIONS]. resolve makes a path of the client absolute; a source without a slash is a volume."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise ValueError(f'"{text}" is not SOURCE:TARGET[:OPTIONS]')
    source, target, flags = ("", parts[0], "") if len(parts) == 1 else (parts[0], parts[1], ":".join(parts[2:]))
    _absolute(target, text)
    options = _bind_options(flags.split(",") if flags else [], text)
    if source.startswith(("/", ".", "~")):
        return Bind("bind", resolve(source), target, options, create=True)  # type: ignore[operator]
    if source and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", source):
        raise ValueError(f'"{source}" is neither a path, which starts with / or ., nor the name of a volume')
    nocopy = ("nocopy",) if "nocopy" in flags.split(",") else ()
    return Bind("volume", source, target, (*(option for option in options if option != "rbind"), *nocopy))


def _absolute(target: str, text: str) -> None:
    if not target.startswith("/") or target.rstrip("/") == "":
        raise ValueError(f'"{text}": the target must be an absolute path other than /')


def _bind_options(flags: list[str], text: str) -> tuple[str, ...]:
    options = ["rbind"]
    for flag in flags:
        if flag in {"ro", "readonly"}:
            options.append("ro")
        elif flag in _PROPAGATION or flag == "idmap":
            options.append(flag)
        elif flag not in _VOID:
            raise ValueError(f'"{text}": unknown option "{flag}"')
    return tuple(options)


def tmpfs(text: str) -> Bind:
    """--tmpfs TARGET[:OPTIONS], by default nosuid, nodev and noexec as docker's."""
    target, _, flags = text.partition(":")
    _absolute(target, text)
    given = [flag for flag in flags.split(",") if flag]
    safe = [name for name, off in (("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")) if off not in given]
    return Bind(
        "tmpfs", "tmpfs", target, (*safe, *[flag for flag in given if flag not in {"rw", *safe, "suid", "dev", "exec"}])
    )


def mount(text: str, resolve: object) -> Bind:
    """--mount type=bind|tmpfs|volume,source=...,target=...[,readonly]... (docker's reference, "--mount")."""
    kind, source, target = "volume", "", ""
    options: list[str] = []
    recursive = True
    for item in text.split(","):
        key, equals, value = item.partition("=")
        key = key.strip().lower()
        if key == "type":
            kind = value
        elif key in {"source", "src"}:
            source = value
        elif key in {"target", "dst", "destination"}:
            target = value
        elif key in {"readonly", "ro"}:
            if not equals or value in {"true", "1"}:
                options.append("ro")
        elif key == "bind-propagation" and value in _PROPAGATION:
            options.append(value)
        elif key in {"bind-nonrecursive", "bind-recursive"}:
            recursive = (value in {"false", "0"}) if key == "bind-nonrecursive" else value != "disabled"
            if key == "bind-recursive" and value == "writable":
                options.append(value)
        elif key == "tmpfs-size":
            options.append(f"size={size(value)}")
        elif key == "tmpfs-mode" and re.fullmatch(r"[0-7]{3,4}", value):
            options.append(f"mode={value}")
        elif key == "volume-nocopy":
            if not equals or value in {"true", "1"}:
                options.append("nocopy")
        elif key != "consistency":
            raise ValueError(f'"{text}": unknown or malformed key "{item}"')
    _absolute(target, text)
    if kind == "tmpfs" and not source:
        return Bind("tmpfs", "tmpfs", target, ("nosuid", "nodev", "noexec", *options))
    if kind == "bind" and source:
        return Bind("bind", resolve(source), target, ("rbind" if recursive else "bind", *options))  # type: ignore[operator]
    if kind == "volume":
        return Bind("volume", source, target, tuple(options))
    raise ValueError(f'"{text}": type is bind (which needs a source), tmpfs (which has none) or volume')


def port(text: str) -> tuple[Port, ...]:
    """-p [IP:][HOST:]CONTAINER[/tcp|/udp], with ranges "8000-8010:80-90", or "8000-8010:80" for the first free one; HOST 0 is any."""
    rest, _, protocol = text.lower().partition("/")
    match = re.fullmatch(
        r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9a-fA-F:.]+):(?P<on>[0-9-]*):|(?P<host>[0-9-]*):)?(?P<port>[0-9-]+)", rest
    )
    if not match or protocol not in {"", "tcp", "udp"}:
        raise ValueError(f'"{text}" is not [IP:][HOST_PORT:]PORT[/tcp|/udp]')
    address, outer, inner = (match["ip"] or "").strip("[]"), match["on"] or match["host"] or "", match["port"]
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f'"{text}": "{address}" is not an address') from None
    inside, outside = _range(inner, text), _range(outer, text) if outer not in ("", "0") else ()
    kind = "udp" if protocol == "udp" else "tcp"
    if len(inside) == 1 and len(outside) > 1:  # the first free one of them
        return (Port(inside[0], kind, address, outside[0], outside[-1]),)  # type: ignore[arg-type]  # a literal
    if outside and len(outside) != len(inside):
        raise ValueError(f'"{text}": the ranges differ in length')
    return tuple(
        Port(number, kind, address, outside[index] if outside else 0)  # type: ignore[arg-type]  # a literal
        for index, number in enumerate(inside)
    )


def exposed(text: str) -> tuple[Port, ...]:
    """--expose PORT[-PORT][/tcp|/udp]."""
    if ":" in text:
        raise ValueError(f'"{text}" is not PORT[-PORT][/tcp|/udp]')
    return port(text)


def _range(text: str, whole: str) -> tuple[int, ...]:
    first, dash, last = text.partition("-")
    try:
        numbers = tuple(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        numbers = ()
    if not numbers or not 0 < numbers[0] <= numbers[-1] < 1 << 16:
        raise ValueError(f'"{whole}": "{text}" is not a port or a range of ports')
    return numbers


def truth(key: str, text: str) -> bool:
    """The value of a filter that is true or false. Invalid for anything else."""
    if text not in {"true", "1", "false", "0"}:
        raise Invalid(f'filter "{key}"', f'"{text}" is neither true nor false')
    return text in {"true", "1"}


def filters(items: tuple[str, ...]) -> dict[str, list[str]]:
    """--filter KEY=VALUE, several: values of a key are alternatives. BadOption for anything else."""
    found: dict[str, list[str]] = {}
    for item in items:
        try:
            key, value = setting(item)
        except ValueError as error:
            raise BadOption('option "--filter"', str(error)) from None
        found.setdefault(key, []).append(value)
    return found
