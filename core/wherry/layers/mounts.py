"""Makes the mounts that a snapshotter described, in the mount namespace of a worker."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from wherry.errors import Invalid
from wherry.linux import fuse
from wherry.linux import mount as api
from wherry.linux.namespaces import NEWNS, unshare
from wherry.linux.path import make_directories

#: (type, source, target, options): ``wherry.api.Mount`` as JSON carries it.
Plain = tuple[str, str, str, Sequence[str]]

_ATTRIBUTES = {
    "ro": api.ATTR_RDONLY, "nosuid": api.ATTR_NOSUID, "nodev": api.ATTR_NODEV, "noexec": api.ATTR_NOEXEC,
    "noatime": api.ATTR_NOATIME, "relatime": api.ATTR_RELATIME,
}  # fmt: skip
_FLAGS = {
    "ro": api.MS_RDONLY, "nosuid": api.MS_NOSUID, "nodev": api.MS_NODEV, "noexec": api.MS_NOEXEC,
    "noatime": api.MS_NOATIME, "relatime": api.MS_RELATIME,
}  # fmt: skip
_DIRECTORIES = frozenset(("lowerdir", "upperdir", "workdir"))
_IGNORED = frozenset(("rw", "defaults", "bind", "rbind"))
_PAGE = 4095  # its end mark not included


def enter(point: str) -> None:
    """A mount namespace of one's own that nothing leaks out of; point is where its root will be mounted."""
    unshare(NEWNS)
    api.mount(None, "/", None, api.MS_REC | api.MS_PRIVATE)
    os.chdir(point)


def become_root(path: str) -> None:
    """Makes the mount at path the root and lets everything else go."""
    os.chdir(path)
    try:
        api.pivot_root(".", ".")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.chroot(".")  # on an initramfs nothing can be pivoted; the namespace is still ours alone
    else:
        api.umount(".", api.MNT_DETACH)
    os.chdir("/")


def make(mounts: Sequence[Plain], path: str, *, write: bool = True) -> None:
    """Makes mounts at path: the first, with the target "", is the root of the others. Invalid when there is none.

    Those that a program serves are served by a child of this process, which has one thread; write: else they are not written to.
    """
    if not mounts or mounts[0][2]:
        raise Invalid("mounts", "the first one has to be the root")
    for type_, source, target, options in mounts:
        if not target:
            _one(type_, source, path, options, write)
            continue
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = make_directories(root, target)
        finally:
            os.close(root)
        try:
            _one(type_, source, f"/proc/self/fd/{fd}", options, write)
        finally:
            os.close(fd)


def _one(type_: str, source: str, target: str, options: Sequence[str], write: bool) -> None:
    """By the new mount API: made detached, then put in its place."""
    attributes = 0
    data = []
    for option in options:
        if option in _ATTRIBUTES:
            attributes |= _ATTRIBUTES[option]
        elif option not in _IGNORED:
            data.append(option)
    if type_ == "bind" or "bind" in options or "rbind" in options:
        fd = api.clone_tree(source, recursive="rbind" in options)
        if attributes:
            api.set_attributes(fd, set=attributes)
    elif type_.startswith(fuse.PREFIX):
        fd = fuse.serve(source, data if write else fuse.read_only(data), attributes)
    else:
        try:
            fd = api.new_mount(type_, [("source", source or type_), *_pairs(data)], attributes)
        except OSError as error:
            # EINVAL: no lowerdir+ (before Linux 6.8), or a path beyond the 255 bytes of one fsconfig value
            if error.errno != errno.EINVAL or type_ != "overlay":
                raise
            _old(type_, source, target, options, data)
            return
    try:
        api.move_mount(fd, api.AT_FDCWD, target)
    finally:
        os.close(fd)


def _pairs(data: Sequence[str]) -> list[tuple[api.Path, api.Path | None]]:
    """For fsconfig(2), each lower directory by itself: together they may be longer than a page."""
    pairs: list[tuple[api.Path, api.Path | None]] = []
    for option in data:
        key, equals, value = option.partition("=")
        if key == "lowerdir":
            pairs += [("lowerdir+", lower) for lower in value.split(":")]
        else:
            pairs.append((key, value if equals else None))
    return pairs


def _old(type_: str, source: str, target: str, options: Sequence[str], data: Sequence[str]) -> None:
    """By mount(2), which takes one page of options."""
    flags = 0
    for option in options:
        flags |= _FLAGS.get(option, 0)
    text = ",".join(data)
    if len(os.fsencode(text)) <= _PAGE:
        api.mount(source or type_, target, type_, flags, text)
        return
    # The directories mostly lie side by side: seen from there their names are short. They are looked up from the working directory.
    base, shorter = _relative(data)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(base)
        if len(os.fsencode(",".join(shorter))) > _PAGE:
            raise Invalid(f'mount of "{type_}"', f"its options are longer than {_PAGE} bytes", "use fewer layers")
        api.mount(source or type_, os.path.join(_path_of(here), target), type_, flags, ",".join(shorter))
    finally:
        os.fchdir(here)
        os.close(here)


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _relative(data: Sequence[str]) -> tuple[str, list[str]]:
    """The options with their directories relative to the directory that all of them lie in."""
    paths: list[str] = []
    for option in data:
        key, _, value = option.partition("=")
        if key in _DIRECTORIES:
            paths += value.split(":")
    if not paths or not all(path.startswith("/") for path in paths):
        return ".", list(data)
    base = os.path.commonpath(paths)
    result = []
    for option in data:
        key, equals, value = option.partition("=")
        if key in _DIRECTORIES:
            value = ":".join(os.path.relpath(path, base) for path in value.split(":"))
        result.append(f"{key}{equals}{value}")
    return base, result


__all__ = ["Plain", "become_root", "enter", "make"]
