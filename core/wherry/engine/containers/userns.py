"""User namespaces of single containers: which ids ``--userns`` gives, and what that changes in a spec.

auto takes a range that no other container of this engine has, until the container is removed. Layers keep the ids of the image:
the snapshotter is told the map and has the root mounted so that its ids become the container's.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from wherry.api import FailedPrecondition, IdMap, Invalid
from wherry.engine.containers.records import ContainerRecord
from wherry.engine.containers.specs.process import user_of
from wherry.errors import suggest
from wherry.kit.options import number, read_options
from wherry.linux import userns
from wherry.oci import idmaps
from wherry.oci import spec as reading

Rows = tuple[tuple[int, int, int], ...]
Pool = list[tuple[int, int]]

OWNER = "containers"
"""Whose ranges in /etc/subuid and /etc/subgid auto takes from, as podman does for root."""
REMAP = "remap-ids"
"""What a snapshotter provides for that."""
_MODES = ("auto", "host", "keep-id", "nomap")
_ID = number(0, 999_999_999)
_OPTIONS = {"auto": {"size": _ID}, "keep-id": {"uid": _ID, "gid": _ID}}
_SIZE = 65536
_SMALL = 1024  # of an ordinary user's 65536
_WHOLE = 0xFFFFFFFF
_MARK = "idmap"
_PING = "net.ipv4.ping_group_range"


def parse(text: str) -> tuple[str, Mapping[str, int]]:
    """(mode, options) of ``auto[:size=N]``, ``host``, ``keep-id[:uid=N,gid=N]`` or ``nomap``. Invalid."""
    mode, _colon, rest = text.partition(":")
    if mode not in _MODES:
        raise Invalid(f'user namespace "{text}"', "no such mode", suggest(mode, _MODES))
    given = dict(part.partition("=")[::2] for part in filter(None, rest.split(",")))
    return mode, read_options(given, _OPTIONS.get(mode, {}), f'user namespace "{mode}"')


def remaps(text: str) -> bool:
    """Whether a container of that mode needs a root whose ids are not those of the layers."""
    mode = parse(text or "host")[0]
    return mode != "host" and (mode != "keep-id" or userns.confined())


def choose(text: str, ranges: str, records: Iterable[ContainerRecord]) -> IdMap:
    """The map of a new container; an empty one for the engine's own ids.

    text: ``RunRequest.userns``. ranges: [engine] userns. records: every container there is, whose ids are not given again. Raises
    Invalid, FailedPrecondition (no ranges, or none left).
    """
    mode, options = parse(text or "host")
    if mode == "host":
        return IdMap()
    confined = userns.confined()
    if not confined and mode == "keep-id":
        return IdMap(((0, 0, _WHOLE),), ((0, 0, _WHOLE),))
    pools = [_own(name) if confined else _host(ranges, name) for name in ("uid_map", "gid_map")]
    if confined and mode == "keep-id":
        uid, gid = options.get("uid", userns.outer_uid()), options.get("gid", _outer_gid())
        return IdMap(_kept(uid, pools[0]), _kept(gid, pools[1]))
    if confined and mode == "nomap":
        return IdMap(*(((0, first, count),) for first, count in (_largest(pool) for pool in pools)))
    size = options.get("size", _SMALL if confined else _SIZE)
    if not size:
        raise Invalid(f'user namespace "{text}"', "a size of 0")
    taken = list(records)
    found = []
    for pool, field in zip(pools, ("uids", "gids"), strict=True):
        held = [(row[1], row[2]) for record in taken for row in getattr(record, field) if row[2] != _WHOLE]
        first = _gap(pool, held, size)
        if first < 0:
            raise FailedPrecondition(
                f'user namespace "{text}"',
                f"no {size} ids in a row are left",
                "remove containers, take a smaller size, or add ranges"
                + ("" if confined else ': [engine] userns = "FIRST:COUNT"'),
            )
        found.append(((0, first, size),))
    return IdMap(*found)


def _outer_gid() -> int:
    return max(0, userns.translate(0, userns.id_map("gid_map")))


def _own(name: str) -> Pool:
    """The subordinate ids of an ordinary user, as the user's own namespace has them: all but 0."""
    pool: Pool = []
    for inside, _outside, size in sorted(userns.id_map(name)):
        first, end = max(inside, 1), inside + size
        if first >= end:
            continue
        if pool and sum(pool[-1]) == first:
            pool[-1] = (pool[-1][0], pool[-1][1] + end - first)
        else:
            pool.append((first, end - first))
    if not pool:
        raise FailedPrecondition(
            "user namespace", "this user has a single id", "add ranges to /etc/subuid and /etc/subgid"
        )
    return pool


def _host(ranges: str, name: str) -> Pool:
    """The configured range, else those of the user "containers"."""
    if ranges:
        match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", ranges)
        pool = [(int(match[1]), int(match[2]))] if match else []
        where = "[engine] userns"
    else:
        where = "/etc/subuid" if name == "uid_map" else "/etc/subgid"
        try:
            pool = idmaps.ranges(where, (OWNER,))
        except idmaps.IdMapError as error:
            raise FailedPrecondition(error.what, error.cause, error.hint) from None
    if not pool:
        raise FailedPrecondition(
            "user namespace",
            f'"{where}" has no range for "{OWNER}"' if not ranges else f'{where} is "{ranges}", not FIRST:COUNT',
            f'add "{OWNER}:FIRST:COUNT" to /etc/subuid and /etc/subgid, or set [engine] userns = "FIRST:COUNT"',
        )
    if any(first < 1 or not count or first + count > _WHOLE for first, count in pool):
        raise FailedPrecondition(
            "user namespace", f'a range of "{where}" has the host\'s root in it, or none at all', "choose another"
        )
    return pool


def _largest(pool: Pool) -> tuple[int, int]:
    return max(pool, key=lambda entry: entry[1])


def _gap(pool: Pool, held: Iterable[tuple[int, int]], size: int) -> int:
    """The lowest id from which size ids are free; -1 without one."""
    busy = sorted(held)
    for first, count in pool:
        at = first
        for other, length in busy:
            if other + length <= at:
                continue
            if other >= at + size:
                break
            at = other + length
        if at + size <= first + count:
            return at
    return -1


def _kept(id: int, pool: Pool) -> Rows:
    """A map in which an id is the user (0 in the user's namespace) and the others are subordinate ones, as podman's keep-id."""
    first, count = _largest(pool)
    below = min(id, count)
    rows = [(0, first, below)] if below else []
    rows.append((id, 0, 1))
    if count > id:
        rows.append((id + 1, first + id, count - id))
    return tuple(rows)


def check(idmap: IdMap, provides: frozenset[str], snapshotter: str) -> None:
    """FailedPrecondition where the snapshotter can't give a root such ids."""
    if shifted(idmap).uids and REMAP not in provides:
        hint = (
            "choose --snapshotter fuse-overlayfs, or vfs, which copies"
            if userns.confined()
            else "it needs idmapped mounts (Linux 5.12)"
        )
        raise FailedPrecondition(f'snapshotter "{snapshotter}"', "it can't remap ids here, as --userns asks", hint)


def shifted(idmap: IdMap) -> IdMap:
    """The map as the snapshotter has to know it: none where ids stay what they are."""
    same = ((0, 0, _WHOLE),)
    return IdMap() if idmap.uids == same and idmap.gids == same else idmap


def root_of(idmap: IdMap) -> tuple[int, int] | None:
    """Whom the container's root is to this engine; None for the engine's own."""
    if not idmap.uids:
        return None
    uid, gid = (next((row[1] for row in rows if row[0] == 0), 0) for rows in (idmap.uids, idmap.gids))
    return uid, gid


def user_kept(text: str, idmap: IdMap) -> str:
    """ "uid:gid" of the user that ``keep-id`` keeps, whom the container's process is without another wish; "" for none."""
    if not text.startswith("keep-id") or not userns.confined():
        return ""
    return ":".join(str(next(row[0] for row in rows if row[1] == 0)) for rows in (idmap.uids, idmap.gids))


def accounts(text: str, idmap: IdMap) -> dict[str, str]:
    """Annotations by which a container of ``keep-id`` knows the name and the home of the user that is kept, as podman's does.

    Without them there is no HOME, and whoami(1) fails, as few images have that id.
    """
    kept = user_kept(text, idmap)
    if not kept:
        return {}
    uid, gid = kept.split(":")
    found = {}
    with suppress(KeyError):  # users need no name
        user = pwd.getpwuid(userns.outer_uid())
        found[reading.PASSWD] = f"{user.pw_name}:*:{uid}:{gid}:{user.pw_gecos}:{user.pw_dir}:/bin/sh"
        found[reading.GROUP] = f"{grp.getgrgid(_outer_gid()).gr_name}:x:{gid}:{user.pw_name}"
    return found


def fit(spec: dict[str, Any], idmap: IdMap, user: str, named: Mapping[str, str] = {}) -> dict[str, Any]:
    """The spec in a user namespace with this map. user: whom its process shall be, "" for whom the spec says. named: what
    ``accounts`` says."""
    if not idmap.uids:
        return spec
    linux = dict(spec["linux"])
    linux["namespaces"] = [*linux["namespaces"], {"type": "user"}]
    linux["uidMappings"], linux["gidMappings"] = _mappings(idmap.uids), _mappings(idmap.gids)
    values = linux.get("sysctl") or {}
    if _PING in values:
        end = min((first + size for first, _outside, size in idmap.gids if first == 0), default=1)
        low, high = (int(word) for word in values[_PING].split())
        linux["sysctl"] = {**values, _PING: f"{low} {max(low, min(high, end - 1))}"}
    result = {**spec, "linux": linux}
    real = shifted(idmap)
    if real.uids and not userns.confined():
        result["mounts"] = [_mapped(mount, real) for mount in spec["mounts"]]
    if named:
        result["annotations"] = {**(spec.get("annotations") or {}), **named}
    if user:
        result["process"] = {**spec["process"], "user": {**spec["process"]["user"], **user_of(user)}}
    return result


def _mapped(mount: Mapping[str, Any], idmap: IdMap) -> Mapping[str, Any]:
    """A bind with the option "idmap" shows ids inside as they are outside."""
    if _MARK not in (mount.get("options") or ()):
        return mount
    return {**mount, "uidMappings": _mappings(idmap.uids), "gidMappings": _mappings(idmap.gids)}


def _mappings(rows: Rows) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in rows]
