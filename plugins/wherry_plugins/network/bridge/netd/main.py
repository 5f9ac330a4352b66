"""The process of netd: ``main``, with the bound and listening socket as descriptor 3."""

from __future__ import annotations

import resource
import signal
import socket

from wherry.kit import processes
from wherry.kit.loop import Loop
from wherry_plugins.network.bridge.netd import forwarding
from wherry_plugins.network.bridge.netd.server import NetdServer

LISTENER = 3
#: What it may do of what root may: rules and switches of the network, and its own files in whoever's directory. It reads what
#: containers send, so it has no more than it needs.
KEPT = ("NET_ADMIN", "DAC_OVERRIDE")


def main(version: str, table: str, path: str, hub: str) -> None:
    """Serves until there is nothing to do, or until it is told to stop.

    version: of the engine that starts it. path: of the socket. hub: the sandbox whose network namespace this is, "" for the host's,
    which is not ours alone.
    """
    processes.set_name("wherry-netd")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hub:
        forwarding.leave_frames_alone()
    kept = processes.get_capabilities()[1] & processes.capability_mask(KEPT)
    processes.set_capabilities(kept, kept, 0)
    processes.set_no_new_privileges()
    loop = Loop()
    NetdServer(loop, socket.socket(fileno=LISTENER), version, table, path)
    loop.run()
