"""Connections that the kernel remembers (linux/netfilter/nfnetlink_conntrack.h): those of UDP, which has no end of its own.

A sender that keeps its port stays with the translation of its first datagram, whatever the rules say by then. So with a container
its flows are forgotten.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

from wherry.kit.networks.netlink import attribute, nest
from wherry_plugins.network.bridge.transaction import PROTOCOL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SUBSYSTEM = 1
_GET, _DELETE = 1, 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_ORIG, _REPLY, _ZONE = 1, 2, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCES = (1, 3)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_DESTINATIONS = (2, 4)
_PROTO_NUM, _PROTO_TARGET = 1, 3
_UDP = 17


class Flow:
    """One that is remembered. asked and to_port: where the first datagram was sent to; answerer: the address of who answers it."""

    __slots__ = ("_orig", "_zone", "answerer", "asked", "family", "protocol", "to_port")

    def __init__(self, family: int, attributes: dict[int, bytes]) -> None:
        orig, reply = attributes[_ORIG], attributes[_REPLY]
        sent = dict(_attributes(orig))
        proto = dict(_attributes(sent[_TUPLE_PROTO]))
        self.family = family
        self.protocol = proto[_PROTO_NUM][0]
        self.to_port = int.from_bytes(proto.get(_PROTO_TARGET, b""), "big")
        self.asked = _address(sent[_TUPLE_IP], _DESTINATIONS)
        self.answerer = _address(dict(_attributes(reply))[_TUPLE_IP], _SOURCES)
        self._orig = orig
        self._zone = attributes.get(_ZONE)

    def message(self) -> bytes:
        """The attributes that name it."""
        named = nest(_ORIG, self._orig)
        return named + (attribute(_ZONE, self._zone) if self._zone is not None else b"")


def forget(wanted: Callable[[Flow], bool]) -> int:
    """Forgets the flows of UDP that are wanted; their number. What goes wrong is told on stderr: the port works for others."""
    count = 0
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, PROTOCOL) as sock:
            sock.settimeout(5)
            for family in (socket.AF_INET, socket.AF_INET6):
                for flow in [flow for flow in _flows(sock, family) if flow.protocol == _UDP and wanted(flow)]:
                    _send(sock, _DELETE, _REQUEST | _ACK, flow.family, flow.message())
                    sock.recv(1 << 16)
                    count += 1
    except (OSError, KeyError, struct.error) as error:
        sys.stderr.write(f"connection tracking: {error}\n")
    return count


def _flows(sock: socket.socket, family: int) -> Iterator[Flow]:
    _send(sock, _GET, _REQUEST | _DUMP, family, b"")
    while True:
        data = sock.recv(1 << 17)
        at = 0
        while at + 16 <= len(data):
            length, type = struct.unpack_from("=IH", data, at)
            if type in (_DONE, _ERROR) or length < 16:
                return
            yield Flow(family, dict(_attributes(data[at + 20 : at + length])))
            at += (length + 3) & ~3


def _send(sock: socket.socket, message: int, flags: int, family: int, payload: bytes) -> None:
    header = struct.pack("=IHHII", 20 + len(payload), _SUBSYSTEM << 8 | message, flags, 1, 0)
    sock.send(header + struct.pack("=BBH", family, 0, 0) + payload)


def _address(ip: bytes, types: tuple[int, int]) -> str:
    found = dict(_attributes(ip))
    return next((str(ipaddress.ip_address(found[type])) for type in types if type in found), "")


def _attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(payload):
        length, type = struct.unpack_from("=HH", payload, at)
        if length < 4:
            return
        yield type & 0x3FFF, payload[at + 4 : at + length]
        at += (length + 3) & ~3
