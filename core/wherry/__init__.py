"""Wherry: a container runtime built as a small kernel and a set of plugins.

``wherry.connect()`` reaches the resident engine; ``wherry.Engine`` puts one together in this process. Both are looked up at
first use (PEP 562), so that ``import wherry`` alone costs nothing: client and shim live in this package too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.engine.local import Engine as Engine
    from wherry.engine.server.client import connect as connect

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from wherry.engine.local import Engine

        return Engine
    if name == "connect":
        from wherry.engine.server.client import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
