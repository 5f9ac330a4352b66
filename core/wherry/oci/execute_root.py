"""Executors of the steps that build the container's tree: sources, the root, mounts, binds, and the change of root."""

from __future__ import annotations

import errno
import os
import signal
import stat

from wherry.linux import caps, mount, namespaces, path, process
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
    wait, release = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = namespaces.clone3(namespaces.NEWUSER | namespaces.CLONE_CLEAR_SIGHAND)
    if pid == 0:
        try:
            os.close(release)
            os.read(wait, 1)  # until it is killed; or it ends with whoever would have
        finally:
            os._exit(0)
    try:
        os.close(wait)
        namespaces.write_id_maps(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(release)
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
    propagation: int,
) -> None:
    """Clones a host path's mount, detached, idmapped when maps are given; a later step places it."""
    try:
        fd = mount.clone_tree(name, recursive=bool(recursive), propagation=propagation)
    except FileNotFoundError:
        raise Failure("NotFound", f'bind source "{text(name)}"', "no such file or directory on the host") from None
    child.source[slot] = fd
    if propagation == mount.MS_SHARED:
        child.has_peers = True
    if uids or gids:
        userns = idmapped_userns(uids, gids)
        try:
            mount.set_attributes(fd, userns=userns, recursive=bool(recursive))
        finally:
            os.close(userns)


def device_source(child: Child, slot: int, name: bytes, mode: int, major: int, minor: int) -> None:
    """Clones the host's node of a device: the one at the path that the container wants it at, else any in /dev. Never another one's."""
    wanted = stat.S_IFMT(mode), os.makedev(major, minor)
    fd = _node(name, wanted)
    if fd < 0:
        for directory, _names, files in os.walk(b"/dev"):
            for file in files:
                if fd < 0:
                    fd = _node(directory + b"/" + file, wanted)
    if fd < 0:
        kind = "block" if stat.S_ISBLK(mode) else "character"
        raise Failure(
            "NotFound", f'device "{text(name)}"', f"the host has no node of the {kind} device {major}:{minor} in /dev"
        )
    child.source[slot] = fd


def _node(name: bytes, wanted: tuple[int, int]) -> int:
    """A detached clone of the node at a path, if it is of that device; else -1."""
    try:
        found = os.lstat(name)
        if (stat.S_IFMT(found.st_mode), found.st_rdev) != wanted:
            return -1
        fd = mount.clone_tree(name, flags=mount.AT_SYMLINK_NOFOLLOW)
    except OSError:
        return -1
    found = os.fstat(fd)
    if (stat.S_IFMT(found.st_mode), found.st_rdev) == wanted:
        return fd
    os.close(fd)
    return -1


def overlay(
    child: Child, slot: int, lowers: tuple[bytes, ...], options: tuple[tuple[bytes, bytes | None], ...], attributes: int
) -> None:
    """A detached overlay."""
    child.source[slot] = _overlay(lowers, options, attributes)


def _overlay(lowers: tuple[bytes, ...], options: tuple[tuple[bytes, bytes | None], ...], attributes: int) -> int:
    """lowerdir+ (Linux 6.8) takes each layer by itself; before it there was one page for all of them."""
    each: list[tuple[mount.Path, mount.Path | int | None]] = [(b"lowerdir+", lower) for lower in lowers]
    try:
        return mount.new_mount(b"overlay", [*each, *options], attributes)
    except OSError as error:
        # EINVAL: no such option, or a path beyond the 255 bytes of one fsconfig value
        if error.errno != errno.EINVAL:
            raise
        return _old_overlay(lowers, options, attributes)


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
        fd = mount.clone_tree(b"/sys")
    finally:
        mount.umount(b"/sys", mount.MNT_DETACH)
    mount.set_attributes(fd, set=attributes)
    return fd


def mapped_overlay(
    child: Child,
    slot: int,
    lowers: tuple[bytes, ...],
    options: tuple[tuple[bytes, bytes | None], ...],
    attributes: int,
    uids: tuple[tuple[int, ...], ...],
    gids: tuple[tuple[int, ...], ...],
) -> None:
    """A detached overlay of idmapped layers (Linux 5.19): on disk, files have the ids they have inside."""
    layers: list[int] = []
    userns = idmapped_userns(uids, gids)
    try:

        def mapped(name: bytes) -> int:
            layers.append(mount.clone_tree(name))
            mount.set_attributes(layers[-1], userns=userns)
            return layers[-1]

        trees = [mapped(lower) for lower in lowers]
        given = dict(options)
        upper, work = given.pop(b"upperdir", None), given.pop(b"workdir", None)
        rest = tuple(given.items())
        directories: tuple[tuple[bytes, int, bytes], ...] = ()
        if upper and work:  # both have to lie on one mount
            above, _slash, first = upper.rpartition(b"/")
            if work.rpartition(b"/")[0] != above:
                raise Failure("Invalid", f'overlay of "{text(upper)}"', "its workdir lies in another directory")
            tree = mapped(above)
            directories = ((b"upperdir", tree, first), (b"workdir", tree, work.rpartition(b"/")[2]))
        held = caps.get()
        process.set_fs_ids(_outside(uids), _outside(gids))
        try:
            caps.set(*held)
            child.source[slot] = _overlay_of(trees, directories, rest, attributes)
        finally:
            process.set_fs_ids(0, 0)
    finally:
        for fd in (*layers, userns):
            os.close(fd)


def _outside(ranges: tuple[tuple[int, ...], ...]) -> int:
    """Who the container's root is here. An overlay makes files of its own as whoever mounted it, which the map has to hold."""
    for inside, outside, _size in ranges:
        if inside == 0:
            return outside
    return 0


def _overlay_of(
    trees: list[int],
    directories: tuple[tuple[bytes, int, bytes], ...],
    options: tuple[tuple[bytes, bytes | None], ...],
    attributes: int,
) -> int:
    try:
        return _overlay_by_fd(trees, directories, options, attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _overlay_by_path(trees, directories, options, attributes)


def _overlay_by_fd(
    trees: list[int],
    directories: tuple[tuple[bytes, int, bytes], ...],
    options: tuple[tuple[bytes, bytes | None], ...],
    attributes: int,
) -> int:
    """Layers as descriptors, which overlay takes since Linux 6.13."""
    opened: list[int] = []
    try:
        data: list[tuple[mount.Path, mount.Path | int | None]] = [(b"lowerdir+", tree) for tree in trees]
        for key, tree, name in directories:
            opened.append(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree))
            data.append((key, opened[-1]))
        return mount.new_mount(b"overlay", [*data, *options], attributes)
    finally:
        for fd in opened:
            os.close(fd)


def _overlay_by_path(
    trees: list[int],
    directories: tuple[tuple[bytes, int, bytes], ...],
    options: tuple[tuple[bytes, bytes | None], ...],
    attributes: int,
) -> int:
    """Layers as paths: each is mounted below /sys of a private mount namespace for as long as it takes."""
    namespaces.unshare(namespaces.NEWNS)
    mount.set_attributes(mount.AT_FDCWD, path=b"/", propagation=mount.MS_PRIVATE, recursive=True)
    mount.mount(b"tmpfs", b"/sys", b"tmpfs")
    try:
        placed: dict[int, bytes] = {}
        for tree in (*trees, *(tree for _key, tree, _name in directories)):
            if tree not in placed:
                placed[tree] = b"/sys/%d" % len(placed)
                os.mkdir(placed[tree])
                mount.move_mount(tree, mount.AT_FDCWD, placed[tree])
        names = tuple(placed[tree] for tree in trees)
        own = tuple((key, placed[tree] + b"/" + name) for key, tree, name in directories)
        return _overlay(names, (*own, *options), attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Failure(
            "FailedPrecondition",
            "overlay of idmapped layers",
            "this kernel takes none (Linux 5.19 does)",
            "choose --snapshotter vfs",
        ) from None
    finally:
        mount.umount(b"/sys", mount.MNT_DETACH)


def given(child: Child, slot: int) -> None:
    """A detached mount that came with the plan. It is no descriptor of the container's any more."""
    if not child.fds:
        raise Failure("Invalid", "plan", "has no descriptor of a mount")
    child.source[slot], *left = child.fds
    child.fds = tuple(left)


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


def verify_private(child: Child, target: int, name: bytes) -> None:
    """Failure (Invalid) where what is mounted on target would appear on the host: in a bind that is a peer of its source, as asked."""
    if child.has_peers and mount.is_shared(target):
        raise Failure(
            "Invalid",
            f'mount "{text(name)}"',
            "it would appear on the host as well, as it lies in a bind that is shared",
            "ask for rslave there",
        )


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
        verify_private(child, target, name)
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


def bind(child: Child, slot: int, name: bytes, set: int, clear: int, recursive: int) -> None:
    """Places a cloned source at a path of the root: on a directory for a directory, on a file for anything else.

    set and clear are for this mount; recursive ("rro" and the like) says for all below it as well.
    """
    fd = child.source.pop(slot)
    if set or clear:
        mount.set_attributes(fd, set=set, clear=clear, recursive=bool(recursive))
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

    The old tree is slave since the step "propagation": letting go of it unmounts nothing on the host. flags is the propagation of the
    new root, 0 for private.
    """
    os.fchdir(child.root)
    mount.pivot_root(b".", b".")
    mount.umount(b".", mount.MNT_DETACH)
    os.chdir(b"/")
    if flags:
        kind = flags & ~mount.MS_REC
        mount.set_attributes(mount.AT_FDCWD, path=b"/", propagation=kind, recursive=bool(flags & mount.MS_REC))


STEPS: dict[str, Function] = {
    "source": source,
    "device_source": device_source,
    "overlay": overlay,
    "mapped_overlay": mapped_overlay,
    "given": given,
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
