"""The namespaces that the members of a sandbox share, as nsfs descriptors that the shim holds."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping

from wherry.linux import namespaces, process, userns
from wherry.oci import execute_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def make_sandbox(sandbox: Mapping[str, Any]) -> dict[str, int]:
    """The namespaces of an encoded wherry.api.Sandbox by type ("user", "net", "ipc", "uts"), close-on-exec, the caller's to close.

    Without an id map this thread unshares them and goes back to its own by setns; with one a child is born in a user namespace
    first, so that it owns the others. A child also does it for a shim in a user namespace of its own, to which the host's
    others are closed: it could not go back. lo is up in a new network namespace. A netns path is opened, "host" is left out. A pid
    namespace cannot be made without a process: its members share that of the first one. Raises OSError; nothing is left then.
    """
    flags = 0
    types: list[str] = []
    netns = sandbox.get("netns", "")
    if netns == "":
        flags |= namespaces.NEWNET
        types.append("net")
    for type, flag in (("ipc", namespaces.NEWIPC), ("uts", namespaces.NEWUTS)):
        if sandbox.get(type, True):
            flags |= flag
            types.append(type)
    hostname = os.fsencode(sandbox.get("hostname", ""))
    idmap = sandbox.get("idmap") or {}
    made: dict[str, int] = {}
    try:
        if netns not in ("", "host"):
            made["net"] = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        if idmap.get("uids") or idmap.get("gids"):
            _born(made, flags, ["user", *types], hostname, idmap)
        elif flags and userns.confined():
            _born(made, flags, types, hostname, {})
        elif flags:
            _unshared(made, flags, types, hostname)
    except BaseException:
        for fd in made.values():
            os.close(fd)
        raise
    return made


def _open(type: str, pid: int | str = "thread-self") -> int:
    return os.open(f"/proc/{pid}/ns/{type}", os.O_RDONLY | os.O_CLOEXEC)


def _furnish(flags: int, hostname: bytes) -> None:
    if flags & namespaces.NEWNET:
        execute_process.bring_up_loopback()
    if flags & namespaces.NEWUTS and hostname:
        process.set_hostname(hostname)


def set_hostname(uts: int, hostname: bytes) -> None:
    """The name in a uts namespace (nsfs descriptor): this thread goes there and comes back, or a child goes where it could not."""
    if userns.confined():
        elsewhere({uts: namespaces.NEWUTS}, lambda: process.set_hostname(hostname))
        return
    own = _open("uts")
    try:
        namespaces.setns(uts, namespaces.NEWUTS)
        try:
            process.set_hostname(hostname)
        finally:
            namespaces.setns(own, namespaces.NEWUTS)
    finally:
        os.close(own)


def elsewhere(fds: Mapping[int, int], work: Callable[[], int | None]) -> int:
    """What work does in a child that entered these namespaces (nsfs descriptor -> NEW* flag), in order.

    Where work answers a descriptor, this process gets a duplicate of it, the caller's to close; else -1. Raises the OSError that
    entering or work raised.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        pid, pidfd = namespaces.clone3(namespaces.CLONE_CLEAR_SIGHAND)
        if pid == 0:
            try:
                for fd, flag in fds.items():
                    namespaces.setns(fd, flag)
                done = work()
                socket.send_fds(far, [b"\0"], [] if done is None else [done])
            except OSError as error:
                far.send(bytes([error.errno or 5]))
            finally:
                os._exit(0)
        os.close(pidfd)
        far.close()
        try:
            data, received, _flags, _address = socket.recv_fds(near, 1, 1)
        finally:
            os.waitpid(pid, 0)
    if data != b"\0":
        number = data[0] if data else 5
        raise OSError(number, os.strerror(number), "namespace")
    return received[0] if received else -1


def _unshared(made: dict[str, int], flags: int, types: list[str], hostname: bytes) -> None:
    """unshare(2), open, setns back: the way back is opened first, and taken whatever happens."""
    own: list[int] = []
    try:
        own.extend(_open(type) for type in types)
        namespaces.unshare(flags)
        try:
            for type in types:
                made[type] = _open(type)
            _furnish(flags, hostname)
        finally:
            for fd in own:
                namespaces.setns(fd)
    finally:
        for fd in own:
            os.close(fd)


def _born(made: dict[str, int], flags: int, types: list[str], hostname: bytes, idmap: Mapping[str, Any]) -> None:
    """A child, in a new user namespace where there is an id map, furnishes the others and reports by a byte; it is killed once
    they are open."""
    reader, writer = os.pipe()
    maps, mapped = os.pipe()
    process_dumpable = process.prctl(3)  # PR_GET_DUMPABLE
    process.set_dumpable(True)  # or its uid_map would be the host root's own
    try:
        if idmap:
            flags |= namespaces.NEWUSER
        pid, pidfd = namespaces.clone3(flags | namespaces.CLONE_CLEAR_SIGHAND)
        if pid == 0:
            _wait_in_child(maps, writer, flags, hostname)
    finally:
        process.prctl(process.PR_SET_DUMPABLE, 1 if process_dumpable == 1 else 0)
        for fd in (writer, maps):
            os.close(fd)
    try:
        if idmap:
            namespaces.write_id_maps(pid, idmap["uids"], idmap["gids"])
        os.write(mapped, b"m")
        answer = os.read(reader, 1)
        if answer != b"r":
            raise OSError(answer[0] if answer else 5, os.strerror(answer[0] if answer else 5), "sandbox")
        for type in types:
            made[type] = _open(type, pid)
    finally:
        os.close(reader)
        os.close(mapped)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _wait_in_child(maps: int, writer: int, flags: int, hostname: bytes) -> None:
    """Never returns."""
    answer = b"r"
    try:
        process.close_others((maps, writer))
        if os.read(maps, 1) != b"m":
            os._exit(1)
        if flags & namespaces.NEWUSER:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        try:
            _furnish(flags, hostname)
        except OSError as error:
            answer = bytes([error.errno or 5])
        os.write(writer, answer)
        os.read(maps, 1)  # until it is killed; or it ends with whoever would have
    finally:
        os._exit(1)
