"""Messages with descriptors over a Unix socket (unix(7), SCM_RIGHTS): how a driver talks to a process of its own."""

from __future__ import annotations

from wherry.linux.channel import FrameChannel
from wherry.linux.framing import FrameError, Reader, encode, send

__all__ = ["FrameChannel", "FrameError", "Reader", "encode", "send"]
