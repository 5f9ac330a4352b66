"""Port 53 of a container's resolver, without taking it: a server of the container's own may listen on every address of port 53.

The resolver's sockets have ports that the kernel chose. Four rules in the container's network namespace exchange them for 53 in
what goes to and comes from the resolver's address; both directions are sent over the loopback interface, so that one chain at
the output hook sees them. Nothing is tracked. Written by nf_tables messages (linux/netfilter/nf_tables.h) over a socket that was
opened there; the library for such text works only in the namespace of its caller.
"""

from __future__ import annotations

import socket
import struct

from wherry.linux.netlink import APPEND, CREATE, EXCL, attribute, be32, nest, text
from wherry_plugins.network.bridge.transaction import DELTABLE, IPV4, NEWCHAIN, NEWRULE, NEWTABLE, transact

TABLE, CHAIN = "wherry-names", "output"
_PORT = 53
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
    messages = [(NEWCHAIN, CREATE, chain)]
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
            messages.append((NEWRULE, CREATE | APPEND, text(1, TABLE) + text(2, CHAIN) + nest(4, expressions)))
    with socket.socket(fileno=fd) as sock:
        sock.settimeout(30)
        try:
            transact(sock, IPV4, [(NEWTABLE, CREATE | EXCL, name), *messages])
        except FileExistsError:
            # An engine before this one has written them. Taking a table away costs the kernel some milliseconds.
            transact(sock, IPV4, [(DELTABLE, 0, name), (NEWTABLE, CREATE | EXCL, name), *messages], 100)


def _expression(name: str, data: bytes) -> bytes:
    return text(1, name) + nest(2, data)


def _equal(base: int, offset: int, value: bytes) -> tuple[bytes, bytes]:
    """Loads a piece of the packet and goes on only where it is that value."""
    load = be32(1, 1) + be32(2, base) + be32(3, offset) + be32(4, len(value))
    return _expression("payload", load), _expression("cmp", be32(1, 1) + be32(2, 0) + nest(3, attribute(1, value)))
