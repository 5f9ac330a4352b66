"""Threads, where the machine may have none left: pids(7) of a control group, RLIMIT_NPROC, memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from wherry.errors import Unavailable


def start(target: Callable[..., Any], name: str, args: tuple[Any, ...] = ()) -> threading.Thread:
    """A daemon thread that runs. Unavailable when it can't be started; the caller then has what it had."""
    thread = threading.Thread(target=target, name=name, args=args, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise Unavailable(
            f'thread "{name}"',
            str(error) or "no memory",
            "see the pids limit of the engine's control group, and memory",
        ) from None
    return thread


__all__ = ["start"]
