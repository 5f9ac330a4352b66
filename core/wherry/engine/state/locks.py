"""A lock for each key, made when wanted and gone when nobody wants it: callers for one blob or chain do its work once."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class KeyedLocks:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: Hashable, timeout: float = -1) -> Iterator[None]:
        """Waits for whoever has the key, then has it for the block. Not reentrant. TimeoutError after timeout seconds, -1: never."""
        with self._lock:
            lock, users = self._held.get(key, (None, 0))
            lock = lock or threading.Lock()
            self._held[key] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=timeout):
                raise TimeoutError(f"{key} is in use")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                lock, users = self._held[key]
                if users == 1:
                    del self._held[key]
                else:
                    self._held[key] = (lock, users - 1)


__all__ = ["KeyedLocks"]
