"""Transactions of the packet filter as messages (linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h), for what a start waits for:
the library for such text takes ten times as long, and works only in the network namespace of its caller.
"""

from __future__ import annotations

import os
import struct

from wherry.kit.networks.netlink import ACK, REQUEST, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

PROTOCOL = 12  # NETLINK_NETFILTER
IPV4, INET = 2, 1  # NFPROTO_IPV4, NFPROTO_INET
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSETELEM, DELSETELEM = 0xA00, 0xA02, 0xA03, 0xA06, 0xA0C, 0xA0E
_BEGIN, _END = 0x10, 0x11
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_ERROR = 2  # NLMSG_ERROR


def transact(
    sock: socket.socket,
    family: int,
    messages: Iterable[tuple[int, int, bytes]],
    number: int = 0,
    labels: Sequence[str] = (),
) -> int:
    """Carries out (type, flags, attributes), all or nothing: the kernel acknowledges each message or tells which ones it refuses, and
    then does none. OSError: what it refused first; its filename is what ``labels`` has for that message.

    number: below those of its messages, and above those of a transaction before it on the same socket; the last one is answered.
    """
    first = number + 1
    batch = struct.pack(">BBH", 0, 0, _NFTABLES)
    data, waiting = message(_BEGIN, REQUEST, number, batch), set()
    for type, flags, body in messages:
        number += 1
        waiting.add(number)
        data += message(type, REQUEST | ACK | flags, number, struct.pack(">BBH", family, 0, 0) + body)
    number += 1
    sock.send(data + message(_END, REQUEST, number, batch))
    while waiting:
        said = sock.recv(1 << 16)
        while len(said) >= 20:
            length, type, _flags, sequence, _port, code = struct.unpack_from("=IHHIIi", said)
            said = said[(length + 3) & ~3 :]
            if type == _ERROR and code and sequence in waiting:
                raise OSError(-code, os.strerror(-code), labels[sequence - first] if labels else "nftables rules")
            waiting.discard(sequence)
    return number
