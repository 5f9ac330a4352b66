"""The messages that a start writes out itself: as pyroute2 and nft(8) would."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.nets import BOUND, nft
from wherry.kit.namespaces import identity
from wherry.kit.namespaces import own as own_namespace
from wherry.kit.networks import messages, netlink
from wherry.kit.networks.netlink import Rtnl
from wherry.linux import namespaces
from wherry_plugins.network.bridge.netd import rules
from wherry_plugins.network.bridge.netd.elements import PLAIN, Elements
from wherry_plugins.network.bridge.netd.libnftables import Nft

#: Attributes that have others in them: of each type the bytes before these, and which of them do again.
Nested = dict[int, tuple[int, Any]]
LINK: Nested = {
    18: (0, {2: (0, {1: (16, {})}), 5: (0, {})})
}  # IFLA_LINKINFO, its DATA with VETH_INFO_PEER, its SLAVE_DATA


def tree(body: bytes, head: int, nested: Nested) -> tuple[bytes, list[Any]]:
    """What is before the attributes, and these sorted; pyroute2 has another order, and not the bit that says that one is nested."""
    found: list[Any] = []
    at = head
    while at < len(body):
        length, type = struct.unpack_from("=HH", body, at)
        data = body[at + 4 : at + length]
        number = type & 0x7FFF
        found.append((number, tree(data, *nested[number]) if number in nested else data))
        at += (length + 3) & ~3
    return body[:head], sorted(found)


def same(mine: bytes, other: Any, head: int, nested: Nested) -> None:
    other.encode()
    assert tree(mine, head, nested) == tree(bytes(other.data)[16:], head, nested)


PEER = [("IFLA_IFNAME", "eth0"), ("IFLA_ADDRESS", "02:42:0a:00:00:02"), ("IFLA_NET_NS_FD", 77), ("IFLA_MTU", 1400)]


def test_a_pair_is_as_pyroute2_writes_it() -> None:
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": PEER})]}
    kind = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]})
    wish = netlink.link("whv1", up=True, attributes=[("IFLA_MTU", 1400), ("IFLA_MASTER", 9), kind])
    same(messages.veth("whv1", 9, "eth0", "02:42:0a:00:00:02", 77, 1400), wish, 16, LINK)


@pytest.mark.parametrize("isolated", [True, False])
def test_a_port_is_as_pyroute2_writes_it(isolated: bool) -> None:
    data = {"attrs": [("IFLA_BRPORT_MODE", 1), ("IFLA_BRPORT_ISOLATED", int(isolated))]}
    info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", data)]}
    wish = netlink.link("whv1", attributes=[("IFLA_LINKINFO", info)])
    same(messages.port("whv1", hairpin=True, isolated=isolated), wish, 16, LINK)


@pytest.mark.parametrize("cidr", ["10.0.0.2/24", "fd00::2/64"])
def test_an_address_is_as_pyroute2_writes_it(cidr: str) -> None:
    same(messages.address(5, cidr), netlink.address(5, cidr), 8, {})


@pytest.mark.parametrize(("gateway", "metric"), [("10.0.0.1", 0), ("10.0.0.1", 3), ("fd00::1", 1024)])
def test_a_route_is_as_pyroute2_writes_it(gateway: str, metric: int) -> None:
    same(messages.route(gateway, 5, metric), netlink.route(gateway, 5, metric), 12, {})


@pytest.fixture
def apart() -> Iterator[Rtnl]:
    """A conversation in a network namespace of its own, which goes with it."""

    def opened() -> int:
        namespaces.unshare(namespaces.NEWNET)
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE).detach()

    with ThreadPoolExecutor(1) as pool:
        fd = pool.submit(opened).result(BOUND)
    with Rtnl(fd) as rtnl:
        yield rtnl


def test_what_fails_is_named_and_the_others_are_carried_out(apart: Rtnl) -> None:
    index = apart.index("lo")
    with pytest.raises(OSError, match="the second") as caught:
        apart.ask(
            (netlink.SETLINK, 0, messages.up(index), "the first"),
            (netlink.SETLINK, 0, messages.up(9999), "the second"),
            (netlink.SETLINK, 0, messages.up(9998), "the third"),
            (netlink.NEWADDR, netlink.ADD, messages.address(index, "10.3.2.1/32"), "the fourth"),
        )
    assert caught.value.errno == errno.ENODEV
    (one,) = [one for one in apart.dump(netlink.GETADDR, netlink.address()) if one.get_attr("IFA_LOCAL") == "10.3.2.1"]
    assert one["index"] == index


def test_what_may_fail_does_no_harm(apart: Rtnl) -> None:
    apart.ask((netlink.SETLINK, 0, messages.up(9999), ""), (netlink.SETLINK, 0, messages.up(apart.index("lo")), "lo"))
    apart.ask((netlink.SETLINK, 0, messages.up(9999), ""))
    apart.ask()


def test_an_index_is_that_of_the_namespace(apart: Rtnl) -> None:
    assert apart.index("lo") == 1
    for name in ("nothing", "a-name-that-is-too-long"):
        with pytest.raises(OSError, match=name) as caught:
            apart.index(name)
        assert caught.value.errno == errno.ENODEV


def test_a_conversation_tells_where_it_is(apart: Rtnl) -> None:
    fd = apart.namespace()
    with Rtnl() as rtnl:
        own = rtnl.namespace()
    try:
        assert identity(own) == own_namespace("net") != identity(fd)
    finally:
        os.close(fd)
        os.close(own)


@pytest.fixture
def table() -> Iterator[str]:
    name = "wherry-elements"
    library = Nft()
    library.run(rules.table(name, []))
    yield name
    library.run(rules.drop(name))
    library.close()


PORTS = [
    ("loopback", "tcp . 8080"),
    ("any4", "udp . 53 : 10.0.0.2 . 5353"),
    ("any6", "tcp . 8080 : fd00::2 . 80"),
    ("at4", "192.0.2.1 . tcp . 8080 : 10.0.0.2 . 80"),
    ("at6", "2001:db8::1 . udp . 1 : fd00::2 . 65535"),
]


def test_elements_are_as_the_library_writes_them(table: str) -> None:
    assert set(PLAIN) == {where for where, _element in PORTS}
    library = Nft()
    library.run(rules.add(table, PORTS))
    expected = nft(f"list table inet {table}")
    library.run(rules.delete(table, PORTS))
    library.close()
    empty = nft(f"list table inet {table}")
    elements = Elements(table)
    try:
        elements.add(PORTS)
        elements.add(PORTS)  # there already
        assert nft(f"list table inet {table}") == expected != empty
        elements.delete(PORTS)
        assert nft(f"list table inet {table}") == empty
    finally:
        elements.close()


def test_a_transaction_is_carried_out_as_a_whole_or_not_at_all(table: str) -> None:
    before = nft(f"list table inet {table}")
    elements = Elements(table)
    try:
        elements.add(PORTS[:1])
        with pytest.raises(FileExistsError):
            elements.add([PORTS[3], ("any4", "tcp . 1 : 10.0.0.2 . 1"), ("any4", "tcp . 1 : 10.0.0.3 . 1")])
        with pytest.raises(FileNotFoundError):
            elements.delete([PORTS[0], PORTS[1]])
        elements.delete(PORTS[:1])  # still there, and what was refused before is not taken for the answer
        assert nft(f"list table inet {table}") == before
    finally:
        elements.close()
