"""Netlink messages and their attributes as bytes (netlink(7)), for conversations that a start waits for.

Numbers of the header are in the machine's order; what a family wants in the network's order says so.
"""

from __future__ import annotations

import struct

REQUEST, ACK, EXCL, CREATE, APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
_NESTED = 0x8000  # NLA_F_NESTED


def message(type: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message with its header. body: the family's own header and attributes, a multiple of four bytes."""
    return struct.pack("=IHHII", 16 + len(body), type, flags, sequence, 0) + body


def attribute(type: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), type) + data + bytes(-len(data) % 4)


def nest(type: int, data: bytes) -> bytes:
    """data: attributes."""
    return attribute(type | _NESTED, data)


def text(type: int, value: str) -> bytes:
    return attribute(type, value.encode() + b"\0")


def u32(type: int, number: int) -> bytes:
    return attribute(type, struct.pack("=I", number))


def be32(type: int, number: int) -> bytes:
    return attribute(type, struct.pack(">I", number))
