"""Which plugins are installed, without importing any of them.

Entry points of the group ``wherry.plugins`` are named ``<family>.<id>``. Reading the metadata of every distribution costs about
15 ms, so the answer is cached in a file that is void as soon as a directory of sys.path has another modification time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from attrs import asdict, evolve, frozen

from wherry.errors import suggest
from wherry.hookspecs import FAMILY_HOOK

GROUP = "wherry.plugins"
ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_FORMAT = 1


@frozen
class PluginEntry:
    """One entry point. problem: why the plugin can't be used whatever its module says ("" for none)."""

    family: str
    id: str
    value: str
    distribution: str
    version: str
    problem: str = ""

    @property
    def key(self) -> str:
        """``<family>.<id>``, as in the config and in messages."""
        return f"{self.family}.{self.id}" if self.family else self.id


def discover(cache: Path | None = None) -> tuple[PluginEntry, ...]:
    """Every entry point of the group on sys.path, problems noted, ordered by family and id.

    cache: a directory for the index, None for none. Nothing about the cache is an error: without it the scan is run.
    """
    stamp = _stamp(sys.path)
    file = cache / f"plugins-{hashlib.sha256(repr(sys.path).encode()).hexdigest()[:16]}.json" if cache else None
    found = _read(file, stamp) if file else None
    if found is None:
        found = scan()
        if file and not _fresh(stamp):
            _write(file, stamp, found)
    return found


def cache_directory(environ: dict[str, str] | os._Environ[str], uid: int) -> Path:
    """Where the index is kept: /var/cache/wherry for root, else $XDG_CACHE_HOME/wherry."""
    if uid == 0:
        return Path("/var/cache/wherry")
    return Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/nonexistent") / ".cache") / "wherry"


def scan() -> tuple[PluginEntry, ...]:
    """Reads the metadata of every distribution on sys.path; the first of several of one name counts."""
    from importlib import metadata

    seen: set[str] = set()
    found: list[PluginEntry] = []
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] or "?"
        normal = re.sub(r"[-_.]+", "-", name).lower()
        if normal in seen:
            continue
        seen.add(normal)
        version = distribution.version
        found += [
            _entry(each.name, each.value, name, version) for each in distribution.entry_points if each.group == GROUP
        ]
    return _clashes(found)


def _entry(name: str, value: str, distribution: str, version: str) -> PluginEntry:
    family, dot, id = name.partition(".")
    problem = ""
    if not dot:
        family, id = "", name
        problem = f'the entry point "{name}" is not named <family>.<id>'
    elif family not in FAMILY_HOOK:
        problem = f'"{family}" is no family; {suggest(family, FAMILY_HOOK)}'
    elif not ID.fullmatch(id):
        problem = f'"{id}" is no id: letters, digits, "_", "." and "-", at most 128'
    return PluginEntry(family, id, value, distribution, version, problem)


def _clashes(found: list[PluginEntry]) -> tuple[PluginEntry, ...]:
    """Two distributions with one name: neither is used, since any rule which one wins would depend on the order of sys.path."""
    owners: dict[str, list[PluginEntry]] = {}
    for entry in found:
        owners.setdefault(entry.key, []).append(entry)
    result = []
    for entry in found:
        rivals = owners[entry.key]
        if len(rivals) > 1 and not entry.problem:
            names = " and ".join(sorted(f"{rival.distribution} {rival.version}" for rival in rivals))
            entry = evolve(entry, problem=f"the name is claimed by {names}")
        result.append(entry)
    return tuple(sorted(result, key=lambda entry: (entry.family, entry.id, entry.distribution)))


def _stamp(path: Iterable[str]) -> list[list[object]]:
    stamps: list[list[object]] = [[str(_FORMAT), sys.version]]
    for directory in path:
        try:
            stamps.append([directory, os.stat(directory or ".").st_mtime_ns])
        except OSError:
            stamps.append([directory, 0])
    return stamps


def _fresh(stamp: list[list[object]]) -> bool:
    """A directory that changed just now may change again within the same tick of its clock: not worth remembering yet."""
    newest = max((int(str(changed)) for _, changed in stamp[1:]), default=0)
    return time.time_ns() - newest < 2_000_000_000


def _read(file: Path, stamp: list[list[object]]) -> tuple[PluginEntry, ...] | None:
    """The cached answer, or None. The file decides what gets imported, so it must be ours alone to write."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(descriptor, encoding="utf-8") as stream:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            data = json.load(stream)
        if data["stamp"] != stamp:
            return None
        return tuple(PluginEntry(**entry) for entry in data["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, stamp: list[list[object]], entries: tuple[PluginEntry, ...]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        data = json.dumps({"stamp": stamp, "entries": [asdict(entry) for entry in entries]})
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(data)
        os.replace(temporary, file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
