"""The process of netd: ``main``, with the bound and listening socket as descriptor 3."""

from __future__ import annotations

import resource
import signal
import socket

from wherry.linux import process
from wherry.linux.loop import Loop
from wherry_plugins.network.bridge.netd import forwarding
from wherry_plugins.network.bridge.netd.server import Server

LISTENER = 3


def main(version: str, table: str, path: str, hub: str) -> None:
    """Serves until there is nothing to do, or until it is told to stop.

    version: of the engine that starts it. path: of the socket. hub: the sandbox whose network namespace this is, "" for the host's,
    which is not ours alone.
    """
    process.set_name("wherry-netd")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hub:
        forwarding.leave_frames_alone()
    loop = Loop()
    Server(loop, socket.socket(fileno=LISTENER), version, table, path)
    loop.run()
