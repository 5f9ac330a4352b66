"""The shim as drivers get it."""

from __future__ import annotations

from typing import cast

from wherry.interfaces.process import Shim

_METHODS = tuple(name for name in vars(Shim) if not name.startswith("_"))


class _DriverShim:
    __slots__ = _METHODS

    def __init__(self, shim: Shim) -> None:
        for name in _METHODS:
            setattr(self, name, getattr(shim, name))


def for_drivers(shim: Shim) -> Shim:
    """The methods of ``wherry.api.Shim`` and no others: what quits, replaces or acknowledges is the engine's alone."""
    return cast(Shim, _DriverShim(shim))


__all__ = ["for_drivers"]
