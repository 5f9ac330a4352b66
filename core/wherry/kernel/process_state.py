"""State that belongs to the whole process and that a plugin must not change: watched around imports, probes and inits.

Per-call watching is out of reach: umask, working directory and environment are shared by all threads, so a change between two
calls can't be laid at one plugin's door. A plugin that may change them at any time belongs in a process of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from wherry.kernel.log import logger


@contextmanager
def kept(plugin: str) -> Iterator[None]:
    """Puts back umask, working directory, environment, standard streams and a few interpreter settings; logs what changed."""
    before = _snapshot()
    try:
        yield
    finally:
        after = _snapshot()
        for what, old in before.items():
            if after[what] != old:
                _restore(what, old)
                logger.warning("plugin {} changed the {} of the process: put back", plugin, what)


def umask() -> int:
    """The umask, without the moment in which reading it by umask(2) would set another (proc_pid_status(5), "Umask")."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _snapshot() -> dict[str, object]:
    try:
        directory = os.getcwd()
    except OSError:
        directory = ""
    return {
        "umask": umask(),
        "working directory": directory,
        "environment": dict(os.environ),
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "socket timeout": socket.getdefaulttimeout(),
        "recursion limit": sys.getrecursionlimit(),
        "signal handlers": (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)),
    }


def _restore(what: str, old: object) -> None:
    match what, old:
        case "umask", int(mask):
            os.umask(mask)
        case "working directory", str(directory):
            with suppress(OSError):
                os.chdir(directory or "/")
        case "environment", dict(environment):
            os.environ.clear()
            os.environ.update(environment)
        case "standard streams", (stdin, stdout, stderr):
            sys.stdin, sys.stdout, sys.stderr = stdin, stdout, stderr
        case "socket timeout", timeout:
            socket.setdefaulttimeout(timeout)  # type: ignore[arg-type]
        case "recursion limit", int(limit):
            sys.setrecursionlimit(limit)
        case "signal handlers", (term, interrupt):
            # Only the main thread may, and only there can a plugin have changed them.
            with suppress(ValueError, TypeError):
                signal.signal(signal.SIGTERM, term)  # type: ignore[arg-type]
                signal.signal(signal.SIGINT, interrupt)  # type: ignore[arg-type]
