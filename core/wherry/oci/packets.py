"""Packets with descriptors between the shim and a process of its that waits for a plan (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

LARGEST = 1 << 16
"""Bytes of one packet, at most."""
DESCRIPTORS = 200
"""Descriptors with one packet, at most; the kernel takes 253."""


def pair() -> tuple[int, int]:
    """Two descriptors, the caller's to close: a packet for one is read from the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.detach(), theirs.detach()


def send(channel: int, data: bytes, fds: Sequence[int]) -> None:
    """Never blocks. BlockingIOError for a full socket, ConnectionError when nobody is at the other end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, channel) as sock:
        try:
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))], socket.MSG_DONTWAIT)
        finally:
            sock.detach()


def receive(channel: int) -> tuple[bytes, array.array[int]]:
    """One packet and its descriptors. The end of the channel is the end of this process, as nobody is left to want it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, channel) as sock:
        data, ancillary, _flags, _address = sock.recvmsg(
            LARGEST, socket.CMSG_SPACE(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
        )
        sock.detach()
    if not data:
        os._exit(125)
    fds = array.array("i")
    for _level, _kind, payload in ancillary:
        fds.frombytes(payload)
    return data, fds
