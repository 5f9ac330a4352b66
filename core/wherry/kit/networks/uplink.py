"""The way out of a hub: the network namespace in which an ordinary user's bridges are.

A program of the host, pasta(1) or slirp4netns(1), moves packets between a tap interface in the hub and sockets of that user. It is
started when the hub is, once for all networks and containers in it, and goes with it. When it ends before, it is started again at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from ipaddress import ip_network

from wherry.api import Context
from wherry.errors import Error
from wherry.interfaces.process import TaskState
from wherry.kit import namespaces
from wherry.kit.networks.tap import Tap, TapProgram, pasta, slirp
from wherry.kit.programs import Programs, hold, wait_end

INTERFACE = "uplink"
log = logging.getLogger(__name__)
_SUBNET = ip_network("10.87.255.0/24")
_GATEWAY, _NAMESERVER, _OWN = (
    str(_SUBNET.network_address + number) for number in (2, 3, 100)
)  # as slirp4netns has them
_PATIENCE = 20.0
_SOON = 1.0  # seconds: who ends within them would end again
_TUN = "/dev/net/tun"


def reason() -> str:
    """Why there can be no way out here, or ""."""
    if not _program():
        return "neither pasta nor slirp4netns is installed (Debian: passt, slirp4netns)"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} is missing, or this user may not open it"
    return ""


def _program() -> str:
    """The path of the one that is used; pasta where there are both."""
    return shutil.which("pasta") or shutil.which("slirp4netns") or ""


class Uplink:
    """Of one hub, a sandbox. Thread-safe."""

    def __init__(self, context: Context, hub: str) -> None:
        self._context = context
        self._hub = hub
        self._programs = Programs(context.shim, f"{context.id}.uplink")
        self._lock = threading.Lock()
        self._warned = False
        self._watched = (0, 0)  # pid and start time of the program whose end is waited for

    @property
    def nameserver(self) -> str:
        """Where, in the hub, the host's name server answers, even if the host has it on its loopback; "" without a way out."""
        return "" if reason() else _NAMESERVER

    def make(self) -> None:
        """The hub has its way out when this returns. Where there can be none, that is told in the log once, and all the rest works.

        FailedPrecondition with what the program said, when it fails.
        """
        if cause := reason():
            if not self._warned:
                self._warned = True
                log.warning("networks have no way out: %s", cause)
            return
        with self._lock:
            netns = self._context.shim.namespace(self._hub, "net")
            try:
                name = f"uplink-{namespaces.identity(netns)[1]}"
                for task in list(self._context.shim.list(f"{self._context.id}.uplink.program")):
                    if task.exec_id == name and task.status == "running" and self._watch(task):
                        return
                    self._programs.end(task.exec_id)  # of a hub that is gone, or it was killed
                self._start(name, netns)
                if (started := self._programs.find(name)) is not None:
                    self._watch(started)
            finally:
                os.close(netns)

    def end(self) -> None:
        """Nothing happens when there is none."""
        with self._lock, contextlib.suppress(Error):
            self._watched = (0, 0)
            self._programs.sweep()

    def rest(self) -> None:
        """The program goes on, and is nobody's here any more."""
        with self._lock:
            self._watched = (0, 0)

    def _watch(self, task: TaskState) -> bool:
        """Starts it again when it ends, unless that was wished. One that ends soon is left to the next who needs it.

        False when it has ended already, whether or not the shim knows.
        """
        handle = hold(task.pid, task.start_time)
        if handle < 0:
            return False
        ended = wait_end(handle, 0)
        if ended or self._watched == (task.pid, task.start_time):
            os.close(handle)
            return not ended
        self._watched = watched = (task.pid, task.start_time)
        began = time.monotonic()

        def wait() -> None:
            try:
                while not wait_end(handle, 60):
                    pass
            finally:
                os.close(handle)
            with self._lock:
                wanted = self._watched == watched
            if wanted and time.monotonic() - began >= _SOON:
                log.warning("the way out of networks has ended; it is made again")
                try:
                    self.make()
                except (Error, OSError) as error:
                    log.warning("networks have no way out: %s", error)

        threading.Thread(target=wait, name="wherry-uplink", daemon=True).start()
        return True

    def _start(self, name: str, netns: int) -> None:
        program = _program()
        how = TapProgram(self._programs, name, netns, f"{self._context.run}/uplink", _PATIENCE)
        tap = Tap(INTERFACE, (f"{_OWN}/{_SUBNET.prefixlen}",), (_GATEWAY,), nameserver=_NAMESERVER)
        try:
            (pasta if os.path.basename(program) == "pasta" else slirp)(how, program, tap)
        except BaseException:
            self._programs.end(name)
            raise


__all__ = ["INTERFACE", "Uplink", "reason"]
