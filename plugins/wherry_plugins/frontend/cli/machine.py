"""The machine that containers share."""

from __future__ import annotations

import os


def memory() -> int:
    """Bytes that it has: MemTotal of proc_meminfo(5), by sysconf(3)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
