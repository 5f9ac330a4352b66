"""A loop in a thread, and sockets for it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from wherry.linux.loop import IN, Loop

BOUND = 30.0


class Running:
    """A loop in a thread; ``do`` calls a function there."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._jobs: list[Callable[[], None]] = []
        self._reader, self._writer = os.pipe()
        self.loop.add(self._reader, IN, self._work)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def _work(self, _events: int) -> None:
        os.read(self._reader, 1)
        self._jobs.pop(0)()

    def do(self, function: Callable[[], Any]) -> Any:
        found: list[Any] = []
        done = threading.Event()

        def job() -> None:
            try:
                found.append(function())
            finally:
                done.set()

        self._jobs.append(job)
        os.write(self._writer, b"x")
        assert done.wait(BOUND)
        return found[0]

    def close(self) -> None:
        self.do(self.loop.stop)
        self._thread.join(BOUND)
        self.loop.close()
        os.close(self._reader)
        os.close(self._writer)


def bound(kind: int, address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.bind((address, 0))
    sock.settimeout(BOUND)
    return sock


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)
