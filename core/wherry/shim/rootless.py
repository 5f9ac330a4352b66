"""The user and mount namespace that an ordinary user's shim lives in, with its engine, its workers and its containers.

Who starts the shim enters it before the shim's interpreter begins. The maps are written from a child left outside. What the
namespaces are is noted in ``<run>/namespaces``; whoever lives in them holds them: shim, logger, engine or a container. So a shim after
a lost one goes where the others still are, or else into new ones.
"""

from __future__ import annotations

import contextlib
import json
import os

from wherry.linux import mount
from wherry.linux import namespaces as ns
from wherry.oci import idmaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wherry.oci.idmaps import IdMaps

_FILE = "namespaces"
_MAP = "/proc/self/uid_map"


def enter(run: str, maps: IdMaps) -> None:
    """This process, which has one thread, is root in the namespaces of this run directory afterwards. OSError, IdMapError."""
    if not _join(run):
        _make(maps)
    # what the host mounts meanwhile is seen, what is mounted here stays here
    mount.set_attributes(mount.AT_FDCWD, path="/", propagation=mount.MS_SLAVE, recursive=True)
    _note(run, maps.single)


def _make(maps: IdMaps) -> None:
    """New namespaces; a child writes the maps from outside, and is waited for."""
    ready, go = os.pipe2(os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            if os.read(ready, 1) == b"m":
                idmaps.write(parent, maps)
                os.write(writer, b"m")
        except Exception as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(ready)
    os.close(writer)
    try:
        try:
            ns.unshare(ns.NEWUSER | ns.NEWNS)
        except OSError as error:
            raise idmaps.IdMapError(
                "user namespace",
                (error.strerror or "").lower(),
                "an ordinary user needs one: see user.max_user_namespaces and kernel.unprivileged_userns_clone of sysctl(8)",
            ) from None
        os.write(go, b"m")
        answer = os.read(reader, 4096)
    finally:
        os.close(go)
        os.close(reader)
        os.waitpid(pid, 0)
    if answer != b"m":
        what, _colon, cause = (
            answer.decode("utf-8", "replace") or "user namespace: its maps were not written"
        ).partition(": ")
        raise idmaps.IdMapError(what, cause)


def _identity(pid: int | str) -> tuple[str, str]:
    return os.readlink(f"/proc/{pid}/ns/user"), os.readlink(f"/proc/{pid}/ns/mnt")


def _note(run: str, single: str) -> None:
    user, mnt = _identity("self")
    with open(_MAP, encoding="ascii") as file:
        record = {"user": user, "mnt": mnt, "map": file.read(), "single": single}
    temporary = f"{run}/{_FILE}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        json.dump(record, file)
    os.rename(temporary, f"{run}/{_FILE}")


def read(run: str) -> dict[str, str]:
    """What the note says: user and mnt as readlink(2) shows them, map, and why there is a single id; {} without one."""
    try:
        with open(f"{run}/{_FILE}", encoding="ascii") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _join(run: str) -> bool:
    """Enters the noted namespaces where somebody still lives in them; without the mount namespace a new one is made."""
    record = read(run)
    if not record:
        return False
    user = mnt = -1
    try:
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                found = _identity(name)
                if found[0] != record.get("user"):
                    continue
                if user < 0:
                    user = _opened(name, "user", found[0])
                if found[1] == record.get("mnt"):
                    mnt = _opened(name, "mnt", found[1])
                    break
        if user < 0:
            return False
        ns.setns(user, ns.NEWUSER)
        with open(_MAP, encoding="ascii") as file:
            if file.read() != record.get("map"):  # a number used again, for another one of the same user's
                raise idmaps.IdMapError("user namespace", f"another one has the name {record.get('user')}", "try again")
        if mnt >= 0:
            ns.setns(mnt, ns.NEWNS)
        else:
            ns.unshare(ns.NEWNS)
        return True
    finally:
        for fd in (user, mnt):
            if fd >= 0:
                os.close(fd)


def _opened(pid: str, type: str, name: str) -> int:
    """A descriptor of that very namespace, not of one that the process entered meanwhile."""
    fd = os.open(f"/proc/{pid}/ns/{type}", os.O_RDONLY | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{fd}") != name:
        os.close(fd)
        raise OSError(2, os.strerror(2), name)
    return fd
