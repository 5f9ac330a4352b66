"""Processes by descriptor, and what this process is allowed: pidfd_open(2), capabilities(7), prctl(2)."""

from __future__ import annotations

from wherry.linux.caps import get as get_capabilities
from wherry.linux.caps import mask as capability_mask
from wherry.linux.caps import set as set_capabilities
from wherry.linux.pidfd import open as open_pidfd
from wherry.linux.pidfd import send_signal, start_time
from wherry.linux.process import set_name, set_no_new_privileges

__all__ = [
    "capability_mask",
    "get_capabilities",
    "open_pidfd",
    "send_signal",
    "set_capabilities",
    "set_name",
    "set_no_new_privileges",
    "start_time",
]
