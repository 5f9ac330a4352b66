"""network/macvlan on a veth pair: one end is the parent, the other the neighbour on its network."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from support.drivers import Died, Driven, driven, dying, echo, ip, killed_everywhere, veth
from wherry.api import AttachRequest, FailedPrecondition, InUse, Invalid, NetworkConfig, NotFound, Port, Sandbox
from wherry.kit.networks.netlink import Rtnl
from wherry.kit.networks.store import NetworkStore
from wherry_plugins.network.macvlan.links import MacvlanLinks

LAN = ("10.91.0.1/24", "fd91::1/64")


@pytest.fixture
def made() -> Iterator[Driven]:
    with veth("lan0", "lan1", LAN), driven("macvlan") as made:
        yield made


def lan(made: Driven, name: str = "lan", **options: str) -> NetworkConfig:
    wish = NetworkConfig(name, subnets=("10.91.0.0/24", "fd91::/64"), options={"parent": "lan0", **options})
    return made.open().create(wish)


def test_addresses_of_its_own_on_the_network_of_the_parent(made: Driven) -> None:
    lan(made)
    attached = made.attached("lan", "s-1", addresses=("10.91.0.77",), mac="02:00:00:00:00:77")
    assert attached.mac == "02:00:00:00:00:77"
    assert attached.gateways == ("10.91.0.1", "fd91::1")
    assert set(attached.addresses) == {"10.91.0.77/24", "fd91::2/64"}
    assert set(attached.addresses) <= made.addresses("s-1")
    assert b"default via 10.91.0.1" in made.inside("s-1", "ip", "route").stdout
    seen = echo(socket.socket(), made.socket("s-1"), ("10.91.0.1", 7001), ("10.91.0.1", 7001))
    assert seen == "10.91.0.77"
    six = socket.AF_INET6
    seen = echo(socket.socket(six), made.socket("s-1", six), ("fd91::1", 7001), ("fd91::1", 7001))
    assert seen == "fd91::2"
    assert "macvlan" in made.inside("s-1", "ip", "-d", "link", "show", "eth0").stdout.decode()


def reach(made: Driven) -> str:
    return echo(made.socket("s-1"), made.socket("s-2"), ("0.0.0.0", 7002), ("10.91.0.2", 7002))


def test_bridge_mode_lets_containers_speak(made: Driven) -> None:
    lan(made)
    made.attached("lan", "s-1")
    made.attached("lan", "s-2")
    assert reach(made) == "10.91.0.3"


def test_private_mode_does_not(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.drivers.BOUND", 2.0)
    lan(made, mode="private")
    made.attached("lan", "s-1")
    made.attached("lan", "s-2")
    with pytest.raises(OSError):
        reach(made)


def test_the_modes_and_the_mtu_are_the_kernels(made: Driven) -> None:
    for mode in ("vepa", "private", "bridge"):
        made.open().create(
            NetworkConfig(
                mode, subnets=("10.92.0.0/24",), options={"parent": "lan0", "macvlan_mode": mode, "mtu": "1400"}
            )
        )
        made.attached(mode, f"s-{mode}")
        said = made.inside(f"s-{mode}", "ip", "-d", "link", "show", "eth0").stdout.decode()
        assert f"macvlan mode {mode}" in said
        assert "mtu 1400" in said
        made.open().detach(f"s-{mode}", mode)
        made.open().remove(mode)


def test_passthru_is_for_one(made: Driven) -> None:
    lan(made, mode="passthru")
    said = subprocess.run(["ip", "-j", "link", "show", "lan0"], capture_output=True, timeout=60, check=True).stdout
    mac = json.loads(said)[0]["address"]
    assert made.attached("lan", "s-1").mac == mac
    with pytest.raises(InUse, match="one container at a time"):
        made.attached("lan", "s-2")
    with pytest.raises(Invalid, match="passthru"):
        made.open().reserve(AttachRequest("s-3", "lan", mac="02:00:00:00:00:77"))


def test_no_ports_and_no_strange_wishes(made: Driven) -> None:
    lan(made)
    driver = made.open()
    with pytest.raises(Invalid, match="publishes none"):
        driver.reserve(AttachRequest("s-1", "lan", ports=(Port(80),)))
    for address in ("10.99.0.1", "10.91.0.0", "10.91.0.255"):
        with pytest.raises(Invalid):
            driver.reserve(AttachRequest("s-1", "lan", addresses=(address,)))
    with pytest.raises(InUse, match="gateway"):
        driver.reserve(AttachRequest("s-1", "lan", addresses=("10.91.0.1",)))
    driver.reserve(AttachRequest("s-1", "lan", addresses=("10.91.0.9",)))
    with pytest.raises(InUse):
        driver.reserve(AttachRequest("s-2", "lan", addresses=("10.91.0.9",)))
    driver.detach("s-1", "lan")
    driver.reserve(AttachRequest("s-2", "lan", addresses=("10.91.0.9",)))


@pytest.mark.parametrize(
    "options", [{"parent": "nope0"}, {"parent": "nope0.10"}, {"mode": "loud"}, {"mtu": "1"}, {"color": "red"}]
)
def test_no_network_of_wrong_options(made: Driven, options: dict[str, str]) -> None:
    with pytest.raises((Invalid, NotFound)):
        lan(made, **options)
    assert not list(made.open().list())


def test_never_in_the_hosts_namespace(made: Driven) -> None:
    lan(made)
    reservation = made.open().reserve(AttachRequest("s-1", "lan"))
    made.sandbox("s-1", "host")
    before = sorted(name for _, name in socket.if_nameindex())
    for sandbox in (Sandbox("s-1", "host"), Sandbox("s-1")):  # the second one is not what the shim has
        with pytest.raises((FailedPrecondition, NotFound)):
            made.open().attach(reservation, sandbox)
    made.open().detach("s-1", "lan")
    assert sorted(name for _, name in socket.if_nameindex()) == before


def test_an_attach_that_was_broken_off_is_done_again(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    lan(made)
    reservation = made.open().reserve(AttachRequest("s-1", "lan"))
    sandbox = made.sandbox("s-1", "")

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise OSError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("wherry.kit.networks.interfaces.furnish", refuse)
        with pytest.raises(OSError, match="planted"):
            made.open().attach(reservation, sandbox)
    assert made.reopen().attach(reservation, sandbox).addresses
    assert "10.91.0.2/24" in made.addresses("s-1")


def test_check_finds_what_is_gone(made: Driven) -> None:
    lan(made)
    made.attached("lan", "s-1")
    made.open().check("s-1", "lan")
    made.inside("s-1", "ip", "address", "del", "10.91.0.2/24", "dev", "eth0")
    with pytest.raises(FailedPrecondition, match="lost the address"):
        made.open().check("s-1", "lan")
    made.inside("s-1", "ip", "link", "del", "eth0")
    with pytest.raises(FailedPrecondition, match="no interface"):
        made.open().check("s-1", "lan")


def test_detach_takes_the_interface_from_one_that_goes_on(made: Driven) -> None:
    lan(made)
    made.attached("lan", "s-1")
    made.open().detach("s-1", "lan")
    assert b"eth0" not in made.inside("s-1", "ip", "link").stdout


def can_make(kind: str, *words: str) -> None:
    """Skips where the kernel has no such links."""
    tried = subprocess.run(["ip", "link", "add", *words], capture_output=True, text=True, timeout=60, check=False)
    if tried.returncode:
        pytest.skip(f"this kernel has no {kind} interfaces: {tried.stderr.strip()}")
    ip("link", "del", words[words.index("name") + 1])


def names() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_a_vlan_is_made_and_goes_with_the_network(made: Driven) -> None:
    can_make("VLAN", "link", "lan0", "name", "probe", "type", "vlan", "id", "10")
    made.open().create(NetworkConfig("ten", subnets=("10.93.0.0/24",), options={"parent": "lan0.10"}))
    assert "lan0.10" in names()
    made.attached("ten", "s-1")
    made.open().detach("s-1", "ten")
    made.open().remove("ten")
    assert "lan0.10" not in names()


def test_a_vlan_that_was_there_stays(made: Driven) -> None:
    can_make("VLAN", "link", "lan0", "name", "probe", "type", "vlan", "id", "10")
    ip("link", "add", "link", "lan0", "name", "lan0.10", "type", "vlan", "id", "10")
    try:
        made.open().create(NetworkConfig("ten", subnets=("10.93.0.0/24",), options={"parent": "lan0.10"}))
        made.open().remove("ten")
        assert "lan0.10" in names()
    finally:
        ip("link", "del", "lan0.10")


def test_without_a_parent_it_leads_nowhere(made: Driven) -> None:
    can_make("dummy", "name", "probe", "type", "dummy")
    before = names()
    made.open().create(NetworkConfig("in", subnets=("10.93.0.0/24",)))
    assert made.attached("in", "s-1").gateways == ()
    made.attached("in", "s-2")
    assert echo(made.socket("s-1"), made.socket("s-2"), ("0.0.0.0", 7003), ("10.93.0.2", 7003)) == "10.93.0.3"
    made.open().gc(())
    made.open().remove("in")
    assert names() == before


def test_what_a_kernel_without_them_says(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(self: Rtnl, *messages: Any) -> None:
        asked.extend(self._encode(type, flags, message) for type, flags, message, _what in messages)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Rtnl, "ask", refuse)
    with pytest.raises(FailedPrecondition, match="this kernel has no dummy interfaces"):
        made.open().create(NetworkConfig("in", subnets=("10.93.0.0/24",)))
    with pytest.raises(FailedPrecondition, match="this kernel has no VLAN interfaces"):
        made.open().create(NetworkConfig("ten", subnets=("10.93.0.0/24",), options={"parent": "lan0.10"}))
    monkeypatch.undo()
    assert not list(made.open().list())
    assert b"dummy" in asked[0]
    message = ifinfmsg(asked[1])
    message.decode()
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vlan"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID") == 10
    assert message.get_attr("IFLA_LINK") == socket.if_nametoindex("lan0")


def test_gc_after_an_engine_that_died_leaves_the_living(made: Driven) -> None:
    lan(made)
    for id in ("s-1", "s-2", "s-3"):
        made.attached("lan", id)
    made.open().reserve(AttachRequest("s-4", "lan"))
    driver = made.reopen()
    assert driver.gc({"s-2"}) == 3
    assert [one.reservation.request.sandbox_id for one in driver.inspect("lan")[1]] == ["s-2"]
    assert "10.91.0.3/24" in made.addresses("s-2")
    assert "lan0" in names()
    with pytest.raises(InUse):
        driver.remove("lan")


STEPS = (
    (Rtnl, "ask"),
    (NetworkStore, "reserve"),
    (NetworkStore, "attached"),
    (NetworkStore, "release"),
    (NetworkStore, "keep"),
    (NetworkStore, "drop"),
)


def test_killed_at_every_step(made: Driven) -> None:
    def life() -> None:
        lan(made)
        driver = made.open()
        driver.attach(driver.reserve(AttachRequest("s-1", "lan")), made.sandbox("s-1", ""))
        driver.detach("s-1", "lan")
        driver.remove("lan")

    def after(step: int) -> None:
        driver = made.reopen()
        driver.gc(())
        for config in list(driver.list()):
            assert driver.inspect(config.name)[1] == (), step
            driver.remove(config.name)
        if any(sandbox.id == "s-1" for sandbox in made.shim.sandboxes()):
            assert b"eth0" not in made.inside("s-1", "ip", "link").stdout, step

    assert killed_everywhere(life, after, STEPS, 1) > 12


def test_a_step_less_and_it_leaks(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: what is taken out of a container only when its attach was told to be done."""
    lan(made)
    reservation = made.open().reserve(AttachRequest("s-1", "lan"))
    sandbox = made.sandbox("s-1", "")
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 1, [(NetworkStore, "attached")])
        with pytest.raises(Died):
            made.open().attach(reservation, sandbox)
    real = MacvlanLinks.unplug
    monkeypatch.setattr(MacvlanLinks, "unplug", lambda self, place: real(self, place) if place.attached else None)
    made.reopen().gc(())
    assert b"eth0" in made.inside("s-1", "ip", "link").stdout
