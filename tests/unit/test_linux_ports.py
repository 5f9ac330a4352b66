"""Claims of ports: exclusive until shared, free again when closed."""

from __future__ import annotations

import errno
import socket

import pytest

from wherry.api import InUse, Port
from wherry.kit.networks import ports
from wherry.kit.networks.ports import PortClaims


def listener(port: int, *, reuse: bool) -> socket.socket:
    sock = socket.socket()
    try:
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


def six() -> bool:
    try:
        listener_six = socket.socket(socket.AF_INET6)
    except OSError:
        return False
    with listener_six:
        try:
            listener_six.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1"])
def test_a_claim_is_exclusive(protocol: str, address: str) -> None:
    if ":" in address and not six():
        pytest.skip("there is no IPv6 here")
    first = ports.bind(protocol, address, 0)
    try:
        assert first.number > 0
        with pytest.raises(OSError) as caught:
            ports.bind(protocol, address, first.number)
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError):
            ports.bind(protocol, "", first.number)
    finally:
        first.close()
    ports.bind(protocol, address, first.number).close()


def test_the_protocols_do_not_meet() -> None:
    first = ports.bind("tcp", "127.0.0.1", 0)
    second = ports.bind("udp", "127.0.0.1", first.number)
    first.close()
    second.close()


@pytest.mark.parametrize("reuse", [False, True])
def test_a_program_gets_past_a_claim_once_it_is_shared(reuse: bool) -> None:
    made = ports.bind("tcp", "127.0.0.1", 0)
    try:
        with pytest.raises(OSError):
            listener(made.number, reuse=reuse)
        made.share()
        if not reuse:
            with pytest.raises(OSError):
                listener(made.number, reuse=False)
            return
        with listener(made.number, reuse=True):
            with pytest.raises(OSError):
                ports.bind("tcp", "127.0.0.1", made.number)
            made.close()
            with pytest.raises(OSError):
                ports.bind("tcp", "127.0.0.1", made.number)
    finally:
        made.close()


def test_connections_in_time_wait_are_no_claim() -> None:
    server = listener(0, reuse=True)
    port = server.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    accepted, _ = server.accept()
    accepted.close()  # whoever closes first keeps the TIME_WAIT
    client.settimeout(30)
    assert client.recv(1) == b""
    client.close()
    server.close()
    with socket.socket() as plain, pytest.raises(OSError):
        plain.bind(("127.0.0.1", port))  # there is one
    made = ports.bind("tcp", "127.0.0.1", port)
    try:
        with pytest.raises(OSError):
            ports.bind("tcp", "127.0.0.1", port)
    finally:
        made.close()


def test_what_cannot_be_claimed() -> None:
    with pytest.raises(ValueError, match="no IP address"):
        ports.bind("tcp", "localhost", 0)
    with pytest.raises(OSError) as caught:
        ports.bind("tcp", "192.0.2.1", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_the_first_free_one_of_a_range() -> None:
    """Of the drivers that claim ports for somebody else: cni, pasta, slirp4netns."""
    taken = ports.bind("tcp", "127.0.0.1", 0)
    claims = PortClaims()
    try:
        wish = Port(80, host_ip="127.0.0.1", host_port=taken.number, host_port_last=taken.number + 50)
        (granted,) = claims.claim(("net", "box"), [wish])
        assert taken.number < granted.host_port <= taken.number + 50
        assert granted.host_port_last == 0
        with pytest.raises(InUse):
            claims.claim(("net", "other"), [Port(80, host_ip="127.0.0.1", host_port=taken.number)])
    finally:
        claims.close()
        taken.close()
