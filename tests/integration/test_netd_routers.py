"""A container that says it is a router: with NET_RAW it can send advertisements (RFC 4861), which the host must not believe.

Else all that the host sends by IPv6 goes to that container.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nets import BOUND, Machine, World, inside, world
from wherry_plugins.network.bridge.netd import forwarding

ROUTER, ALL_NODES = socket.inet_pton(socket.AF_INET6, "fe80::bad"), socket.inet_pton(socket.AF_INET6, "ff02::1")
_ADVERTISEMENT = 134


@pytest.fixture
def here() -> Iterator[World]:
    with world() as made:
        yield made


def advertise(machine: Machine) -> None:
    """It is a default router for half an hour."""
    body = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, 1800, 0, 0)
    pseudo = ROUTER + ALL_NODES + struct.pack("!I3xB", len(body), socket.IPPROTO_ICMPV6) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255) + ROUTER + ALL_NODES
    frame = bytes.fromhex("333300000001 02420000bad0 86dd") + header + body

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((machine.interface, 0))
            sock.send(frame)

    inside(machine.ns, send)


def believed(here: World) -> bool:
    """Whether the host has a way out by the container, once it has seen all that this sent."""
    net = here.bridge("br-a", "10.77.1.1/24")
    switches = Path("/proc/sys/net/ipv6/conf/br-a")
    (switches / "forwarding").write_text("0")  # as on a host that routes no IPv6; one that does believes nobody
    bad = here.machine("bad", net, "10.77.1.2/24")
    here.endpoint(bad, net)
    advertise(bad)
    echo = bad.serve(80)
    with socket.create_connection(("10.77.1.2", 80), BOUND) as sock:  # what it answers comes behind the advertisement
        sock.settimeout(BOUND)
        sock.send(b"?")
        assert sock.recv(100)
    assert echo.seen
    routes = subprocess.run(
        ["ip", "-6", "route", "show", "default"], check=True, capture_output=True, text=True, timeout=BOUND
    )
    return "fe80::bad" in routes.stdout


def test_the_host_believes_no_router_in_a_container(here: World) -> None:
    assert not believed(here)


def test_twin_the_switch_is_left_as_it_is(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "believe_no_router", lambda interface: None)
    assert believed(here)
