"""The Engine Protocol over a socket: what ``wherry.connect`` answers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from wherry.api import Engine
from wherry.rpc import wire

if TYPE_CHECKING:
    from types import TracebackType


class RemoteEngine:
    """Every method of ``wherry.api.Engine``, answered by the resident engine. A context manager; ``close`` ends only the
    connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._proxy: Any = wire.Proxy(Engine, sock)
        self._socket = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proxy, name)

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Containers and engine stay as they are."""
        self._proxy.close()
        self._socket.close()
