"""network/cni with Debian's containernetworking-plugins, from lists that an administrator would write (CNI 1.0.0)."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cni import BIN, need_plugins, no_rules
from support.drivers import HOST, Driven, driven, echo, ip, uplink, veth
from wherry.api import AttachRequest, Error, FailedPrecondition, InUse, Invalid, NetworkConfig, Port


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "net.d").mkdir()
    return tmp_path / "net.d"


@pytest.fixture
def made(conf: Path) -> Iterator[Driven]:
    need_plugins()
    with uplink(), veth("lan0", "lan1", ("10.91.0.1/24",)):
        try:
            with driven("cni", {"conf_dirs": (str(conf),), "bin_dirs": (BIN,)}) as made:
                yield made
        finally:
            no_rules()


def write(conf: Path, *plugins: dict[str, Any], name: str = "lab") -> None:
    (conf / f"{name}.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins}))


def host_local(conf: Path, subnet: str, **more: Any) -> dict[str, Any]:
    routes = [{"dst": "0.0.0.0/0"}]
    return {"type": "host-local", "subnet": subnet, "routes": routes, "dataDir": str(conf.parent / "leases"), **more}


def leases(conf: Path) -> list[str]:
    """Addresses that host-local has given and not got back."""
    return [path.name for path in (conf.parent / "leases").glob("*/*") if path.name.count(".") == 3 or ":" in path.name]


def nat() -> str:
    return subprocess.run(["iptables-save"], capture_output=True, text=True, timeout=60, check=True).stdout


def test_bridge_firewall_and_portmap(made: Driven, conf: Path) -> None:
    write(
        conf,
        {
            "type": "bridge",
            "bridge": "cnibr0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "capabilities": {"ips": True, "mac": True},
            "ipam": host_local(conf, "10.92.0.0/24"),
        },
        {"type": "firewall"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    )
    try:
        attached = made.attached("lab", "s-1", ports=(Port(80), Port(53, "udp")), mac="02:00:00:00:00:31")
        assert attached.addresses == ("10.92.0.2/24",)
        assert attached.gateways == ("10.92.0.1",)
        assert attached.mac == "02:00:00:00:00:31"
        assert set(attached.addresses) <= made.addresses("s-1")
        assert leases(conf) == ["10.92.0.2"]
        tcp, udp = attached.reservation.ports
        for address in (HOST[0], "127.0.0.1"):
            echo(made.socket("s-1"), socket.socket(), ("0.0.0.0", 80), (address, tcp.host_port))
        kind = socket.SOCK_DGRAM
        echo(made.socket("s-1", kind=kind), socket.socket(type=kind), ("0.0.0.0", 53), (HOST[0], udp.host_port))
        made.attached("lab", "s-2", addresses=("10.92.0.77",))
        assert "10.92.0.77/24" in made.addresses("s-2")
        echo(made.socket("s-1"), made.socket("s-2"), ("0.0.0.0", 81), ("10.92.0.2", 81))
        echo(made.socket("s-1"), made.socket("s-2"), ("0.0.0.0", 80), (HOST[0], tcp.host_port))
        made.open().check("s-1", "lab")
        made.reopen().check("s-1", "lab")
        made.inside("s-1", "ip", "address", "flush", "dev", "eth0")
        with pytest.raises(FailedPrecondition):
            made.open().check("s-1", "lab")
        # the plugin "bridge" takes away the rules of the addresses that it finds at DEL
        made.inside("s-1", "ip", "address", "add", "10.92.0.2/24", "dev", "eth0")
        for id in ("s-1", "s-2"):
            made.open().detach(id, "lab")
            made.open().detach(id, "lab")
        assert not leases(conf)
        assert str(tcp.host_port) not in nat()
        assert "10.92.0" not in nat()
    finally:
        subprocess.run(["ip", "link", "del", "cnibr0"], capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("subnets", [("10.92.0.0/24",), ("10.92.0.0/24", "fd92::/64"), ("fd92::/64",)])
def test_check_of_published_ports(made: Driven, conf: Path, subnets: tuple[str, ...]) -> None:
    """portmap looks for the rules of each address family in those of the other too. What it rightly misses is told."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": one}] for one in subnets],
        "dataDir": str(conf.parent / "leases"),
    }
    bridge = {"type": "bridge", "bridge": "cnibr0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    write(conf, bridge, {"type": "portmap", "capabilities": {"portMappings": True}})
    try:
        made.attached("lab", "s-1", ports=(Port(80),))
        made.open().check("s-1", "lab")
        if "10.92.0.0/24" in subnets:
            subprocess.run(["iptables", "-t", "nat", "-F"], check=True, timeout=60)
            with pytest.raises(FailedPrecondition, match="could not check ipv4 dnat"):
                made.open().check("s-1", "lab")
        made.open().detach("s-1", "lab")
    finally:
        subprocess.run(["ip", "link", "del", "cnibr0"], capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "plugin",
    [
        {"type": "ptp", "ipMasq": False, "mtu": 1400},
        {"type": "macvlan", "master": "lan0", "mode": "bridge", "mtu": 1400},
    ],
    ids=lambda plugin: plugin["type"],
)
def test_ptp_and_macvlan(made: Driven, conf: Path, plugin: dict[str, Any]) -> None:
    before = {name for _, name in socket.if_nameindex()}
    write(conf, {**plugin, "ipam": host_local(conf, "10.91.0.0/24", rangeStart="10.91.0.50")})
    attached = made.attached("lab", "s-1")
    assert attached.addresses == ("10.91.0.50/24",)
    assert set(attached.addresses) <= made.addresses("s-1")
    assert b"mtu 1400" in made.inside("s-1", "ip", "link", "show", "eth0").stdout
    if plugin["type"] == "macvlan":
        seen = echo(socket.socket(), made.socket("s-1"), ("10.91.0.1", 7020), ("10.91.0.1", 7020))
    else:
        seen = echo(socket.socket(), made.socket("s-1"), (HOST[0], 7020), (HOST[0], 7020))
    assert seen == "10.91.0.50"
    made.open().check("s-1", "lab")
    made.inside("s-1", "ip", "link", "del", "eth0")
    with pytest.raises(FailedPrecondition):
        made.open().check("s-1", "lab")
    made.open().detach("s-1", "lab")
    assert not leases(conf)
    assert {name for _, name in socket.if_nameindex()} == before


def test_loopback_alone(made: Driven, conf: Path) -> None:
    write(conf, {"type": "loopback"})
    attached = made.attached("lab", "s-1", interface="lo")
    assert set(attached.addresses) == {"127.0.0.1/8", "::1/128"}
    made.open().check("s-1", "lab")
    made.open().detach("s-1", "lab")


def test_addresses_by_static(made: Driven, conf: Path) -> None:
    """It needs the prefix, which comes from the list where it is written."""
    write(
        conf,
        {
            "type": "macvlan",
            "master": "lan0",
            "capabilities": {"ips": True},
            "ipam": {"type": "static", "subnet": "10.91.0.0/24", "addresses": []},
        },
    )
    assert made.attached("lab", "s-1", addresses=("10.91.0.99",)).addresses == ("10.91.0.99/24",)
    made.open().detach("s-1", "lab")


def test_an_address_by_args_alone(made: Driven, conf: Path) -> None:
    """host-local reads them; no plugin declares a capability here."""
    write(conf, {"type": "macvlan", "master": "lan0", "ipam": host_local(conf, "10.91.0.0/24")})
    assert made.attached("lab", "s-1", addresses=("10.91.0.88",)).addresses == ("10.91.0.88/24",)
    made.open().detach("s-1", "lab")
    with pytest.raises(Error, match=r"10\.99\.0\.1|no plugin"):
        made.attached("lab", "s-2", addresses=("10.99.0.1",))
    made.open().detach("s-2", "lab")
    assert not leases(conf)


def test_an_error_of_a_plugin(made: Driven, conf: Path) -> None:
    write(conf, {"type": "macvlan", "master": "nope0", "ipam": host_local(conf, "10.91.0.0/24")})
    with pytest.raises(Error, match=r'CNI plugin "macvlan" \(ADD, network "lab"\): Link not found \(code 999\)'):
        made.attached("lab", "s-1")
    with pytest.raises(Error, match="DEL"):  # this plugin looks for the master first, whatever it is asked
        made.open().detach("s-1", "lab")
    write(conf, {"type": "macvlan", "master": "lan0", "ipam": host_local(conf, "10.91.0.0/24")})
    made.open().detach("s-1", "lab")
    assert not leases(conf)


def test_both_families(made: Driven, conf: Path) -> None:
    ranges = [[{"subnet": "10.93.0.0/24"}], [{"subnet": "fd93::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(conf.parent / "leases")}
    write(conf, {"type": "bridge", "bridge": "cnibr1", "isGateway": True, "ipam": ipam})
    try:
        attached = made.attached("lab", "s-1")
        assert attached.addresses == ("10.93.0.2/24", "fd93::2/64")
        assert set(attached.addresses) <= made.addresses("s-1")
        assert made.open().inspect("lab")[0].subnets == ("10.93.0.0/24", "fd93::/64")
        made.open().detach("s-1", "lab")
    finally:
        ip("link", "del", "cnibr1")


def test_a_sandbox_in_two_lists(made: Driven, conf: Path) -> None:
    for name, start in (("lab", "10.91.0.60"), ("more", "10.91.0.70")):
        write(
            conf,
            {"type": "macvlan", "master": "lan0", "ipam": host_local(conf, "10.91.0.0/24", rangeStart=start)},
            name=name,
        )
    made.attached("lab", "s-1")
    ipam = made.attached("more", "s-1", interface="eth1")
    assert ipam.addresses == ("10.91.0.70/24",)
    assert "10.91.0.60/24" in made.addresses("s-1", "eth0")
    made.open().detach("s-1", "lab")
    made.open().check("s-1", "more")
    made.open().detach("s-1", "more")
    assert not leases(conf)


def test_networks_of_our_own(made: Driven) -> None:
    """create writes a list for them; remove takes the bridge away too."""
    driver = made.open()
    before = {name for _, name in socket.if_nameindex()}
    config = driver.create(
        NetworkConfig(
            "own", subnets=("10.94.0.0/24",), ip_ranges=("10.94.0.128/25",), ipv6=False, options={"mtu": "1400"}
        )
    )
    assert config.gateways == ("10.94.0.1",)
    other = driver.create(NetworkConfig("other", internal=True))
    assert other.subnets != config.subnets
    six = driver.create(NetworkConfig("six", ipv6=True))
    assert [":" in text for text in six.subnets] == [False, True]
    assert made.attached("own", "s-1", ports=(Port(80),)).addresses == ("10.94.0.128/24",)
    assert made.attached("other", "s-2").addresses
    assert len(made.attached("six", "s-3").addresses) == 2
    assert b"default" not in made.inside("s-2", "ip", "route").stdout
    with pytest.raises(Invalid, match="portMappings"):
        driver.reserve(AttachRequest("s-4", "other", ports=(Port(80),)))
    with pytest.raises(InUse):
        driver.remove("own")
    assert driver.gc(()) == 3
    for name in ("own", "other", "six"):
        driver.remove(name)
    assert {name for _, name in socket.if_nameindex()} == before


@pytest.mark.parametrize(
    "wish",
    [
        NetworkConfig("../up"),
        NetworkConfig("x", options={"color": "red"}),
        NetworkConfig("x", options={"mtu": "big"}),
        NetworkConfig("x", options={"bridge": "a name that is too long"}),
        NetworkConfig("x", subnets=("10.94.0.1/24",)),
        NetworkConfig("x", subnets=("10.94.0.0/24",), gateways=("10.95.0.1",)),
        NetworkConfig("x", subnets=("10.94.0.0/24",), ip_ranges=("10.95.0.0/25",)),
        NetworkConfig("x", options={"conflist": "/no/such/file"}),
        NetworkConfig("x", options={"conflist": "/no/such/file", "mtu": "1400"}),
    ],
    ids=repr,
)
def test_no_network_of_wrong_wishes(made: Driven, wish: NetworkConfig) -> None:
    with pytest.raises(Invalid):
        made.open().create(wish)
    assert not list(made.open().list())
