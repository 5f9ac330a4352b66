"""Port 53 of a container's resolver, without taking it: a server of the container's own may listen on every address of port 53.

The resolver's sockets have ports that the kernel chose, and a rule for each in the container's network namespace directs there what
is sent to port 53 of the resolver's address. That is address translation, not a rule that rewrites the packet: kernels since 6.18.4x
forbid the latter in a user namespace. Written by nf_tables messages (linux/netfilter/nf_tables.h) over a socket that was opened
there; the library for such text works only in the namespace of its caller.
"""

from __future__ import annotations

import errno
import socket
import struct

from wherry.api import Denied, FailedPrecondition
from wherry.kit.networks.netlink import APPEND, CREATE, EXCL, attribute, be32, nest, text
from wherry_plugins.network.bridge.transaction import DELTABLE, IPV4, NEWCHAIN, NEWRULE, NEWTABLE, transact

TABLE, CHAIN = "wherry-names", "output"
_PORT = 53
_LOCAL_OUT, _DSTNAT = 3, -100 & 0xFFFFFFFF  # the hook, and its priority
_NETWORK, _TRANSPORT = 1, 2  # where a payload's offset counts from
_PROTOCOLS = {socket.SOCK_DGRAM: ("udp", socket.IPPROTO_UDP), socket.SOCK_STREAM: ("tcp", socket.IPPROTO_TCP)}


def redirect(fd: int, address: str, ports: dict[int, int]) -> None:
    """Takes an AF_NETLINK socket (NETLINK_NETFILTER) over and writes the rules, in place of those that are there.

    ports: of each type of socket (SOCK_DGRAM, SOCK_STREAM) the port that it has. Denied, FailedPrecondition: what the kernel refused.
    """
    name = text(1, TABLE)
    chain = name + text(3, CHAIN) + nest(4, be32(1, _LOCAL_OUT) + be32(2, _DSTNAT)) + text(7, "nat")
    messages = [(NEWTABLE, CREATE | EXCL, name), (NEWCHAIN, CREATE, chain)]
    labels = [f'nftables table "{TABLE}"', f'nftables nat chain "{TABLE} {CHAIN}"']
    for kind, port in ports.items():
        protocol, number = _PROTOCOLS[socket.SocketKind(kind)]
        rule = [
            *_equal(_NETWORK, 9, bytes([number])),
            *_equal(_NETWORK, 16, socket.inet_aton(address)),
            *_equal(_TRANSPORT, 2, struct.pack(">H", _PORT)),
            _expression("immediate", be32(1, 1) + nest(2, attribute(1, struct.pack(">H", port)))),
            _expression("nat", be32(1, 1) + be32(2, IPV4) + be32(5, 1)),  # NFT_NAT_DNAT to the port in register 1
        ]
        expressions = b"".join(nest(1, one) for one in rule)
        messages.append((NEWRULE, CREATE | APPEND, text(1, TABLE) + text(2, CHAIN) + nest(4, expressions)))
        labels.append(f'nftables rule "{protocol} {address}:{_PORT} dnat to :{port}"')
    with socket.socket(fileno=fd) as sock:
        sock.settimeout(30)
        try:
            try:
                transact(sock, IPV4, messages, labels=labels)
            except FileExistsError:
                # An engine before this one has written them. Taking a table away costs the kernel some milliseconds.
                transact(sock, IPV4, [(DELTABLE, 0, name), *messages], 100, labels=[labels[0], *labels])
        except OSError as error:
            refused = Denied if error.errno in (errno.EPERM, errno.EACCES) else FailedPrecondition
            raise refused(
                error.filename or "nftables", f"the kernel refused it: {error.strerror or error}",
                "names need nf_tables with nat in this kernel; see dmesg, or take --network none, host or a network without names",
            ) from error  # fmt: skip


def _expression(name: str, data: bytes) -> bytes:
    return text(1, name) + nest(2, data)


def _equal(base: int, offset: int, value: bytes) -> tuple[bytes, bytes]:
    """Loads a piece of the packet and goes on only where it is that value."""
    load = be32(1, 1) + be32(2, base) + be32(3, offset) + be32(4, len(value))
    return _expression("payload", load), _expression("cmp", be32(1, 1) + be32(2, 0) + nest(3, attribute(1, value)))
