"""Ends connections that take too long as a whole: a socket's own timeout starts again with every byte that drips in."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import suppress

_TICK = 0.25
_IDLE_TICKS = 20


class Watchdog:
    """Alarms for sockets, on one thread that lives while there are any and a little longer. Thread-safe.

    An alarm is set for every piece of a body and hardly ever goes off: so nobody is woken for it, the thread looks by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alarms: dict[int, tuple[float, socket.socket]] = {}
        self._numbers = itertools.count(1)
        self._running = False

    def set(self, sock: socket.socket, seconds: float) -> int:
        """Shuts the socket down after so many seconds, so that whoever waits for it is told; the number of the alarm."""
        number = next(self._numbers)
        with self._lock:
            self._alarms[number] = (time.monotonic() + seconds, sock)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="wherry-watchdog", daemon=True).start()
        return number

    def clear(self, number: int) -> bool:
        """The wait is over; True where the alarm went off before."""
        with self._lock:
            return self._alarms.pop(number, None) is None

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(_TICK)
            with self._lock:
                idle = 0 if self._alarms else idle + 1
                if idle > _IDLE_TICKS:
                    self._running = False
                    return
                now = time.monotonic()
                for number in [number for number, (until, _sock) in self._alarms.items() if until <= now]:
                    _until, sock = self._alarms.pop(number)
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
