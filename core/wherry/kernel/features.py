"""What this Linux kernel can do: the flags of ``Context.features``, asked once for each engine."""

from __future__ import annotations

from functools import cache


@cache
def probe() -> frozenset[str]:
    """The features found. Asking costs some system calls, and neither a mount in sight nor a process."""
    from wherry.linux.probe import features

    return features()
