"""One thread's loop over descriptors and timers (epoll(7)), for the processes that a driver runs beside the engine."""

from __future__ import annotations

from wherry.linux.loop import ERR, HUP, IN, OUT, Loop, Timer

__all__ = ["ERR", "HUP", "IN", "OUT", "Loop", "Timer"]
