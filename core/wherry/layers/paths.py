"""Names of a layer, resolved inside a root and never outside it.

A name is cleaned by its text (".." at the top stays at the top, as in every runtime), its parent is resolved through the root's
descriptor with links followed as if the root were "/", and its last part is never followed. A tree is worked on by one thread
that nobody else changes meanwhile; even so each step goes through openat2(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from wherry.errors import Invalid
from wherry.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_at

#: Directories in a volume that is being filled, see ``wherry.layers.copyup``: before all is on the disk, and then.
COPYING, COPIED = ".wherry-copying", ".wherry-copied"
LINKS_MAX = 255  # as other runtimes have it; the kernel's own limit is 40
_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_CACHED = 64
_PART_MAX = 255
_EMPTY = frozenset((b"", b".", b".."))


def begun(volume: str) -> bool:
    """Whether a copy-up was begun in a volume, given by the path of its directory, and not finished."""
    return any(os.path.lexists(f"{volume}/{name}") for name in (COPYING, COPIED))


def clean(name: bytes) -> tuple[bytes, ...]:
    """The parts of a name; () is the root itself."""
    found = name.split(b"/")
    if len(name) <= _PART_MAX and _EMPTY.isdisjoint(found):
        return tuple(found)
    parts: list[bytes] = []
    for part in found:
        if part in (b"", b"."):
            continue
        if part == b"..":
            if parts:
                parts.pop()
            continue
        if len(part) > _PART_MAX:
            raise Invalid("layer", f"a name has a part of {len(part)} bytes, more than {_PART_MAX}")
        parts.append(part)
    return tuple(parts)


class Directory:
    """An open directory of the tree: real is its path from the root with no link in it, key the same in one piece."""

    __slots__ = ("fd", "key", "real")

    def __init__(self, fd: int, real: tuple[bytes, ...]) -> None:
        self.fd = fd
        self.real = real
        self.key = b"/".join(real)

    def below(self, name: bytes) -> bytes:
        """The key of what lies in it."""
        return self.key + b"/" + name if self.key else name


class RootedTree:
    """A root and the directories lately used in it. The root's descriptor is the caller's."""

    def __init__(self, root: int, owner: tuple[int, int] = (0, 0)) -> None:
        self.root = Directory(root, ())
        self.owner = owner  # of the directories made on the way, as the file system has the ids
        self.made: set[bytes] = set()  # keys of directories made because a name needed them
        self.steps = (
            0  # parts of names that were looked up one by one, links followed: what a name costs beyond a look-up
        )
        self._cache: OrderedDict[tuple[bytes, ...], Directory] = OrderedDict()
        self._spare: Directory | None = None

    def directory(self, parts: tuple[bytes, ...], *, make: bool = True) -> Directory:
        """The directory that parts name, links followed inside the root. With make, missing ones are made (0755, root's).

        Raises Invalid where a part is no directory, FileNotFoundError where one is missing and make is False.
        """
        if not parts:
            return self.root
        found = self._cache.get(parts)
        if found is not None:
            self._cache.move_to_end(parts)
            return found
        try:
            found = Directory(open_at(self.root.fd, b"/".join(parts), _DIRECTORY, _PLAIN), parts)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
                raise
            found = self._walk(parts, make=make)
        self._cache[parts] = found
        if len(self._cache) > _CACHED:
            os.close(self._cache.popitem(last=False)[1].fd)
        return found

    def forget(self, kept: Directory | None = None) -> None:
        """Closes what is cached: names may mean something else once a directory or a link was replaced.

        kept is what the caller still works with; it leaves the cache too, but stays open until the next call.
        """
        cached = list(self._cache.values())
        self._cache.clear()
        if self._spare is not None:
            cached.append(self._spare)
        self._spare = None
        for found in cached:
            if found is kept:
                self._spare = kept
            else:
                os.close(found.fd)

    def _walk(self, parts: tuple[bytes, ...], *, make: bool) -> Directory:
        """Part by part: each is opened in the real directory before it, never through a link."""
        real: list[bytes] = []
        todo = list(reversed(parts))
        links = 0
        current = os.open(".", _DIRECTORY | os.O_CLOEXEC, dir_fd=self.root.fd)
        try:
            while todo:
                part = todo.pop()
                self.steps += 1
                if part in (b"", b"."):
                    continue
                if part == b"..":
                    if real:
                        real.pop()
                        current = self._reopen(current, real)
                    continue
                try:
                    mode = os.stat(part, dir_fd=current, follow_symlinks=False).st_mode
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o755, dir_fd=current)
                    os.chown(part, self.owner[0], self.owner[1], dir_fd=current, follow_symlinks=False)
                    self.made.add(b"/".join((*real, part)))
                    mode = stat.S_IFDIR
                if stat.S_ISLNK(mode):
                    links += 1
                    target = os.readlink(part, dir_fd=current)
                    if links > LINKS_MAX or not target:
                        raise Invalid("layer", f'too many links at "{show(parts)}"')
                    if target.startswith(b"/"):
                        real.clear()
                        current = self._reopen(current, real)
                    todo += reversed(target.split(b"/"))
                    continue
                if not stat.S_ISDIR(mode):
                    raise Invalid("layer", f'"{show((*real, part))}" is no directory, but "{show(parts)}" needs it')
                following = open_at(current, part, _DIRECTORY, _PLAIN)
                os.close(current)
                current = following
                real.append(part)
        except BaseException:
            os.close(current)
            raise
        return Directory(current, tuple(real))

    def _reopen(self, current: int, real: list[bytes]) -> int:
        following = open_at(self.root.fd, b"/".join(real) or b".", _DIRECTORY, _PLAIN)
        os.close(current)
        return following


def remove(fd: int, name: bytes) -> bool:
    """Removes name in a directory, with all below it; links are removed, not followed. False when there was nothing.

    Works with two descriptors however deep the tree is, going up by "..": nobody moves directories meanwhile.
    """
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return False
    except (IsADirectoryError, PermissionError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise
    else:
        return True
    current = open_at(fd, name, _DIRECTORY, _PLAIN)
    trail = [name]
    try:
        while True:
            below = None
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below = os.fsencode(entry.name)
                        break
                    os.unlink(entry.name, dir_fd=current)
            if below is not None:
                if not _try_rmdir(current, below):
                    current = _replace(current, open_at(current, below, _DIRECTORY, _PLAIN))
                    trail.append(below)
                continue
            done = trail.pop()
            if not trail:
                os.rmdir(done, dir_fd=fd)
                return True
            current = _replace(current, os.open("..", _DIRECTORY | os.O_CLOEXEC, dir_fd=current))
            os.rmdir(done, dir_fd=current)
    finally:
        os.close(current)


def _try_rmdir(fd: int, name: bytes) -> bool:
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def show(parts: tuple[bytes, ...]) -> str:
    """A path for an error text."""
    return "/" + b"/".join(parts)[:300].decode("utf-8", "backslashreplace")


__all__ = ["Directory", "RootedTree", "clean", "remove", "show"]
