"""The helper process of ``wherry.testing.trees``: makes mounts in a mount namespace of its own and works inside them.

Reads one JSON document from stdin and writes one to stdout. Everything it mounted is gone with it.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wherry.linux import fuse

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# These numbers are the same on every architecture (include/uapi/asm-generic/unistd.h).
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_CLONE_NEWNS, _MS_REC_PRIVATE = 0x20000, 0x44000
_FSCONFIG_FLAG, _FSCONFIG_STRING, _FSCONFIG_CREATE = 0, 1, 6
_EMPTY_PATH, _RECURSIVE, _ATTR_RDONLY = 0x1000, 0x8000, 1
_AT_FDCWD = -100


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what)
    return result


def _call(number: int, *arguments: Any, what: str) -> int:
    # A variadic C function takes ints as C int: 64-bit registers want c_long.
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wide), what)


def _configure(fs: int, key: str, value: str | None) -> None:
    command = _FSCONFIG_FLAG if value is None else _FSCONFIG_STRING
    text = None if value is None else os.fsencode(value)
    _call(_FSCONFIG, fs, command, os.fsencode(key), text, 0, what=f"fsconfig {key}={value}")


def _new_superblock(kind: str, source: str, options: list[str]) -> int:
    fs = _call(_FSOPEN, kind.encode(), 1, what=f"fsopen {kind}")
    _configure(fs, "source", source or kind)
    for option in options:
        key, equals, value = option.partition("=")
        if key == "lowerdir":  # one call a layer: the classic option string ends at a page
            for lower in value.split(":"):
                _configure(fs, "lowerdir+", lower)
        else:
            _configure(fs, key, value if equals else None)
    _call(_FSCONFIG, fs, _FSCONFIG_CREATE, None, None, 0, what=f"fsconfig create {kind}")
    made = _call(_FSMOUNT, fs, 1, 0, what=f"fsmount {kind}")
    os.close(fs)
    return made


def attach(mount: dict[str, Any], root: str) -> None:
    """Makes one mount below root. Raises OSError naming the system call."""
    flags = {"ro", "rw", "bind", "rbind", "private", "rprivate", "nosuid", "nodev", "noexec", "suid", "dev", "exec"}
    options = [option for option in mount["options"] if option not in flags]
    bind = mount["type"] == "bind" or {"bind", "rbind"} & set(mount["options"])
    if bind:
        flag = 1 | (_RECURSIVE if "rbind" in mount["options"] else 0)  # OPEN_TREE_CLONE
        tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(mount["source"]), flag, what=f"open_tree {mount['source']}")
    elif mount["type"].startswith(fuse.PREFIX):
        tree = fuse.serve(mount["source"], options)
    else:
        tree = _new_superblock(mount["type"], mount["source"], options)
    if "ro" in mount["options"]:
        attr = _MountAttr(attr_set=_ATTR_RDONLY)
        _call(
            _MOUNT_SETATTR, tree, b"", _EMPTY_PATH | _RECURSIVE, ctypes.byref(attr), ctypes.sizeof(attr),
            what="mount_setattr ro",
        )  # fmt: skip
    target = f"{root}/{mount['target']}".rstrip("/")
    _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), 4, what=f"move_mount {target}")
    os.close(tree)


def entry(path: str) -> dict[str, Any]:
    """What lstat(2) and the content of one path say."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content = b""
    if kind == stat.S_IFREG:
        content = Path(path).read_bytes()
    elif kind == stat.S_IFLNK:
        content = os.fsencode(os.readlink(path))
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False).decode("latin-1") for name in names}
    return {
        "kind": {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}.get(
            kind, "node"
        ),
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns,
        "links": status.st_nlink,
        "inode": status.st_ino,
        "content": base64.b64encode(content).decode(),
        "xattrs": xattrs,
    }


def walk(root: str) -> dict[str, dict[str, Any]]:
    """Every path below root, relative, "." for root itself; symbolic links are not followed."""
    found = {".": entry(root)}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = f"{directory}/{name}"
            found[os.path.relpath(path, root)] = entry(path)
    return found


def _write(path: str, text: str, mode: int = 0o644) -> None:
    Path(path).write_bytes(text.encode("utf-8", "surrogateescape"))
    Path(path).chmod(mode)


#: The operations of ``wherry.testing.change``; the first argument is a path below the root.
OPERATIONS: dict[str, Callable[..., object]] = {
    "write": _write,
    "append": lambda path, text: Path(path).write_text(Path(path).read_text() + text),
    "fill": lambda path, size: Path(path).write_bytes(b"x" * size),
    "mkdir": os.mkdir,
    "remove": os.remove,
    "rmtree": shutil.rmtree,
    "symlink": lambda path, target: os.symlink(target, path),
    "fifo": os.mkfifo,
    "whiteout": lambda path: os.mknod(path, stat.S_IFCHR, 0),
    "chmod": os.chmod,
    "chown": os.chown,
    "utime": lambda path, when: os.utime(path, ns=(when, when)),
    "xattr": lambda path, name, text: os.setxattr(path, name, text.encode()),
}


_TWO_NAMES: dict[str, Callable[..., object]] = {"rename": os.rename, "move": shutil.move, "link": os.link}


def _operate(root: str, operation: list[Any]) -> None:
    verb, path, *rest = operation
    full = f"{root}/{path}"
    if verb in _TWO_NAMES:
        _TWO_NAMES[verb](full, f"{root}/{rest[0]}")
    else:
        OPERATIONS[verb](full, *rest)


def main() -> None:
    """{"mounts": [...], "operations": [...]} -> {"tree": {...}} or {"error": text, "errno": number}."""
    request = json.loads(sys.stdin.buffer.read())
    answer: dict[str, Any]
    root = tempfile.mkdtemp(prefix="wherry-mounted-")
    try:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare mount namespace")
        _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None), "make / private")
        os.umask(0)
        for mount in request["mounts"]:
            attach(mount, root)
        for operation in request["operations"]:
            _operate(root, operation)
        answer = {"tree": walk(root)}
    except OSError as error:
        answer = {"error": str(error), "errno": error.errno}
    finally:
        _libc.umount2(os.fsencode(root), 2)  # the directory is empty again
        os.rmdir(root)
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
