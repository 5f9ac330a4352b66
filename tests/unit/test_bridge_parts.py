"""The parts of network drivers that need no namespace: addresses, definitions, options, claims, and the store under threads."""

from __future__ import annotations

import ipaddress
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.api import AttachRequest, InUse, Invalid, NetworkConfig, Port
from wherry.kit.networks import addresses as ip
from wherry.kit.networks.definition import fill
from wherry.kit.networks.store import NetworkStore
from wherry_plugins.network import bridge
from wherry_plugins.network.bridge.config import BridgeConfig, BridgeOptions, options_of
from wherry_plugins.network.bridge.netd import libnftables
from wherry_plugins.network.bridge.ports import claim

POOLS = BridgeConfig().pools


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.integers(24, 30), st.data())
def test_every_address_is_given_once_before_any_comes_again(prefix: int, data: st.DataObject) -> None:
    network = ip.subnet(f"10.1.2.0/{prefix}")
    low, high = ip.hosts(network)
    taken = set(data.draw(st.lists(st.integers(low, high), max_size=6)))
    last = data.draw(st.integers(-1, high + 5))
    seen = []
    for _ in range(high - low + 1 - len(taken)):
        number = ip.next_free(network, network, last, taken)
        assert number is not None
        seen.append(number)
        last = number
    assert len(set(seen)) == len(seen)
    assert not set(seen) & taken
    assert all(low <= number <= high for number in seen)
    assert ip.next_free(network, network, last, taken | set(seen)) is None


def test_a_range_is_a_part() -> None:
    network, part = ip.subnet("10.1.0.0/24"), ip.subnet("10.1.0.128/26")
    first = ip.next_free(network, part, -1, ())
    assert first == int(ipaddress.ip_address("10.1.0.128"))
    assert ip.next_free(network, part, int(ipaddress.ip_address("10.1.0.191")), ()) == first


@pytest.mark.parametrize(
    ("text", "said"),
    [("10.0.0.1/8", "did you mean 10.0.0.0/8"), ("ten", "is not CIDR"), ("fd00::1/64", "did you mean fd00::/64")],
)
def test_what_is_no_subnet(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        ip.subnet(text)


def test_hardware_addresses() -> None:
    assert ip.mac_of(ip.address("172.17.0.2")) == "02:42:ac:11:00:02"
    assert ip.check_mac("02-42-AC-11-00-02") == "02:42:ac:11:00:02"
    for bad in ("", "02:42", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:42:ac:11:00:zz", "02:42:ac:11:00:02:03"):
        with pytest.raises(Invalid):
            ip.check_mac(bad)


def filled(
    config: NetworkConfig, taken: tuple[str, ...] = (), others: tuple[tuple[str, str], ...] = ()
) -> NetworkConfig:
    return fill(
        config,
        pools=POOLS,
        others=[(name, ip.subnet(text)) for name, text in others],
        taken=lambda: [ip.subnet(text) for text in taken],
        seed="seed",
    )


def test_subnets_are_chosen_beside_what_is_there() -> None:
    assert filled(NetworkConfig("n")).subnets == ("172.17.0.0/16",)
    made = filled(NetworkConfig("n", ipv6=True), ("172.17.3.0/24",), (("other", "172.18.0.0/16"),))
    assert made.subnets[0] == "172.19.0.0/16"
    assert made.gateways[0] == "172.19.0.1"
    six = ipaddress.ip_network(made.subnets[1])
    assert six.subnet_of(ipaddress.ip_network("fd00::/8"))
    assert filled(NetworkConfig("n", ipv6=True)).subnets[1] == str(six), "follows from the seed"
    with pytest.raises(InUse, match="default pools"):
        filled(NetworkConfig("n"), ("172.16.0.0/12", "192.168.0.0/16"))
    with pytest.raises(InUse, match="other"):
        filled(NetworkConfig("n", subnets=("172.18.1.0/24",)), others=(("other", "172.18.0.0/16"),))


def test_options() -> None:
    docker = {"com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.enable_icc": "false"}
    assert options_of(NetworkConfig("n", options=docker)) == BridgeOptions(mtu=1400, icc=False)
    for bad in ({"mtu": "x"}, {"icc": "perhaps"}, {"interface": "a/b"}, {"interface": "x" * 16}, {"nmaes": "true"}):
        with pytest.raises(Invalid):
            options_of(NetworkConfig("n", options=bad))


# claims


def test_a_claim_holds_and_is_let_go() -> None:
    first = claim([Port(80), Port(53, "udp", "127.0.0.1")])
    tcp, udp = first.ports
    assert tcp.host_port
    assert udp.host_port
    with pytest.raises(InUse, match=str(tcp.host_port)):
        claim([Port(1, host_port=tcp.host_port)])
    with pytest.raises(InUse, match=str(udp.host_port)):
        claim([Port(1), udp])
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(("127.0.0.1", tcp.host_port))
        other.listen()
    first.close()
    claim([tcp, udp]).close()


def test_a_claim_that_fails_holds_nothing() -> None:
    free = claim([Port(80)])
    (port,) = free.ports
    free.close()
    with pytest.raises(Invalid):
        claim([port, Port(81, host_ip="192.0.2.1")])
    claim([port]).close()
    with pytest.raises(InUse):
        claim([Port(80, "udp", "", port.host_port), Port(81, "udp", "", port.host_port)])
    for bad in (Port(0), Port(80, host_ip="nowhere"), Port(80, host_port=70000), Port(80, "sctp")):  # type: ignore[arg-type]
        with pytest.raises(Invalid):
            claim([bad])


def test_the_first_free_one_of_a_range() -> None:
    base = claim([Port(80)])
    (taken,) = base.ports
    last = min(taken.host_port + 40, 65535)
    found = claim([Port(80, host_port=taken.host_port, host_port_last=last)])
    (port,) = found.ports
    assert taken.host_port < port.host_port <= last
    assert port.host_port_last == 0
    found.close()
    with pytest.raises(InUse, match="up to"):
        claim([Port(80, host_port=taken.host_port, host_port_last=taken.host_port)])
    with pytest.raises(Invalid):
        claim([Port(80, host_port=9, host_port_last=8)])
    base.close()


def test_a_port_comes_back_at_once_after_connections() -> None:
    """Those that the server ended wait for a minute (TIME-WAIT); a claim does not."""
    claims = claim([Port(80, host_ip="127.0.0.1")])
    (port,) = claims.ports
    (listener,) = claims.held[port].sockets
    with socket.create_connection(("127.0.0.1", port.host_port), 30) as client:
        server, _address = listener.accept()
        server.close()
        assert client.recv(1) == b""
    claims.close()
    claim([port]).close()


# the store


def test_threads_never_get_one_address(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "run").mkdir()
    store = NetworkStore(tmp_path / "root", tmp_path / "run")
    config = NetworkConfig("n", subnets=("10.1.0.0/24",), gateways=("10.1.0.1",))
    store.keep(config, chosen=False)

    def reserve(number: int) -> str:
        place = store.reserve(config, AttachRequest(f"s{number}", "n"), (), "", f"l{number}")
        return place.reservation.addresses[0]

    with ThreadPoolExecutor(8) as pool:
        given_out = list(pool.map(reserve, range(100)))
    assert len(set(given_out)) == 100
    with pytest.raises(InUse, match="has a place"):
        reserve(5)
    for number in range(100):
        assert store.release(f"s{number}", "n")
        assert not store.release(f"s{number}", "n")
    assert reserve(200) not in given_out, "the next one round, not one that was let go just now"
    store.close()
    again = NetworkStore(tmp_path / "root", tmp_path / "run")
    (place,) = again.places()
    assert place.sandbox_id == "s200"
    assert again.network("n") is not None
    again.close()


def test_a_network_that_was_changed_is_looked_up_anew(tmp_path: Path) -> None:
    store = NetworkStore(tmp_path, tmp_path)
    assert store.network("web") is None
    first, second = (
        NetworkConfig("web", ("10.0.0.0/24",), ("10.0.0.1",)),
        NetworkConfig("web", ("10.0.1.0/24",), ("10.0.1.1",)),
    )
    for config in (first, second):
        store.keep(config, chosen=False)
        for _time in range(2):
            found = store.network("web")
            assert found is not None
            assert found.config == config
    store.drop("web")
    assert store.network("web") is None
    store.close()


# where it can run


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library = libnftables.library
    monkeypatch.setattr(libnftables, "library", library.__wrapped__)
    monkeypatch.setattr(libnftables, "LIBRARY", "libnowhere.so.1")
    registration = bridge.wherry_network()
    said = registration.probe(BridgeConfig(), None)  # type: ignore[arg-type]
    assert said == 'the library "libnowhere.so.1" is missing (Debian: libnftables1)'
