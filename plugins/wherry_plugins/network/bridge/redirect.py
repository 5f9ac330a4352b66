"""Port 53 of a container's resolver, without taking it: a server of the container's own may listen on every address of port 53.

The resolver's sockets have ports that the kernel chose. Four rules in the container's network namespace exchange them for 53 in
what goes to and comes from the resolver's address; both directions are sent over the loopback interface, so that one chain at
the output hook sees them. Nothing is tracked. Written by nf_tables messages (linux/netfilter/nf_tables.h) over a socket that was
opened there; the library for such text works only in the namespace of its caller.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable

from wherry.linux.netlink import ACK, APPEND, CREATE, EXCL, REQUEST, attribute, be32, message, nest, text

TABLE, CHAIN = "wherry-names", "output"
_PORT = 53
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0xA00, 0xA02, 0xA03, 0xA06
_BEGIN, _END = 0x10, 0x11
_IPV4 = 2  # NFPROTO_IPV4
_LOCAL_OUT = 3
_NETWORK, _TRANSPORT = 1, 2  # where a payload's offset counts from
#: protocol -> its number, and where its checksum is
_PROTOCOLS = {socket.SOCK_DGRAM: (socket.IPPROTO_UDP, 6), socket.SOCK_STREAM: (socket.IPPROTO_TCP, 16)}
_SOURCE, _DESTINATION = 12, 16  # of the address in an IPv4 header; of the port, in TCP's and UDP's: 0 and 2


def exchange(fd: int, address: str, ports: dict[int, int]) -> None:
    """Takes an AF_NETLINK socket (NETLINK_NETFILTER) over and writes the rules, in place of those that are there.

    ports: of each type of socket (SOCK_DGRAM, SOCK_STREAM) the port that it has. OSError: what the kernel refused.
    """
    wanted = socket.inet_aton(address)
    name = text(1, TABLE)
    hook = be32(1, _LOCAL_OUT) + be32(2, 0)
    chain = name + text(3, CHAIN) + nest(4, hook) + text(7, "filter")
    messages = [(_NEWCHAIN, CREATE, chain)]
    for kind, number in ports.items():
        protocol, checksum = _PROTOCOLS[socket.SocketKind(kind)]
        for at, port, old, new in ((_DESTINATION, 2, _PORT, number), (_SOURCE, 0, number, _PORT)):
            rule = [
                *_equal(_NETWORK, 9, bytes([protocol])),
                *_equal(_NETWORK, at, wanted),
                *_equal(_TRANSPORT, port, struct.pack(">H", old)),
                _expression("immediate", be32(1, 1) + nest(2, attribute(1, struct.pack(">H", new)))),
                _expression(
                    "payload",
                    be32(5, 1) + be32(2, _TRANSPORT) + be32(3, port) + be32(4, 2) + be32(6, 1) + be32(7, checksum),
                ),
            ]
            expressions = b"".join(nest(1, one) for one in rule)
            messages.append((_NEWRULE, CREATE | APPEND, text(1, TABLE) + text(2, CHAIN) + nest(4, expressions)))
    with socket.socket(fileno=fd) as sock:
        sock.settimeout(30)
        try:
            _send(sock, [(_NEWTABLE, CREATE | EXCL, name), *messages], 0)
        except FileExistsError:
            # An engine before this one has written them. Taking a table away costs the kernel some milliseconds.
            _send(sock, [(_DELTABLE, 0, name), (_NEWTABLE, CREATE | EXCL, name), *messages], 100)


def _send(sock: socket.socket, messages: Iterable[tuple[int, int, bytes]], number: int) -> None:
    """One transaction. The kernel acknowledges each message or tells which ones it refuses, and then does none. number: below those
    of its messages, and above those of a transaction before it on the same socket."""
    batch = struct.pack(">BBH", 0, 0, 10)  # NFNL_SUBSYS_NFTABLES
    data, waiting = message(_BEGIN, REQUEST, number, batch), set()
    for type, flags, body in messages:
        number += 1
        waiting.add(number)
        data += message(type, REQUEST | ACK | flags, number, struct.pack(">BBH", _IPV4, 0, 0) + body)
    sock.send(data + message(_END, REQUEST, number + 1, batch))
    while waiting:
        said = sock.recv(1 << 16)
        while len(said) >= 20:
            length, type, _flags, sequence, _port, code = struct.unpack_from("=IHHIIi", said)
            said = said[(length + 3) & ~3 :]
            if type == 2 and code and sequence in waiting:  # NLMSG_ERROR
                raise OSError(-code, os.strerror(-code), "rules of the resolver")
            waiting.discard(sequence)


def _expression(name: str, data: bytes) -> bytes:
    return text(1, name) + nest(2, data)


def _equal(base: int, offset: int, value: bytes) -> tuple[bytes, bytes]:
    """Loads a piece of the packet and goes on only where it is that value."""
    load = be32(1, 1) + be32(2, base) + be32(3, offset) + be32(4, len(value))
    return _expression("payload", load), _expression("cmp", be32(1, 1) + be32(2, 0) + nest(3, attribute(1, value)))
