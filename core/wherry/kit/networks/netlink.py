"""Routing netlink (rtnetlink(7)) over a socket that somebody opened in the network namespace in question, and netlink(7)'s messages as
bytes, for any family. Numbers of the header are in the machine's order; what a family wants in the network's order says so.

pyroute2 writes and reads the messages, but for those of a start (``messages``); the conversation itself is a request and its
answers on one socket, so that the engine neither enters the namespace nor keeps a thread or an event loop for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any

__all__ = [
    "ACK", "ADD", "APPEND", "CREATE", "DELADDR", "DELLINK", "DELROUTE", "EXCL", "GETADDR", "GETLINK", "GETROUTE", "NEWADDR",
    "NEWLINK", "NEWROUTE", "REPLACE", "REQUEST", "ROOT", "SETLINK", "UP", "Rtnl", "address", "attribute", "be32", "link", "message",
    "nest", "route", "text", "u32",
]  # fmt: skip

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
REQUEST, ACK, ROOT, CREATE, EXCL, REPLACE, APPEND = 0x1, 0x4, 0x300, 0x400, 0x200, 0x100, 0x800
UP = 0x1  # IFF_UP (netdevice(7))
ADD = REQUEST | ACK | CREATE | EXCL

_NESTED = 0x8000  # NLA_F_NESTED
_DONE, _ERROR = 3, 2
_TIMEOUT = 30.0  # the kernel answers within the system call; this is for a kernel that is stuck
_HEAD = struct.Struct("=IHHII")
_IFNAMSIZ, _SIOCGIFINDEX, _SIOCGSKNS = 16, 0x8933, 0x894C


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


class Rtnl:
    """One conversation; close it, or use it as a context manager. Raises OSError with the kernel's errno."""

    def __init__(self, fd: int = -1) -> None:
        """fd: an AF_NETLINK socket, which is taken over; -1: a new one in this thread's own namespace."""
        if fd < 0:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        else:
            self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, *messages: tuple[int, int, Any, str]) -> None:
        """Sends (type, flags, message, what) at once; the error names the first one that failed. Those after it are carried out all the
        same, as the kernel reads them all. message: pyroute2's, or bytes as ``messages`` makes them; what "": it may fail."""
        named: dict[int, str] = {}
        if not messages:
            return
        data = b""
        for type, flags, message, what in messages:
            # what fails is told in any case: the answer to the last one says that all were read
            last = ACK if len(named) == len(messages) - 1 else 0
            data += self._encode(type, (flags & ~ACK) | REQUEST | last, message)
            named[self._sequence] = what
        self._socket.send(data)
        failed: OSError | None = None
        ended = False
        while not ended:
            for type, sequence, body in self._received():
                if type != _ERROR or sequence not in named:
                    continue
                ended = ended or sequence == self._sequence
                code = -struct.unpack_from("=i", body)[0]
                if code and named[sequence] and failed is None:
                    failed = OSError(code, os.strerror(code), named[sequence])
        if failed is not None:
            raise failed

    def index(self, name: str) -> int:
        """The index of a link (netdevice(7), SIOCGIFINDEX). OSError ENODEV when there is none."""
        text = os.fsencode(name)
        if len(text) >= _IFNAMSIZ:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16s24x", text))
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        return int(struct.unpack_from("=i", answer, _IFNAMSIZ)[0])

    def namespace(self) -> int:
        """A descriptor of the network namespace that this is a conversation in, the caller's to close (ioctl SIOCGSKNS)."""
        return int(fcntl.ioctl(self._socket, _SIOCGSKNS))

    def dump(self, type: int, message: Any) -> list[Any]:
        """All that the kernel has, as messages of the same class."""
        found = []
        for body in self._answers(type, ROOT, message, "dump"):
            one = message.__class__(_HEAD.pack(_HEAD.size + len(body), 0, 0, 0, 0) + body)
            one.decode()
            found.append(one)
        return found

    def _answers(self, type: int, flags: int, message: Any, what: str) -> list[bytes]:
        self._socket.send(self._encode(type, flags | REQUEST, message))
        found: list[bytes] = []
        while True:
            for kind, sequence, body in self._received():
                if sequence != self._sequence:
                    continue
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code), what)
                found.append(body)
            if not flags and found:
                return found

    def _encode(self, type: int, flags: int, body: Any) -> bytes:
        self._sequence += 1
        if isinstance(body, bytes):
            return message(type, flags, self._sequence, body)
        body["header"]["type"] = type
        body["header"]["flags"] = flags
        body["header"]["sequence_number"] = self._sequence
        body.encode()
        return bytes(body.data)

    def _received(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(1 << 17)
        offset = 0
        while offset + _HEAD.size <= len(data):
            length, type, _flags, sequence, _port = _HEAD.unpack_from(data, offset)
            yield type, sequence, data[offset + _HEAD.size : offset + length]
            offset += (length + 3) & ~3


def link(
    name: str = "", index: int = 0, *, up: bool | None = None, attributes: list[tuple[str, Any]] | None = None
) -> Any:
    """An RTM_*LINK message. up None: as it is."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["index"] = index
    if up is not None:
        message["flags"], message["change"] = UP if up else 0, UP
    message["attrs"] = [*([("IFLA_IFNAME", name)] if name else []), *(attributes or ())]
    return message


def address(index: int = 0, cidr: str = "") -> Any:
    """An RTM_*ADDR message. An IPv6 address is usable at once (IFA_F_NODAD): who gives it out knows that it is the only one."""
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    message = ifaddrmsg()
    if not cidr:
        return message
    ip, _, prefix = cidr.partition("/")
    six = ":" in ip
    message["family"] = socket.AF_INET6 if six else socket.AF_INET
    message["index"] = index
    message["prefixlen"] = int(prefix)
    message["attrs"] = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
    if six:
        message["flags"] = 0x02
    return message


def route(gateway: str = "", index: int = 0, metric: int = 0) -> Any:
    """An RTM_*ROUTE message: the default route by a gateway, in the main table; without one, for a dump of both families."""
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    message = rtmsg()
    message["family"] = socket.AF_UNSPEC  # else it is AF_INET
    if not gateway:
        return message
    message["family"] = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    message["table"], message["proto"], message["scope"], message["type"] = 254, 4, 0, 1
    message["attrs"] = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
    if metric:
        message["attrs"].append(("RTA_PRIORITY", metric))
    return message
