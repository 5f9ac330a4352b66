"""The kernel: discovery, config, variants, guards, decorators, contributions, spans. It knows no driver by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.kernel.config import LoadedConfig as LoadedConfig
    from wherry.kernel.kernel import Kernel as Kernel
    from wherry.kernel.variants import Drivers as Drivers

__all__ = ["Drivers", "Kernel", "LoadedConfig"]


def __getattr__(name: str) -> Any:
    """Looked up at first use (PEP 562): a driver's own process imports ``wherry.kernel.driver_main`` and needs none of these."""
    if name == "Kernel":
        from wherry.kernel.kernel import Kernel

        return Kernel
    if name == "LoadedConfig":
        from wherry.kernel.config import LoadedConfig

        return LoadedConfig
    if name == "Drivers":
        from wherry.kernel.variants import Drivers

        return Drivers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
