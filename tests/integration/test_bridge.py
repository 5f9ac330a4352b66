"""Containers on bridges, end to end: addresses, routes, several networks, and what is left afterwards."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator

import pytest

from support.engines import clear, engine_of_a_module
from support.running import execute, sh
from wherry.api import (
    AlreadyExists,
    EndpointConfig,
    Engine,
    FailedPrecondition,
    InUse,
    Invalid,
    NetworkConfig,
    NotFound,
    Port,
    RunRequest,
)
from wherry_plugins.network.bridge.driver import BridgeNetwork

pytestmark = pytest.mark.shared
IMAGE = "host:/bin/busybox,/bin/sh"
IP = "/bin/busybox ip"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_stays(engine: Engine) -> Iterator[None]:
    yield
    clear(engine)
    for network in engine.networks():
        if network.driver == "bridge" and not network.builtin:
            engine.remove_network(network.config.name)
    assert engine.doctor() == ()


def stays(engine: Engine, name: str, **wishes: object) -> str:
    """A container that sleeps; its id."""
    command = ("/bin/busybox", "sleep", "1000")
    return engine.run(RunRequest(IMAGE, command, name=name, remove=True, **wishes)).id  # type: ignore[arg-type]


def inside(engine: Engine, container: str, script: str) -> str:
    said = execute(engine, container, "/bin/sh", "-c", script)
    assert said.code == 0, said.err
    return said.out


def ip(engine: Engine, container: str, what: str) -> str:
    return inside(engine, container, f"{IP} {what}")


def reaches(engine: Engine, container: str, address: str) -> bool:
    return execute(engine, container, "/bin/busybox", "ping", "-c", "1", "-W", "10", address).code == 0


def address_in(engine: Engine, network: str, container: str) -> str:
    """The bare IPv4 address."""
    (found,) = [one for one in engine.network(network).attachments if one.reservation.request.sandbox_id == container]
    return found.addresses[0].partition("/")[0]


def test_an_address_and_a_way_out(engine: Engine) -> None:
    said = sh(engine, f"{IP} -o -4 address show eth0; {IP} route", image=IMAGE, network="bridge")
    assert said.code == 0, said.err
    words = said.out.split()
    address = ipaddress.ip_interface(words[words.index("inet") + 1])
    assert address.ip in ipaddress.ip_network("172.16.0.0/12")
    assert f"default via {address.network.network_address + 1} dev eth0" in said.out


def test_traffic_is_counted(engine: Engine) -> None:
    container = stays(engine, "talks", network="bridge")
    gateway = ip(engine, container, "route").split()[2]
    before = engine.stats(container)
    assert reaches(engine, container, gateway)
    after = engine.stats(container)
    assert after["network.tx_bytes"] > before["network.tx_bytes"]
    assert after["network.rx_packets"] > before["network.rx_packets"]


def test_a_network_of_ones_own(engine: Engine) -> None:
    made = engine.create_network(
        NetworkConfig("lab", subnets=("10.80.0.0/24",), ip_ranges=("10.80.0.128/25",), labels={"a": "b"})
    )
    assert made.driver == "bridge"
    assert made.config.gateways == ("10.80.0.1",)
    with pytest.raises(AlreadyExists):
        engine.create_network(NetworkConfig("lab"))
    one, two = stays(engine, "one", network="lab"), stays(engine, "two", network="lab")
    assert ipaddress.ip_address(address_in(engine, "lab", one)) in ipaddress.ip_network("10.80.0.128/25")
    assert reaches(engine, one, address_in(engine, "lab", two))
    assert reaches(engine, two, "10.80.0.1")
    assert engine.network(made.id[:8]).containers == {one: "one", two: "two"}
    with pytest.raises(InUse):
        engine.remove_network("lab")
    engine.remove(one, force=True)
    engine.remove(two, force=True)
    engine.remove_network("lab")
    with pytest.raises(NotFound):
        engine.network("lab")


def test_fixed_addresses(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab", subnets=("10.81.0.0/24",)))
    wish = {"network": "lab", "addresses": ("10.81.0.77",)}
    one = stays(engine, "one", mac="02:00:00:00:00:77", **wish)
    assert address_in(engine, "lab", one) == "10.81.0.77"
    assert "02:00:00:00:00:77" in ip(engine, one, "link show eth0")
    with pytest.raises(InUse, match=r"10\.81\.0\.77"):
        stays(engine, "two", **wish)
    for bad in ("10.81.0.1", "10.82.0.3", "10.81.0.255", "10.81.0.0", "ten"):
        with pytest.raises((InUse, Invalid), match=bad):
            stays(engine, "two", network="lab", addresses=(bad,))
    with pytest.raises(Invalid, match="mac"):
        stays(engine, "two", network="lab", mac="01:00:5e:00:00:01")
    assert engine.container("one").addresses == ("10.81.0.77/24",)


def test_both_families(engine: Engine) -> None:
    made = engine.create_network(NetworkConfig("six", ipv6=True))
    four, six = (ipaddress.ip_network(subnet) for subnet in made.config.subnets)
    assert (four.version, six.version, six.is_private) == (4, 6, True)
    one, two = stays(engine, "one", network="six"), stays(engine, "two", network="six")
    addresses = [address.partition("/")[0] for address in engine.container(two).addresses]
    assert [ipaddress.ip_address(address).version for address in addresses] == [4, 6]
    assert all(reaches(engine, one, address) for address in addresses)
    assert f"default via {made.config.gateways[1]}" in ip(engine, one, "-6 route")


def test_no_second_family_where_none_was_asked_for(engine: Engine) -> None:
    one = stays(engine, "one", network="bridge")
    assert ip(engine, one, "-6 address show eth0") == ""


def test_several_networks(engine: Engine) -> None:
    for name in ("front", "back"):
        engine.create_network(NetworkConfig(name))
    one = stays(engine, "one", network="front", networks=(EndpointConfig("back", aliases=("db",)),))
    front, back = stays(engine, "f", network="front"), stays(engine, "b", network="back")
    assert engine.container(one).networks == ("front", "back")
    assert all(reaches(engine, one, address_in(engine, *at)) for at in (("front", front), ("back", back)))
    routes = ip(engine, one, "route")
    assert routes.index(f"default via {engine.network('front').config.gateways[0]} dev eth0") >= 0
    assert "dev eth1  metric 1" in routes
    hosts = inside(engine, one, "/bin/busybox cat /etc/hosts")
    assert f"{address_in(engine, 'back', one)}\t{one[:12]} one db\n" in hosts
    settings = engine.inspect(one)["NetworkSettings"]["Networks"]
    assert settings["back"]["IPAddress"] == address_in(engine, "back", one)
    with pytest.raises(AlreadyExists):
        stays(engine, "two", network="front", networks=(EndpointConfig("front"),))
    with pytest.raises(Invalid):
        stays(engine, "two", network="front", networks=(EndpointConfig("host"),))


def test_an_internal_network_has_no_way_out(engine: Engine) -> None:
    engine.create_network(NetworkConfig("cellar", internal=True))
    one, two = stays(engine, "one", network="cellar"), stays(engine, "two", network="cellar")
    assert "default" not in ip(engine, one, "route")
    assert reaches(engine, one, address_in(engine, "cellar", two))


def test_connect_and_disconnect_while_it_runs(engine: Engine) -> None:
    engine.create_network(NetworkConfig("late"))
    one, two = stays(engine, "one", network="bridge"), stays(engine, "two", network="late")
    engine.connect("one", EndpointConfig("late", aliases=("also",)))
    assert engine.container("one").networks == ("bridge", "late")
    assert reaches(engine, one, address_in(engine, "late", two))
    assert "one also\n" in inside(engine, one, "/bin/busybox cat /etc/hosts")
    with pytest.raises(AlreadyExists):
        engine.connect("one", EndpointConfig("late"))
    engine.disconnect("one", "bridge")
    assert engine.container("one").networks == ("late",)
    assert "eth0" not in ip(engine, one, "link")
    assert reaches(engine, one, address_in(engine, "late", two))
    engine.connect("one", EndpointConfig("bridge"))
    assert "eth0" in ip(engine, one, "link")
    with pytest.raises(NotFound):
        engine.disconnect("two", "bridge")
    engine.disconnect("two", "bridge", force=True)
    topics = [
        (e.topic, e.attributes["network"])
        for e in engine.events(0, follow=False)
        if e.id == one and "network" in e.attributes
    ]
    assert topics == [
        ("network.attached", "bridge"),
        ("network.attached", "late"),
        ("network.detached", "bridge"),
        ("network.attached", "bridge"),
    ]


def test_network_none_is_not_connected(engine: Engine) -> None:
    stays(engine, "one", network="bridge")
    with pytest.raises(Invalid, match="nothing to give"):
        engine.connect("one", EndpointConfig("none"))
    assert engine.container("one").networks == ("bridge",)


def test_a_network_by_its_id(engine: Engine) -> None:
    """As scripts do it: what `network create` printed."""
    id = engine.create_network(NetworkConfig("late")).id
    other = engine.create_network(NetworkConfig("later")).id
    stays(engine, "one", network=id, networks=(EndpointConfig(other[:12]),))
    assert engine.container("one").networks == ("late", "later")
    for wish in ("late", id):
        engine.disconnect("one", wish)
        assert engine.container("one").networks == ("later",)
        engine.connect("one", EndpointConfig(wish))
    assert engine.container("one").networks == ("later", "late")
    with pytest.raises(Invalid, match="several ids begin so"):
        stays(engine, "two", network=shared_prefix(engine))
    with pytest.raises(NotFound):
        stays(engine, "two", network="f" * 64)


def shared_prefix(engine: Engine) -> str:
    """A digit that ids of several networks begin with: with 17 networks there is one."""
    for number in range(17):
        engine.create_network(NetworkConfig(f"many{number}", subnets=(f"10.9.{number}.0/24",)))
    digits = [info.id[0] for info in engine.networks()]
    return next(digit for digit in digits if digits.count(digit) > 1)


def test_two_addresses_of_one_subnet(engine: Engine) -> None:
    engine.create_network(NetworkConfig("late", subnets=("10.9.0.0/24",)))
    with pytest.raises(Invalid, match="second one in 10.9.0.0/24"):
        stays(engine, "one", network="late", addresses=("10.9.0.5", "10.9.0.6"))


def test_inspect_tells_a_port_of_both_families(engine: Engine) -> None:
    one = stays(engine, "one", network="bridge", ports=(Port(80),))
    found = engine.inspect(one)["NetworkSettings"]["Ports"]["80/tcp"]
    assert [entry["HostIp"] for entry in found] == ["0.0.0.0", "::"]
    assert found[0]["HostPort"] == found[1]["HostPort"] == str(engine.container(one).ports[0].host_port)


def disconnected(engine: Engine) -> str:
    """The links of a container that was disconnected from its only network."""
    engine.create_network(NetworkConfig("late"))
    one = stays(engine, "one", network="late", ports=(Port(80),))
    engine.disconnect("one", "late")
    return ip(engine, one, "link")


def test_disconnect_is_done_when_it_returns(engine: Engine) -> None:
    """Else a container goes on in a network that it has left, by an address that another one may have by then."""
    assert "eth0" not in disconnected(engine)
    assert engine.container("one").ports == ()
    engine.connect("one", EndpointConfig("late"))  # where they are published again
    assert [port.container_port for port in engine.container("one").ports] == [80]


def test_twin_disconnect_leaves_the_link_to_the_end_of_the_container(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherry_plugins.network.bridge.links.LEAVE_SECONDS", 60.0)
    monkeypatch.setattr(BridgeNetwork, "_runs", lambda driver, sandbox_id: False)
    assert "eth0" in disconnected(engine)


def test_connect_and_disconnect_while_it_does_not_run(engine: Engine) -> None:
    engine.create_network(NetworkConfig("late"))
    made = engine.create(RunRequest(IMAGE, ("/bin/busybox", "sleep", "1000"), name="one", network="bridge"))
    engine.connect("one", EndpointConfig("late"))
    engine.disconnect("one", "bridge")
    assert engine.start("one").networks == ("late",)
    engine.stop("one", 0)
    engine.disconnect("one", "late")
    assert engine.start("one").networks == ("none",)
    assert "eth0" not in ip(engine, made.id, "link")


def test_a_container_in_anothers_network_or_the_hosts_is_not_connected(engine: Engine) -> None:
    stays(engine, "one", network="bridge")
    stays(engine, "two", network="container:one")
    stays(engine, "three", network="host")
    for name in ("two", "three"):
        with pytest.raises(FailedPrecondition):
            engine.connect(name, EndpointConfig("bridge"))


def test_an_owner_comes_back_to_the_network_it_shares(engine: Engine) -> None:
    """The sandbox stays with who joined it, and so do its addresses."""
    made = engine.create(RunRequest(IMAGE, ("/bin/busybox", "sleep", "1000"), name="owner", network="bridge"))
    engine.start("owner")
    before = engine.container("owner").addresses
    stays(engine, "guest", network="container:owner")
    engine.stop("owner", 0)
    assert engine.start("owner").addresses == before
    assert before[0] in ip(engine, made.id, "address show eth0")


def test_addresses_are_not_given_again_at_once(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab", subnets=("10.83.0.0/29",)))
    seen = [sh(engine, f"{IP} -o -4 address show eth0", image=IMAGE, network="lab").out.split()[3] for _ in range(6)]
    assert seen == [f"10.83.0.{number}/29" for number in (2, 3, 4, 5, 6, 2)]


def test_a_full_network_says_so(engine: Engine) -> None:
    engine.create_network(NetworkConfig("tiny", subnets=("10.84.0.0/30",)))
    stays(engine, "one", network="tiny")
    with pytest.raises(InUse, match="tiny"):
        stays(engine, "two", network="tiny")


def test_mtu(engine: Engine) -> None:
    engine.create_network(NetworkConfig("small", options={"mtu": "1280"}))
    assert "mtu 1280" in ip(engine, stays(engine, "one", network="small"), "link show eth0")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"subnets": ("10.85.0.1/24",)}, "did you mean 10.85.0.0/24"),
        ({"subnets": ("lan",)}, "CIDR"),
        ({"subnets": ("10.85.0.0/24",), "gateways": ("10.86.0.1",)}, "none of the subnets"),
        ({"subnets": ("10.85.0.0/24",), "gateways": ("10.85.0.255",)}, "not the address of a host"),
        ({"subnets": ("10.85.0.0/24",), "ip_ranges": ("10.86.0.0/25",)}, "none of the subnets"),
        ({"subnets": ("10.85.0.0/31",)}, "no room"),
        ({"options": {"mtuu": "1400"}}, 'did you mean "mtu"'),
        ({"options": {"mtu": "12"}}, "68 to 65535"),
    ],
)  # fmt: skip
def test_what_a_network_can_not_be(engine: Engine, wish: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        engine.create_network(NetworkConfig("bad", **wish))  # type: ignore[arg-type]
    assert "bad" not in {network.config.name for network in engine.networks()}


def test_subnets_of_two_networks_are_apart(engine: Engine) -> None:
    made = [engine.create_network(NetworkConfig(f"n{number}")).config.subnets[0] for number in range(4)]
    assert len(set(made)) == 4
    with pytest.raises(InUse, match="n0"):
        engine.create_network(NetworkConfig("again", subnets=(made[0],)))
    assert json.dumps(made)
