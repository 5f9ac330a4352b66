"""The process of netd: ``main(table, path of the socket)``, with the bound and listening socket as descriptor 3."""

from __future__ import annotations

import resource
import signal
import socket

from wherry.linux import process
from wherry.linux.loop import Loop
from wherry_plugins.network.bridge.netd.server import Server

LISTENER = 3


def main(table: str, path: str) -> None:
    """Serves until there is nothing to do, or until it is told to stop."""
    process.set_name("wherry-netd")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = Loop()
    Server(loop, socket.socket(fileno=LISTENER), table, path)
    loop.run()
