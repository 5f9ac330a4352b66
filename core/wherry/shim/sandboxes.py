"""Sandboxes: namespaces held as descriptors, for the containers that share them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from wherry.linux import caps, mount, namespaces, pidfd, process, userns
from wherry.oci.sandbox import elsewhere
from wherry.shim.task import same_process
from wherry.shim.wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from wherry.shim.server import Shim

_READY = b"r"
_FILES = ("user", "net", "ipc", "uts", "pid")


class HeldSandbox:
    """One sandbox: record is a wherry.api.Sandbox as JSON, pause the pid of its first process or 0, whose pidfd is fds["pause"]."""

    __slots__ = ("fds", "pause", "record")

    def __init__(self, record: dict[str, Any], fds: dict[str, int], pause: int = 0) -> None:
        self.record = record
        self.fds = fds
        self.pause = pause


class Sandboxes:
    """By id."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._boxes: dict[str, HeldSandbox] = {}
        self._own_net = -1

    def __iter__(self) -> Iterator[HeldSandbox]:
        return iter(tuple(self._boxes.values()))

    def get(self, id: str) -> HeldSandbox:
        box = self._boxes.get(id)
        if box is None:
            raise Fault("NotFound", f'sandbox "{id}"', "no such sandbox")
        return box

    def fds(self, id: str) -> dict[str, int]:
        """Namespace descriptors by type, ours."""
        return {type: fd for type, fd in self.get(id).fds.items() if type != "pause"}

    def create(self, record: dict[str, Any]) -> dict[str, Any]:
        """Makes it; a repeat answers what the first did."""
        id = record["id"]
        if id in self._boxes:
            return self._boxes[id].record
        fds = self._shim.reserve.namespaces(record)
        pause = 0
        if record.get("pid"):
            try:
                pause, fds["pause"] = make_pause(fds)
                fds["pid"] = os.open(f"/proc/{pause}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            except BaseException:
                for fd in fds.values():
                    os.close(fd)
                raise
        self.put(HeldSandbox(record, fds, pause))
        return record

    def put(self, box: HeldSandbox) -> None:
        self._boxes[box.record["id"]] = box
        self._shim.ledger.note(sandbox=note(box))

    def keep(self, box: HeldSandbox) -> None:
        """One that the ledger knows already."""
        self._boxes[box.record["id"]] = box

    def remove(self, id: str) -> None:
        box = self._boxes.get(id)
        if box is None:
            return
        members = self._shim.tasks.members(id)
        if members:
            raise Fault("InUse", f'sandbox "{id}"', f"{members[0].name} is still {members[0].status}")
        end_pause(box)
        for fd in box.fds.values():
            os.close(fd)
        del self._boxes[id]
        self._shim.ledger.note(unbox=id)

    def namespace(self, id: str, type: str) -> int:
        """A descriptor, ours. NotFound where the sandbox has the host's."""
        fd = self.get(id).fds.get(type, -1)
        if fd < 0:
            raise Fault("NotFound", f'sandbox "{id}"', f"it has no {type} namespace of its own")
        return fd

    def socket(self, id: str, family: int, type: int, protocol: int) -> int:
        """A socket of the sandbox's network namespace, the caller's to close; of the host's, where that is shared.

        This thread, the only one, goes there and comes back; while coming back fails nothing else is done. A shim in a user namespace
        of its own sends a child, as the way back to the host's is closed to it.
        """
        box = self.get(id)
        fd = box.fds.get("net", -1)
        if fd < 0:
            return socket.socket(family, type, protocol).detach()
        if userns.confined():
            entered = {box.fds["user"]: namespaces.NEWUSER} if "user" in box.fds else {}
            made = lambda: socket.socket(family, type, protocol).detach()  # noqa: E731 - one call
            return elsewhere({**entered, fd: namespaces.NEWNET}, made)
        if self._own_net < 0:
            self._own_net = namespaces.open_own("network")
        namespaces.setns(fd, namespaces.NEWNET)
        try:
            return socket.socket(family, type, protocol).detach()
        finally:
            namespaces.setns(self._own_net, namespaces.NEWNET)

    def restore(self, record: dict[str, Any]) -> None:
        """After a shim was lost: from a live member's namespaces, else made anew."""
        id = record["id"]
        if id in self._boxes:
            return
        pause, started = record.pop("pause", 0), record.pop("pause_start", 0)
        handle = same_process(pause, started)
        anchors = [(pause, handle)] if handle >= 0 else []
        anchors += [(task.pid, task.pidfd) for task in self._shim.tasks.members(id) if task.pidfd >= 0]
        for pid, anchor in anchors:
            fds: dict[str, int] = {}
            try:
                for type in _FILES:
                    if wants(record, type):
                        fds[type] = os.open(f"/proc/{pid}/ns/{type}", os.O_RDONLY | os.O_CLOEXEC)
                pidfd.send_signal(anchor, 0)  # still the process that we mean
            except OSError:
                for fd in fds.values():
                    os.close(fd)
                continue
            if handle >= 0:
                fds["pause"] = handle
            self.put(HeldSandbox(record, fds, pause if handle >= 0 else 0))
            return
        if handle >= 0:
            os.close(handle)
        self.create(record)


def note(box: HeldSandbox) -> dict[str, Any]:
    """A sandbox as the ledger has it."""
    started = 0
    if box.pause:
        with contextlib.suppress(OSError):
            started = pidfd.start_time(box.pause)
    return {**box.record, "pause": box.pause, "pause_start": started}


def end_pause(box: HeldSandbox) -> None:
    """Ends its first process, and so the pid namespace."""
    handle = box.fds.get("pause", -1)
    if handle >= 0:
        with contextlib.suppress(ProcessLookupError):
            pidfd.send_signal(handle, signal.SIGKILL)


def wants(record: dict[str, Any], type: str) -> bool:
    """Whether a sandbox has a namespace of that type of its own."""
    if type == "net":
        return bool(record.get("netns", "") != "host")
    if type == "user":
        return bool((record.get("idmap") or {}).get("uids"))
    return bool(record.get(type, type != "pid"))


def make_pause(fds: Mapping[str, int]) -> tuple[int, int]:
    """Pid and pidfd of a process, our child, that is PID 1 of a new pid namespace, reaps what is left to it, and does nothing else.

    fds: the sandbox's other namespaces by type, in which it lives too, so that they can be had again from it. When this returns
    it has let go of the host's root and of every right: whoever comes may be one that looks into others (CAP_SYS_PTRACE).
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    flags = namespaces.NEWPID | namespaces.NEWNS | namespaces.CLONE_CLEAR_SIGHAND
    user = fds.get("user", -1)
    pid, handle = namespaces.clone3(flags if user < 0 else namespaces.CLONE_CLEAR_SIGHAND)
    if pid == 0:
        try:
            if user >= 0:
                namespaces.setns(user, namespaces.NEWUSER)
                pid, _handle = namespaces.clone3(flags | namespaces.CLONE_PARENT)
                if pid:
                    os.write(writer, b"%d\n" % pid)
                    os._exit(0)
            _pause(writer, [fds[type] for type in ("net", "ipc", "uts") if type in fds])
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        text = said.read()
    if user >= 0:
        os.close(handle)
        os.waitpid(pid, 0)
        number = text.replace(_READY, b"")
        if not number:
            raise OSError(1, os.strerror(1), "pause process")
        pid = int(number)
        handle = pidfd.open(pid)
    if _READY not in text:
        with contextlib.suppress(ProcessLookupError):
            pidfd.send_signal(handle, signal.SIGKILL)
        os.close(handle)
        raise OSError(1, os.strerror(1), "pause process")
    return pid, handle


def _pause(writer: int, joined: Sequence[int]) -> None:
    """Never returns."""
    try:
        for fd in joined:
            namespaces.setns(fd)
        process.close_others((writer,))
        process.set_name("wherry-pause")
        _let_go()
        os.write(writer, _READY)
        os.close(writer)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what nobody waits for
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _let_go() -> None:
    """An empty root in this process's own mount namespace, and no capability for good."""
    last = caps.last()
    mount.set_attributes(mount.AT_FDCWD, path="/", propagation=mount.MS_SLAVE, recursive=True)
    empty = mount.new_mount("tmpfs", [("nr_inodes", "2")], mount.ATTR_RDONLY)
    mount.move_mount(empty, mount.AT_FDCWD, "/")
    os.fchdir(empty)
    os.close(empty)
    mount.pivot_root(".", ".")
    mount.umount(".", mount.MNT_DETACH)
    os.chdir("/")
    caps.drop_bounding(0, last)
    caps.set(0, 0, 0)
    process.set_no_new_privileges()
