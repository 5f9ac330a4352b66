"""The ids that an ordinary user may give to containers: its own, and subordinate ones by /etc/subuid and /etc/subgid (subuid(5)).

newuidmap(1) and newgidmap(1) write such a map, as they are allowed to; without them, or without ranges, there is a map of a single
id, which everybody may write.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    Rows = list[tuple[int, int, int]]

_LINES = 340  # of one map; user_namespaces(7)
_TOP = 0xFFFFFFFF
PROGRAMS = {"uid_map": "newuidmap", "gid_map": "newgidmap"}


class IdMapError(ValueError):
    """What, cause and hint, as every error of ours."""

    def __init__(self, what: str, cause: str, hint: str = "") -> None:
        super().__init__(f"{what}: {cause}" + (f"; {hint}" if hint else ""))
        self.what, self.cause, self.hint = what, cause, hint


class IdMaps:
    """Rows of (inside, outside, size). single: why there is one id only, "" where there are more."""

    __slots__ = ("gids", "single", "uids")

    def __init__(self, uids: Rows, gids: Rows, single: str = "") -> None:
        self.uids = uids
        self.gids = gids
        self.single = single


def ranges(path: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """(first, count) of each line of a subuid(5) file that is one of these names', in order; none without the file.

    IdMapError for a line of theirs that makes no sense.
    """
    wanted = set(names)
    found = []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, 1):
        owner, colon, rest = line.strip().partition(":")
        if not colon or owner not in wanted:
            continue
        first, _colon, count = rest.partition(":")
        if not first.isdecimal() or not count.isdecimal() or not int(count) or int(first) + int(count) > _TOP:
            raise IdMapError(
                f'file "{path}"', f'line {number}, "{line.strip()}", is not NAME:FIRST:COUNT', "see subuid(5)"
            )
        found.append((int(first), int(count)))
    return found


def rows(own: int, given: Sequence[tuple[int, int]], path: str) -> Rows:
    """The own id as 0, the ranges from 1 on. IdMapError where two of them overlap, or one would give the host's root away."""
    result = [(0, own, 1)]
    inside = 1
    for first, count in given:
        if first == 0:
            raise IdMapError(f'file "{path}"', f"the range {first}:{count} has the host's root in it", "take it out")
        result.append((inside, first, count))
        inside += count
    held = sorted((outside, size) for _inside, outside, size in result)
    for (one, size), (other, more) in itertools.pairwise(held):
        if one + size > other:
            cause = f"{other}:{more} and {one}:{size} overlap, {own} being the user itself"
            raise IdMapError(f'file "{path}"', cause, "give each range to one user, once")
    if len(result) > _LINES:
        raise IdMapError(f'file "{path}"', f"{len(given)} ranges are more than a map can hold", "join them")
    return result


def own(uid: int, gid: int, name: str, *, etc: str = "/etc", search: str | None = None) -> IdMaps:
    """What a user may map. search: a PATH for newuidmap. IdMapError for ranges that are wrong, or there by half."""
    names = (name, str(uid)) if name else (str(uid),)
    files = {"uid_map": f"{etc}/subuid", "gid_map": f"{etc}/subgid"}
    found = {key: ranges(path, names) for key, path in files.items()}
    if not found["uid_map"] and not found["gid_map"]:
        return IdMaps([(0, uid, 1)], [(0, gid, 1)], f'"{files["uid_map"]}" has no range for {name or uid}')
    for key, path in files.items():
        if not found[key]:
            other = files["gid_map" if key == "uid_map" else "uid_map"]
            raise IdMapError(
                f'file "{path}"', f'no range for {name or uid}, while "{other}" has one', "add one: usermod(8)"
            )
    uids, gids = rows(uid, found["uid_map"], files["uid_map"]), rows(gid, found["gid_map"], files["gid_map"])
    for program in PROGRAMS.values():
        if not which(program, search):
            return IdMaps([(0, uid, 1)], [(0, gid, 1)], f"{program} is not installed")
    return IdMaps(uids, gids)


def which(program: str, search: str | None = None) -> str:
    """The path of a program, "" for none; sbin and bin directories count, whatever PATH says."""
    given = (os.environ.get("PATH", "") if search is None else search).split(":")
    for directory in (*given, *(("/usr/bin", "/usr/sbin", "/usr/local/bin") if search is None else ())):
        path = f"{directory}/{program}"
        if directory and os.access(path, os.X_OK):
            return path
    return ""


def write(pid: int, maps: IdMaps) -> None:
    """Writes the maps of a process in a new user namespace, from outside of it, as its owner. IdMapError.

    A single id goes without help, once setgroups(2) is denied there; more are written by the set-uid programs.
    """
    if maps.single:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", _text(maps.uids, "\n")),
            ("gid_map", _text(maps.gids, "\n")),
        ):
            try:
                with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            except OSError as error:
                raise IdMapError("user namespace", f"{name}: {(error.strerror or str(error)).lower()}") from None
        return
    for name, table in (("uid_map", maps.uids), ("gid_map", maps.gids)):
        program = PROGRAMS[name]
        status, said = _run([which(program), str(pid), *_text(table, " ").split()])
        if status:
            raise IdMapError(program, said.strip() or f"ended with status {status}", "see /etc/subuid and /etc/subgid")


def _text(table: Rows, end: str) -> str:
    return end.join(f"{inside} {outside} {size}" for inside, outside, size in table)


def _run(argv: list[str]) -> tuple[int, str]:
    """Exit code and what it said on stderr."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as said:
        try:
            actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, writer, 2)]
            pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, file_actions=actions)
        except OSError as error:
            return 127, f"{argv[0]}: {error.strerror}"
        finally:
            os.close(writer)
        text = said.read(4096).decode("utf-8", "replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text
