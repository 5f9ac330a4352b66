"""USER as docker knows it, from the root's own etc/passwd and etc/group, which are hostile.

The files are looked up through the root's descriptor, must be regular and at most 10 MiB, and are searched as bytes: no codec and
no NSS is involved (CVE-2024-9676, CVE-2026-47262). Numbers are 0 to 2^31-1 in plain decimal; what merely looks like a
number ("-1", "0x0", "1e0", "4294967296") is refused even where a passwd line has it as a name (CVE-2024-40635, -2026-46680).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from wherry.linux import path
from wherry.oci.child import Failure, text

MAX_FILE = 10 << 20
MAX_ID = (1 << 31) - 1
_MAX_LINES = 1 << 16
_NUMBER_LIKE = frozenset(b"0123456789abcdefABCDEFxXoO+-._")


def _refuse(what: bytes, cause: str) -> Failure:
    return Failure("Invalid", f'user "{text(what)}"', cause)


def number(word: bytes) -> int | None:
    """The id that a word of digits stands for, None for a name. Failure (Invalid) for what only looks like a number."""
    if word.isdigit():
        value = int(word) if len(word) < 20 else MAX_ID + 1
        if value > MAX_ID:
            raise _refuse(word, f"ids go from 0 to {MAX_ID}")
        return value
    if word[:1] in (b"+", b"-") or (word[:1].isdigit() and _NUMBER_LIKE.issuperset(word)):
        raise _refuse(word, "neither a plain decimal id nor a name")
    return None


def read(root: int, name: bytes) -> bytes:
    """The content of a small regular file inside root; b"" when there is none. Failure for any other kind or size."""
    try:
        fd = path.open_in(root, name)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Failure("Invalid", f'"/{text(name)}" of the image', "not a regular file")
    fd = path.open_in(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        again = os.fstat(fd)
        if (again.st_dev, again.st_ino) != (found.st_dev, found.st_ino) or not stat.S_ISREG(again.st_mode):
            raise Failure("Invalid", f'"/{text(name)}" of the image', "it changed while it was read")
        parts = []
        left = MAX_FILE + 1
        while left and (data := os.read(fd, min(left, 1 << 15))):
            parts.append(data)
            left -= len(data)
    finally:
        os.close(fd)
    if not left:
        raise Failure("Invalid", f'"/{text(name)}" of the image', f"larger than {MAX_FILE >> 20} MiB")
    return b"".join(parts)


def _lines(content: bytes, needle: bytes, fields: int) -> Iterator[list[bytes]]:
    """The lines that contain needle, split at colons, those with enough fields; Failure after absurdly many."""
    position = 0
    for _count in range(_MAX_LINES):
        position = content.find(needle, position)
        if position < 0:
            return
        start = content.rfind(b"\n", 0, position + 1) + 1
        end = content.find(b"\n", max(position, start))
        if end < 0:
            end = len(content)
        parts = content[start : min(end, start + 65536)].strip().split(b":")
        if len(parts) >= fields:
            yield parts
        if end >= len(content):
            return
        position = end
    raise Failure("Invalid", "passwd or group of the image", f"more than {_MAX_LINES} lines match")


def _valid(word: bytes) -> int | None:
    """An id field of a line; None when it is not one."""
    if word.isdigit() and len(word) < 11:
        value = int(word)
        return value if value <= MAX_ID else None
    return None


def _user_line(content: bytes, name: bytes, uid: int | None) -> tuple[bytes, int, int, bytes] | None:
    """(name, uid, gid, home) of the first line with that name, or with that uid when it is given."""
    for parts in _lines(content, name + b":" if uid is None else b":%d:" % uid, 6):
        found, gid = _valid(parts[2]), _valid(parts[3])
        if found is None or gid is None:
            continue
        if parts[0] == name if uid is None else found == uid:
            return parts[0], found, gid, parts[5]
    return None


def _group_id(content: bytes, name: bytes) -> int | None:
    for parts in _lines(content, name + b":", 3):
        if parts[0] == name:
            return _valid(parts[2])
    return None


def introduce(root: int, name: bytes, line: bytes) -> None:
    """Appends a line to etc/passwd or etc/group unless one there has its name or its id. Failure for what is no regular file.

    The root is the container's own, and nothing is mounted in it yet: a link in it leads to no file of the host's. One that is
    read-only stays as it is.
    """
    content = read(root, name)
    word, _password, number_, *_rest = line.split(b":")
    id = int(number_)
    known = (parts for needle in (word + b":", b":%d:" % id) for parts in _lines(content, needle, 3))
    if any(parts[0] == word or _valid(parts[2]) == id for parts in known):
        return
    try:
        os.close(path.make_target(root, name, directory=False))
        fd = path.open_in(root, name, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.EROFS:
            return
        raise
    try:
        os.write(fd, (b"" if not content or content.endswith(b"\n") else b"\n") + line + b"\n")
    finally:
        os.close(fd)


def memberships(content: bytes, name: bytes) -> list[int]:
    """The ids of the groups of etc/group that list the user name as a member."""
    if not name:
        return []
    ids = [_valid(parts[2]) for parts in _lines(content, name, 4) if name in parts[3].split(b",")]
    return [gid for gid in ids if gid is not None]


def resolve(
    root: int, username: bytes, uid: int, gid: int, additional: tuple[int, ...]
) -> tuple[int, int, list[int], bytes]:
    """(uid, gid, all groups, home) of a process.

    username "name[:group]" or "uid[:gid]" wins over uid and gid. Without a group the user's own comes from passwd (else 0), and
    supplementary ones from group. The groups begin with the primary one (CVE-2022-2989, CVE-2023-25173).
    """
    passwd = read(root, b"etc/passwd")
    if not username:
        line = _user_line(passwd, b"", uid)
        groups = [gid, *additional]
        return uid, gid, list(dict.fromkeys(groups)), line[3] if line else b"/"
    user, colon, group = username.partition(b":")
    number_of_user = number(user) if user else 0
    line = _user_line(passwd, user, number_of_user)
    if line is not None:
        name, uid, gid, home = line
    elif number_of_user is None:
        raise _refuse(user, "no such user in the image's /etc/passwd")
    else:
        name, uid, gid, home = b"", number_of_user, 0, b"/"
    members: list[int] = []
    if colon and group:
        wanted = number(group)
        if wanted is None:
            wanted = _group_id(read(root, b"etc/group"), group)
            if wanted is None:
                raise Failure("Invalid", f'group "{text(group)}"', "no such group in the image's /etc/group")
        gid = wanted
    else:
        members = memberships(read(root, b"etc/group"), name)
    return uid, gid, list(dict.fromkeys([gid, *members, *additional])), home
