"""Elements of our sets and maps as messages for the kernel: those of published ports, which come and go with containers."""

from __future__ import annotations

import socket
import struct

from wherry.kit.networks.netlink import CREATE, attribute, nest, text
from wherry_plugins.network.bridge.netd import rules
from wherry_plugins.network.bridge.transaction import DELSETELEM, INET, NEWSETELEM, PROTOCOL, transact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wherry_plugins.network.bridge.netd.rules import Element

_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
#: A part of a key or of a value, by its type. In a concatenation each fills whole words of four bytes.
_PARTS: dict[str, Callable[[str], bytes]] = {
    "ipv4_addr": lambda word: socket.inet_pton(socket.AF_INET, word),
    "ipv6_addr": lambda word: socket.inet_pton(socket.AF_INET6, word),
    "inet_proto": lambda word: bytes([_PROTOCOLS[word], 0, 0, 0]),
    "inet_service": lambda word: struct.pack(">H2x", int(word)),
}
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_ITEM, _KEY, _DATA, _VALUE = 1, 1, 2, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE


def _types(declared: str) -> list[list[str]]:
    """The types of a set's key, and of a map's value, part by part: of "type a . b : c;" [[a, b], [c]]."""
    return [side.split(" . ") for side in declared.removeprefix("type ").rstrip(";").split(" : ")]


#: Those that are all of such parts; sets of intervals, names and verdicts are not.
PLAIN = {
    name: types
    for name, types in {name: _types(declared) for name, declared in (rules.SETS | rules.MAPS).items()}.items()
    if all(_PARTS.keys() >= set(side) for side in types)
}


class Elements:
    """A conversation with the kernel about them, in the network namespace of its maker."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._number = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, PROTOCOL)
        self._socket.settimeout(30)

    def add(self, elements: Sequence[Element]) -> None:
        """In one transaction; those that are there already do no harm. OSError."""
        self._change(NEWSETELEM, CREATE, elements)

    def delete(self, elements: Sequence[Element]) -> None:
        """In one transaction, which a missing one fails. OSError."""
        self._change(DELSETELEM, 0, elements)

    def _change(self, type: int, flags: int, elements: Sequence[Element]) -> None:
        messages = []
        for where, element in elements:
            item = b""
            for kind, types, words in zip((_KEY, _DATA), PLAIN[where], element.split(" : "), strict=False):
                parts = zip(types, words.split(" . "), strict=True)
                if kind == _KEY or type == NEWSETELEM:
                    item += nest(kind, attribute(_VALUE, b"".join(_PARTS[name](word) for name, word in parts)))
            body = text(_TABLE, self._table) + text(_SET, where) + nest(_ELEMENTS, nest(_ITEM, item))
            messages.append((type, flags, body))
        try:
            self._number = transact(self._socket, INET, messages, self._number)
        except OSError:
            self._number += len(messages) + 1  # what else is said of this one belongs to no other
            raise

    def close(self) -> None:
        self._socket.close()
