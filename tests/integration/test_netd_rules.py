"""netd's rules between real namespaces: who reaches whom, by which address, and who does not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from support.nets import BOUND, World, ask, ip, world
from wherry.api import Port

UDP = socket.SOCK_DGRAM


@pytest.fixture
def here() -> Iterator[World]:
    with world() as made:
        yield made


def from_host(address: str, port: int, kind: int = socket.SOCK_STREAM, seconds: float = BOUND) -> str:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        return ask(sock, address, port, seconds)


def test_a_published_port(here: World) -> None:
    net = here.bridge("br-a", "10.77.1.1/24", "fd77:1::1/64")
    web = here.machine("web", net, "10.77.1.2/24", "fd77:1::2/64")
    out = here.machine("out", None, "192.0.2.2/24", "2001:db8::2/64")
    ip("address", "add", "192.0.2.1/24", "dev", "hout")
    ip("address", "add", "2001:db8::1/64", "dev", "hout", "nodad")
    web.serve(80)
    web.serve(80, UDP)
    here.endpoint(web, net, Port(80, "tcp", "", 8080), Port(80, "udp", "", 8080))
    assert out.ask("192.0.2.1", 8080) == "web,192.0.2.2"
    assert out.ask("2001:db8::1", 8080) == "web,2001:db8::2"
    assert out.ask("192.0.2.1", 8080, UDP) == "web,192.0.2.2"
    assert from_host("127.0.0.1", 8080) == "web,10.77.1.1"
    assert from_host("::1", 8080) == "web,fd77:1::1"
    assert from_host("127.0.0.1", 8080, UDP) == "web,10.77.1.1"
    assert from_host("::1", 8080, UDP) == "web,fd77:1::1"
    assert from_host("192.0.2.1", 8080) == "web,192.0.2.1"
    assert web.ask("192.0.2.1", 8080) == "web,10.77.1.1"
