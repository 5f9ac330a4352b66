"""Who changes nftables: the kernel's own notices (NETLINK_NETFILTER, group NFNLGRP_NFTABLES; linux/netfilter/nf_tables.h).

A transaction is told as its changes, then one NEWGEN with the pid that made it, as the first pid namespace counts: not ours to
know, so it is learnt from a transaction of our own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from wherry_plugins.network.bridge.transaction import PROTOCOL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUP_NFTABLES = 7
_SUBSYSTEM_NFTABLES = 10
_NEWTABLE, _DELTABLE, _DELCHAIN, _DELRULE, _DELSET, _DELSETELEM, _NEWGEN = 0, 2, 5, 8, 11, 14, 15
#: What takes something away; NEWTABLE also says that a table was put to sleep (flags dormant).
_LOSSES = frozenset({_NEWTABLE, _DELTABLE, _DELCHAIN, _DELRULE, _DELSET, _DELSETELEM})
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE
_GEN_PROC_PID = 2
_SO_RCVBUFFORCE = 33
_ROOM = 4 << 20


class Monitor:
    """The notices of this network namespace. ``changes`` is to be read whenever the descriptor is readable."""

    def __init__(self) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, PROTOCOL
        )
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, option, _ROOM)
            except PermissionError:  # in a user namespace: what may be had is had
                pass
        self.socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
        self._losers: set[str] = set()  # tables that lose something by the transaction that is being told

    def changes(self) -> Iterator[tuple[int, frozenset[str]] | None]:
        """Each transaction that is known by now as (pid, the tables that lost something); None: some were missed."""
        while True:
            try:
                data = self.socket.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._losers.clear()
                yield None
                continue
            for type, payload in _messages(data):
                if type == _NEWGEN:
                    pid = struct.unpack("!I", _attribute(payload, _GEN_PROC_PID).rjust(4, b"\0"))[0]
                    losers, self._losers = frozenset(self._losers), set()
                    yield pid, losers
                elif type in _LOSSES:
                    self._losers.add(os.fsdecode(_attribute(payload, _TABLE_NAME).rstrip(b"\0")))

    def close(self) -> None:
        self.socket.close()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(message of nftables, its attributes)."""
    at = 0
    while at + 16 <= len(data):
        length, type = struct.unpack_from("=IH", data, at)
        if length < 16:
            return
        if type >> 8 == _SUBSYSTEM_NFTABLES:
            yield type & 0xFF, data[at + 20 : at + length]  # behind nlmsghdr and nfgenmsg
        at += (length + 3) & ~3


def _attribute(payload: bytes, wanted: int) -> bytes:
    """The first attribute of that type, b"" without one."""
    at = 0
    while at + 4 <= len(payload):
        length, type = struct.unpack_from("=HH", payload, at)
        if length < 4:
            break
        if type & 0x3FFF == wanted:
            return payload[at + 4 : at + length]
        at += (length + 3) & ~3
    return b""
