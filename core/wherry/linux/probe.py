"""What this kernel and this process can do, found out by trying or looking, never by version."""

from __future__ import annotations

import os

from wherry.linux import cgroup, mount, pidfd


def _filesystems() -> frozenset[str]:
    with open("/proc/filesystems") as file:
        return frozenset(line.split()[-1] for line in file if line.strip())


def _new_mount_api() -> bool:
    try:
        os.close(mount.open_tree("/"))
    except OSError:
        return False
    return True


def _overlay(option: tuple[str, str | None]) -> bool:
    """Whether overlay takes an option: its context is made and thrown away."""
    try:
        context = mount.fsopen("overlay")
    except OSError:
        return False
    try:
        key, value = option
        mount.fsconfig(context, mount.FSCONFIG_SET_FLAG if value is None else mount.FSCONFIG_SET_STRING, key, value)
    except OSError:
        return False
    finally:
        os.close(context)
    return True


def _idmapped() -> bool:
    """mount_setattr(2) with a descriptor that is no user namespace says EINVAL, a kernel without it ENOSYS or EPERM."""
    try:
        tree = mount.clone_tree("/")
    except OSError:
        return False
    try:
        with open("/dev/null", "rb") as file:
            mount.set_attributes(tree, userns=file.fileno())
    except OSError as error:
        return error.errno in (9, 22)  # EBADF, EINVAL
    finally:
        os.close(tree)
    return True


def _pidfd_exit() -> bool:
    fd = pidfd.open(os.getpid())
    try:
        pidfd.exit_status(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def features() -> frozenset[str]:
    """Names as in ``wherry.api.Context``: "overlay", "overlay.userxattr", "overlay.lowerdir+", "mount.idmapped", "mount.fd",
    "cgroup1", "cgroup2", "userns", "seccomp", "time-ns", "pidfd.exit", "apparmor"."""
    layout = cgroup.detect()
    found = {
        "overlay": "overlay" in _filesystems(),
        "overlay.userxattr": _overlay(("userxattr", None)),
        "overlay.lowerdir+": _overlay(("lowerdir+", "/")),
        "mount.fd": _new_mount_api(),
        "mount.idmapped": _idmapped(),
        "cgroup1": not layout.unified and bool(layout.v1),
        "cgroup2": layout.unified,
        "userns": os.path.exists("/proc/self/ns/user") and _users() > 0,
        "seccomp": os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        "time-ns": os.path.exists("/proc/self/ns/time"),
        "pidfd.exit": _pidfd_exit(),
        "apparmor": apparmor(),
    }
    return frozenset(name for name, present in found.items() if present)


def _users() -> int:
    return cgroup.number("/proc/sys/user/max_user_namespaces") or 0


def apparmor() -> bool:
    """Whether AppArmor confines processes here."""
    try:
        return cgroup.read("/sys/module/apparmor/parameters/enabled").startswith("Y")
    except OSError:
        return False
