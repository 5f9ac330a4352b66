"""Executors of the steps that build the container's tree: sources, the root, mounts, binds, and the change of root."""

from __future__ import annotations

import errno
import os
import signal
import stat

from wherry.linux import mount, namespaces, path
from wherry.oci.child import Child, Failure, Function, text

#: What may be mounted below /proc, as a container's image or user may not replace the files that confine it.
PROC_ALLOWED = frozenset(
    b"/proc/" + name
    for name in (
        b"cpuinfo", b"diskstats", b"meminfo", b"stat", b"swaps", b"uptime", b"loadavg", b"slabinfo", b"net/dev",
        b"sys/kernel/ns_last_pid", b"sys/crypto/fips_enabled", b"kpageflags", b"kpagecount", b"kpagecgroup",
    )
)  # fmt: skip
_KEPT = {b"/proc": "proc", b"/sys": "sys", b"/dev": "dev", b"/dev/pts": "pts"}
_MAGIC = {"proc": path.PROC_MAGIC, "sys": path.SYSFS_MAGIC, "pts": path.DEVPTS_MAGIC}


def idmapped_userns(uids: tuple[tuple[int, ...], ...], gids: tuple[tuple[int, ...], ...]) -> int:
    """A descriptor of a new user namespace with these maps: a process is born in it, waits, and is killed."""
    pid, pidfd = namespaces.clone3(namespaces.NEWUSER | namespaces.CLONE_CLEAR_SIGHAND)
    if pid == 0:
        while True:
            signal.pause()
    try:
        namespaces.write_id_maps(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def source(
    child: Child,
    slot: int,
    name: bytes,
    recursive: int,
    uids: tuple[tuple[int, ...], ...],
    gids: tuple[tuple[int, ...], ...],
) -> None:
    """Clones a host path's mount, detached, idmapped when maps are given; a later bind step places it."""
    try:
        fd = mount.open_tree(name, clone=True, recursive=bool(recursive))
    except FileNotFoundError:
        raise Failure("NotFound", f'bind source "{text(name)}"', "no such file or directory on the host") from None
    child.source[slot] = fd
    if uids or gids:
        userns = idmapped_userns(uids, gids)
        try:
            mount.set_attributes(fd, userns=userns, recursive=bool(recursive))
        finally:
            os.close(userns)


def overlay(
    child: Child, slot: int, lowers: tuple[bytes, ...], options: tuple[tuple[bytes, bytes | None], ...], attributes: int
) -> None:
    """A detached overlay. lowerdir+ (Linux 6.8) takes each layer by itself; before it there was one page for all of them."""
    each: list[tuple[mount.Path, mount.Path | None]] = [(b"lowerdir+", lower) for lower in lowers]
    try:
        child.source[slot] = mount.new_mount(b"overlay", [*each, *options], attributes)
    except OSError as error:
        # EINVAL: no such option, or a path beyond the 255 bytes of one fsconfig value
        if error.errno != errno.EINVAL:
            raise
        child.source[slot] = _old_overlay(lowers, options, attributes)


def _old_overlay(lowers: tuple[bytes, ...], options: tuple[tuple[bytes, bytes | None], ...], attributes: int) -> int:
    """The same by mount(2), over /sys of a private mount namespace for as long as it takes to clone it."""
    escaped = b":".join(lower.replace(b"\\", b"\\\\").replace(b":", b"\\:") for lower in lowers)
    words = [b"lowerdir=" + escaped]
    for key, value in options:
        words.append(key if value is None else key + b"=" + value.replace(b"\\", b"\\\\").replace(b",", b"\\,"))
    namespaces.unshare(namespaces.NEWNS)
    mount.set_attributes(mount.AT_FDCWD, path=b"/", propagation=mount.MS_PRIVATE, recursive=True)
    mount.mount(b"overlay", b"/sys", b"overlay", 0, b",".join(words))
    try:
        fd = mount.open_tree(b"/sys", clone=True)
    finally:
        mount.umount(b"/sys", mount.MNT_DETACH)
    mount.set_attributes(fd, set=attributes)
    return fd


def filesystem(
    child: Child, slot: int, fstype: bytes, options: tuple[tuple[bytes, bytes | None], ...], attributes: int
) -> None:
    """A detached instance of any other file system, for a root."""
    child.source[slot] = mount.new_mount(fstype, list(options), attributes)


def propagation(_child: Child, flags: int) -> None:
    """Sets the propagation of every mount of the new mount namespace, so that ours stay out of the host's."""
    mount.set_attributes(mount.AT_FDCWD, path=b"/", propagation=flags, recursive=True)


def root(child: Child, slot: int, set: int, clear: int) -> None:
    """Places the root over "/": the old one stays below until pivot_root changes them."""
    fd = child.source.pop(slot)
    if set or clear:
        mount.set_attributes(fd, set=set, clear=clear)
    mount.set_attributes(fd, propagation=mount.MS_PRIVATE, recursive=True)
    mount.move_mount(fd, mount.AT_FDCWD, b"/")
    child.root = fd


def _target(child: Child, name: bytes, *, directory: bool, plain: bool = False) -> int:
    """Where to mount, inside the root; never over what the kernel says about itself in /proc."""
    clean = b"/" + b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
    if plain:
        # the kernel's own file systems go where their name says: a link there could show a decoy to who writes to them
        try:
            fd = path.open_at(
                child.root, clean[1:], os.O_PATH | os.O_DIRECTORY, path.RESOLVE_BENEATH | path.RESOLVE_NO_SYMLINKS
            )
        except FileNotFoundError:
            fd = path.make_directories(child.root, clean)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Failure("Invalid", f'mount "{text(name)}"', "the root has no ordinary directory there") from None
            raise
    else:
        fd = path.make_target(child.root, clean, directory=directory)
    if path.filesystem(fd) == path.PROC_MAGIC and clean not in PROC_ALLOWED and clean != b"/proc":
        os.close(fd)
        raise Failure(
            "Invalid",
            f'mount "{text(name)}"',
            "nothing may be mounted inside /proc",
            "only a few of its files may be replaced",
        )
    return fd


def _place(child: Child, fd: int, name: bytes, *, directory: bool, plain: bool = False) -> None:
    """Mounts fd at a path of the root.

    In the tmpfs that was placed last there is nothing but what was made here: no link, and no proc, could be in the way of a
    directory that mkdir(2) just made.
    """
    parent, _slash, last = name.rpartition(b"/")
    above, folder = child.fresh
    if directory and folder >= 0 and parent == above and last not in (b"", b".", b".."):
        try:
            os.mkdir(last, 0o755, dir_fd=folder)
        except FileExistsError:
            pass
        else:
            mount.move_mount(fd, folder, last)
            return
    child.fresh = (b"", -1)
    target = _target(child, name, directory=directory, plain=plain)
    try:
        mount.move_mount(fd, target)
    finally:
        os.close(target)


def _keep(child: Child, name: bytes, fd: int) -> None:
    """Remembers the descriptors of /proc, /sys, /dev and /dev/pts, or closes the mount's."""
    slot = _KEPT.get(name)
    if slot is not None and (slot == "dev" or path.filesystem(fd) == _MAGIC[slot]):
        setattr(child, slot, fd)
    else:
        os.close(fd)


def mount_new(
    child: Child,
    name: bytes,
    fstype: bytes,
    options: tuple[tuple[bytes, bytes | None], ...],
    attributes: int,
    propagation: int,
) -> None:
    """A new instance of a file system at a path of the root."""
    fd = child.take_ready((fstype, options, attributes))
    if fd < 0:
        fd = mount.new_mount(fstype, list(options), attributes)
    if propagation:
        mount.set_attributes(fd, propagation=propagation)
    if fstype == b"tmpfs":
        _copy_mode(child, name, fd, options)
    _place(child, fd, name, directory=True, plain=fstype in (b"proc", b"sysfs"))
    if fstype == b"tmpfs":
        child.fresh = (name, fd)  # it is closed with all the others, when the child is ready
        if name == b"/dev":
            child.dev = fd
    else:
        _keep(child, name, fd)


def _copy_mode(child: Child, name: bytes, fd: int, options: tuple[tuple[bytes, bytes | None], ...]) -> None:
    """A tmpfs without a mode takes that of the directory that it covers, as users of docker expect.

    Where there is none yet it keeps its own, 1777: the directory about to be made for it says nothing.
    """
    if any(key == b"mode" for key, _value in options):
        return
    try:
        covered = path.open_in(child.root, name)
    except FileNotFoundError:
        return
    try:
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(os.fstat(covered).st_mode))
    finally:
        os.close(covered)


def bind(child: Child, slot: int, name: bytes, set: int, clear: int, recursive: int, propagation: int) -> None:
    """Places a cloned source at a path of the root: on a directory for a directory, on a file for anything else.

    set and clear are for this mount; recursive ("rro" and the like) says for all below it as well.
    """
    fd = child.source.pop(slot)
    if set or clear:
        mount.set_attributes(fd, set=set, clear=clear, recursive=bool(recursive))
    if propagation:
        kind = propagation & ~mount.MS_REC
        mount.set_attributes(fd, propagation=kind, recursive=bool(propagation & mount.MS_REC))
    _place(child, fd, name, directory=stat.S_ISDIR(os.fstat(fd).st_mode))
    _keep(child, name, fd)


def remount(child: Child, name: bytes, set: int, clear: int) -> None:
    """Changes the attributes of the mount at a path of the root."""
    fd = path.open_in(child.root, name)
    try:
        mount.set_attributes(fd, set=set, clear=clear)
    finally:
        os.close(fd)


def link(child: Child, target: bytes, name: bytes) -> None:
    """A symbolic link at a path of the root; one that is there already stays."""
    parent, _slash, last = name.rpartition(b"/")
    folder = path.make_directories(child.root, parent)
    try:
        os.symlink(target, last, dir_fd=folder)
    except FileExistsError:
        pass
    finally:
        os.close(folder)


def directory(child: Child, name: bytes) -> None:
    """A directory at a path of the root, with its parents: the working directory."""
    os.close(path.make_directories(child.root, name))


def pivot(child: Child, flags: int) -> None:
    """pivot_root onto the root, the old one stacked over it and let go: no path leads out any more.

    flags is the propagation of the new root, 0 for private.
    """
    os.fchdir(child.root)
    mount.pivot_root(b".", b".")
    # slave first: letting go of the old tree must not unmount anything on the host
    mount.set_attributes(mount.AT_FDCWD, path=b".", propagation=mount.MS_SLAVE, recursive=True)
    mount.umount(b".", mount.MNT_DETACH)
    os.chdir(b"/")
    if flags:
        kind = flags & ~mount.MS_REC
        mount.set_attributes(mount.AT_FDCWD, path=b"/", propagation=kind, recursive=bool(flags & mount.MS_REC))


STEPS: dict[str, Function] = {
    "source": source,
    "overlay": overlay,
    "filesystem": filesystem,
    "propagation": propagation,
    "root": root,
    "mount": mount_new,
    "bind": bind,
    "remount": remount,
    "link": link,
    "directory": directory,
    "pivot": pivot,
}
