"""netd's rules between real namespaces: who reaches whom, by which address, and who does not.

Each attack has a twin in which one line of the rules is missing: there it succeeds.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.nets import BOUND, Machine, World, ask, inside, ip, nft, until, world
from wherry.api import Port
from wherry_plugins.network.bridge.netd import conntrack, rules
from wherry_plugins.network.bridge.netd.names import Names
from wherry_plugins.network.bridge.records import BridgeState, EndpointState

UDP = socket.SOCK_DGRAM


@pytest.fixture
def here() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def _switches() -> Iterator[None]:
    """What the rules need is switched on for good; the namespace is that of all tests of this process."""
    paths = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
    before = [path.read_text() for path in paths]
    yield
    for path, value in zip(paths, before, strict=True):
        path.write_text(value)


def from_host(address: str, port: int, kind: int = socket.SOCK_STREAM, seconds: float = BOUND) -> str:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        return ask(sock, address, port, seconds)


def without(monkeypatch: pytest.MonkeyPatch, chain: str, line: str) -> None:
    lines = rules.CHAINS[chain].split("\n")
    left = [text for text in lines if line not in text]
    assert len(left) == len(lines) - 1
    monkeypatch.setitem(rules.CHAINS, chain, "\n".join(left))


def net_a(here: World) -> BridgeState:
    return here.bridge("br-a", "10.77.1.1/24", "fd77:1::1/64")


def web_on(
    here: World, net: BridgeState, *ports: Port, address: str = "10.77.1.2/24", six: str = "fd77:1::2/64"
) -> Machine:
    web = here.machine("web", net, address, *([six] if six else []))
    web.serve(80)
    web.serve(80, UDP)
    here.endpoint(web, net, *ports)
    return web


# published ports


def test_a_published_port_is_reached_from_everywhere(here: World) -> None:
    net = net_a(here)
    out = here.outside()
    web = web_on(here, net, Port(80, "tcp", "", 8080), Port(80, "udp", "", 8080))
    assert out.ask("192.0.2.1", 8080) == "web,192.0.2.2"
    assert out.ask("2001:db8::1", 8080) == "web,2001:db8::2"
    assert out.ask("192.0.2.1", 8080, UDP) == "web,192.0.2.2"
    assert out.ask("2001:db8::1", 8080, UDP) == "web,2001:db8::2"
    for kind in (socket.SOCK_STREAM, UDP):
        assert from_host("127.0.0.1", 8080, kind) == "web,10.77.1.1"
        assert from_host("127.0.0.5", 8080, kind) == "web,10.77.1.1"
        assert from_host("::1", 8080, kind) == "web,fd77:1::1"
        assert from_host("192.0.2.1", 8080, kind) == "web,192.0.2.1"
        assert from_host("2001:db8::1", 8080, kind) == "web,2001:db8::1"
        assert web.ask("192.0.2.1", 8080, kind) == "web,10.77.1.1"  # itself
    other = here.machine("oth", net, "10.77.1.3/24", "fd77:1::3/64")
    assert other.ask("192.0.2.1", 8080) == "web,10.77.1.1"  # a neighbour, by the host
    assert other.ask("10.77.1.1", 8080) == "web,10.77.1.1"
    assert other.ask("10.77.1.2", 80) == "web,10.77.1.3"
    far = here.machine("far", here.bridge("br-b", "10.77.2.1/24", "fd77:2::1/64"), "10.77.2.2/24", "fd77:2::2/64")
    assert far.ask("192.0.2.1", 8080).startswith("web,")  # another network
    assert far.ask("2001:db8::1", 8080).startswith("web,")
    here.netd.forget("box-web", net.name)
    assert not out.reaches("192.0.2.1", 8080)
    with pytest.raises(ConnectionRefusedError):
        from_host("127.0.0.1", 8080)
    assert "8080" not in nft("list ruleset")


def test_a_port_of_one_address(here: World) -> None:
    net = net_a(here)
    out = here.outside()
    ip("address", "add", "192.0.2.7/24", "dev", "hout")
    web_on(here, net, Port(80, "tcp", "192.0.2.7", 8080), Port(80, "tcp", "2001:db8::1", 8080))
    assert out.ask("192.0.2.7", 8080) == "web,192.0.2.2"
    assert out.ask("2001:db8::1", 8080) == "web,2001:db8::2"
    assert from_host("192.0.2.7", 8080).startswith("web")
    assert not out.reaches("192.0.2.1", 8080)
    with pytest.raises(ConnectionRefusedError):
        from_host("127.0.0.1", 8080)


def test_ipv6_for_a_container_without(here: World) -> None:
    """What comes by IPv6 is carried over to the one address that there is."""
    net = here.bridge("br-a", "10.77.1.1/24")
    out = here.outside()
    web_on(here, net, Port(80, "tcp", "", 8080), six="")
    assert from_host("::1", 8080) == "web,10.77.1.1"
    assert out.ask("2001:db8::1", 8080) == "web,10.77.1.1"


def moves(here: World) -> list[str]:
    """Who answers one sender of datagrams, from one socket: while a container has the port, and when it is another's."""
    net = net_a(here)
    out = here.outside()
    old = here.machine("old", net, "10.77.1.3/24", "fd77:1::3/64")
    old.serve(80, UDP)
    found = []
    with out.open(socket.AF_INET, UDP) as v4, out.open(socket.AF_INET6, UDP) as v6:
        asked = [(v4, "192.0.2.1"), (v6, "2001:db8::1")]
        here.endpoint(old, net, Port(80, "udp", "", 8080))
        found += [ask(sock, address, 8080).partition(",")[0] for sock, address in asked]
        here.netd.forget("box-old", net.name)
        web_on(here, net, Port(80, "udp", "", 8080))
        found += [ask(sock, address, 8080).partition(",")[0] for sock, address in asked]
    return found


def test_a_sender_that_keeps_its_port(here: World) -> None:
    assert moves(here) == ["old", "old", "web", "web"]


def test_a_sender_of_one_that_went_while_no_netd_was_there(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody forgot its flows then; whoever has the port next does."""
    forget, calls = conntrack.forget, []

    def away(wanted: Callable[[conntrack.Flow], bool]) -> int:
        calls.append(wanted)
        return 0 if len(calls) == 2 else forget(wanted)

    monkeypatch.setattr(conntrack, "forget", away)
    assert moves(here) == ["old", "old", "web", "web"]
    assert len(calls) == 3


def test_twin_flows_are_remembered(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "forget", lambda _wanted: 0)
    assert moves(here) == ["old"] * 4


def test_two_ports_may_need_the_same_element(here: World) -> None:
    net = net_a(here)
    for name, last, host in (("one", 2, "127.0.0.1"), ("two", 3, "::1")):
        machine = here.machine(name, net, f"10.77.1.{last}/24", f"fd77:1::{last}/64")
        machine.serve(80)
        here.endpoint(machine, net, Port(80, "tcp", host, 8080))
    assert from_host("127.0.0.1", 8080).startswith("one")
    assert from_host("::1", 8080).startswith("two")
    here.netd.forget("box-one", net.name)
    assert "tcp . 8080" in nft(f"list set inet {here.netd.table} loopback")
    here.netd.forget("box-two", net.name)
    assert "8080" not in nft("list ruleset")


# a loopback publish


def steals_loopback(here: World, seconds: float = 1) -> bool:
    """A neighbour sends to 127.0.0.1 by the host's hardware address, where somebody has let the kernel take such packets."""
    net = net_a(here)
    out = here.outside()
    web_on(here, net, Port(80, "tcp", "127.0.0.1", 8080))
    assert from_host("127.0.0.1", 8080).startswith("web")
    for name in ("all", "hout"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")
    try:
        (link,) = json.loads(
            subprocess.run(["ip", "-j", "link", "show", "hout"], capture_output=True, check=True).stdout
        )
        out.ip("link", "set", "lo", "down")
        out.ip("neighbour", "add", "192.0.2.1", "lladdr", link["address"], "dev", "vout")
        inside(out.ns, lambda: Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1"))
        out.ip("rule", "add", "preference", "0", "lookup", "7")
        out.ip("rule", "delete", "preference", "0", "lookup", "local")
        out.ip("rule", "add", "preference", "9", "lookup", "local")
        out.ip("route", "add", "127.0.0.1/32", "via", "192.0.2.1", "dev", "vout", "table", "7")
        sock = out.open(socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            sock.bind(("192.0.2.2", 0))
            try:
                return ask(sock, "127.0.0.1", 8080, seconds).startswith("web")
            except OSError:
                return False
    finally:
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("0")


def test_a_loopback_publish_is_not_for_neighbours(here: World) -> None:
    assert not steals_loopback(here)


def test_twin_without_the_guard(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "guard", "ip daddr 127.0.0.0/8")
    assert steals_loopback(here, BOUND)


def test_a_loopback_publish_is_not_at_other_addresses(here: World) -> None:
    net = net_a(here)
    out = here.outside()
    web = web_on(here, net, Port(80, "tcp", "127.0.0.1", 8080), Port(80, "udp", "::1", 8080))
    assert from_host("127.0.0.1", 8080) == "web,10.77.1.1"
    assert from_host("::1", 8080, UDP) == "web,fd77:1::1"
    assert not out.reaches("192.0.2.1", 8080)
    assert not web.reaches("10.77.1.1", 8080)
    assert not out.reaches("2001:db8::1", 8080, UDP)


# what was not published


def routes_to_a_container(here: World, seconds: float = 1) -> bool:
    """A neighbour knows the way to a container, and nobody has published its port."""
    net = net_a(here)
    out = here.outside()
    web_on(here, net, Port(81, "tcp", "", 8080))
    out.ip("route", "add", "10.77.1.0/24", "via", "192.0.2.1")
    return out.reaches("10.77.1.2", 80, seconds=seconds)


def test_what_is_not_published_is_not_reached(here: World) -> None:
    assert not routes_to_a_container(here)


def test_twin_without_the_last_drop(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "inward", "        drop")
    assert routes_to_a_container(here, BOUND)


# networks among each other


def crosses(here: World, seconds: float = 0.5, **options: bool) -> tuple[bool, bool]:
    """Whether two networks reach each other, by IPv4 and by IPv6."""
    web_on(here, here.bridge("br-a", "10.77.1.1/24", "fd77:1::1/64", **options))
    net = here.bridge("br-b", "10.77.2.1/24", "fd77:2::1/64", **options)
    far = here.machine("far", net, "10.77.2.2/24", "fd77:2::2/64")
    return far.reaches("10.77.1.2", 80, seconds=seconds), far.reaches("fd77:1::2", 80, seconds=seconds)


def test_networks_are_apart(here: World) -> None:
    assert crosses(here) == (False, False)


def test_twin_networks_without_the_last_drop(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "inward", "        drop")
    assert crosses(here, BOUND) == (True, True)


def test_open_networks_reach_each_other(here: World) -> None:
    assert crosses(here, BOUND, isolated=False) == (True, True)


# ways out


def test_what_leaves_has_the_hosts_address(here: World) -> None:
    out = here.outside()
    out.serve(80)
    web = web_on(here, net_a(here))
    assert web.ask("192.0.2.2", 80) == "out,192.0.2.1"
    assert web.ask("2001:db8::2", 80) == "out,2001:db8::1"
    plain = here.machine("pla", here.bridge("br-b", "10.77.2.1/24", masquerade=False), "10.77.2.2/24")
    out.ip("route", "add", "10.77.2.0/24", "via", "192.0.2.1")
    assert plain.ask("192.0.2.2", 80) == "out,10.77.2.2"


def internal(here: World) -> dict[str, Callable[[float], bool]]:
    """What a container of an internal network might try, and who might try to reach it."""
    out = here.outside()
    out.serve(80)
    net = here.bridge("br-i", "10.77.3.1/24", "fd77:3::1/64", internal=True)
    inner = here.machine("inn", net, "10.77.3.2/24", "fd77:3::2/64")
    inner.serve(80)
    here.endpoint(inner, net)
    web = web_on(here, net_a(here), Port(80, "tcp", "", 8080))
    out.ip("route", "add", "10.77.3.0/24", "via", "192.0.2.1")
    out.ip("route", "add", "fd77:3::/64", "via", "2001:db8::1")
    assert from_host("10.77.3.2", 80) == "inn,10.77.3.1"  # the host itself may
    return {
        "outside": lambda seconds: inner.reaches("192.0.2.2", 80, seconds=seconds),
        "outside by IPv6": lambda seconds: inner.reaches("2001:db8::2", 80, seconds=seconds),
        "a published port": lambda seconds: inner.reaches("192.0.2.1", 8080, seconds=seconds),
        "a published port at its gateway": lambda seconds: inner.reaches("10.77.3.1", 8080, seconds=seconds),
        "another network": lambda seconds: inner.reaches("10.77.1.2", 80, seconds=seconds),
        "from outside": lambda seconds: out.reaches("10.77.3.2", 80, seconds=seconds),
        "from another network": lambda seconds: web.reaches("10.77.3.2", 80, seconds=seconds),
    }


def test_an_internal_network_has_no_way_out_or_in(here: World) -> None:
    assert [name for name, reached in internal(here).items() if reached(0.5)] == []


def test_twin_internal_as_any_other(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "inward", "iifname @internal")
    without(monkeypatch, "forward", "iifname @internal")
    tries = internal(here)
    for name in ("outside", "outside by IPv6", "a published port", "a published port at its gateway"):
        assert tries[name](BOUND), name


def carried(here: World) -> Machine:
    """netd itself carries IPv6 over to a container without. This one is in an internal network, and asks by its gateway."""
    out = here.outside()
    web_on(here, here.bridge("br-a", "10.77.1.1/24"), Port(80, "tcp", "", 8080), Port(80, "udp", "", 8080), six="")
    net = here.bridge("br-i", "10.77.3.1/24", "fd77:3::1/64", internal=True)
    assert out.ask("2001:db8::1", 8080).startswith("web")
    return here.machine("inn", net, "10.77.3.2/24", "fd77:3::2/64")


def test_an_internal_network_and_a_port_without_ipv6(here: World) -> None:
    inner = carried(here)
    assert not inner.reaches("fd77:3::1", 8080, UDP)
    with pytest.raises(ConnectionError):
        inner.ask("fd77:3::1", 8080)


def test_twin_anybody_is_carried(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Names, "internal", lambda self, _address: False)
    inner = carried(here)
    assert inner.reaches("fd77:3::1", 8080, UDP, BOUND)
    assert inner.reaches("fd77:3::1", 8080, seconds=BOUND)


def test_containers_that_may_not_speak_to_each_other(here: World) -> None:
    """Here frames of bridges pass the packet filter; elsewhere the ports of the bridge are isolated."""
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        pytest.skip("this kernel has no br_netfilter")
    net = here.bridge("br-a", "10.77.1.1/24", icc=False)
    here.outside()
    web_on(here, net, Port(80, "tcp", "", 8080), six="")
    other = here.machine("oth", net, "10.77.1.3/24")
    assert not other.reaches("10.77.1.2", 80)
    assert other.ask("192.0.2.1", 8080) == "web,10.77.1.1"


# senders


def lies_about_its_address(here: World) -> list[str]:
    """What a neighbour hears of a container that sends with an address of somebody else's."""
    out = here.outside()
    heard = out.serve(80, UDP).seen
    web = web_on(here, here.bridge("br-a", "10.77.1.1/24", "fd77:1::1/64", masquerade=False))
    for address in ("198.51.100.9", "2001:db8:9::9"):
        six = ["nodad"] if ":" in address else []
        web.ip("address", "add", address, "dev", web.interface, *six)
        with web.open(socket.AF_INET6 if six else socket.AF_INET, UDP) as sock:
            sock.bind((address, 0))
            sock.sendto(b"?", ("2001:db8::2" if six else "192.0.2.2", 80))
    with web.open(socket.AF_INET, UDP) as sock:
        sock.bind(("10.77.1.2", 0))
        sock.sendto(b"?", ("192.0.2.2", 80))  # the truth, after them
    until(lambda: "10.77.1.2" in heard)
    return heard


def test_a_container_sends_with_its_own_address(here: World) -> None:
    assert lies_about_its_address(here) == ["10.77.1.2"]


def test_twin_without_a_look_at_senders(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "senders", "iifname . ip saddr")
    without(monkeypatch, "senders", "iifname . ip6 saddr")
    assert set(lies_about_its_address(here)) >= {"198.51.100.9"}


# others at the packet filter


def listed(here: World) -> list[str]:
    """The words of the table, in any order; nothing while it is gone."""
    argv = ["nft", f"list table inet {here.netd.table}"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=BOUND)
    return sorted(done.stdout.split())


def test_a_flush_is_made_good_at_once(here: World) -> None:
    net = net_a(here)
    out = here.outside()
    web_on(here, net, Port(80, "tcp", "", 8080))
    whole = listed(here)
    for harm in (
        "flush ruleset",
        f"flush table inet {here.netd.table}",
        f"delete table inet {here.netd.table}",
        f"flush set inet {here.netd.table} bridges",
        f"flush chain inet {here.netd.table} inward",
        f"add table inet {here.netd.table} {{ flags dormant; }}",
        f"delete element inet {here.netd.table} any4 {{ tcp . 8080 }}",
    ):
        nft(harm)
        until(lambda: listed(here) == whole)
        here.netd.check("box-web", net.name)
    assert out.ask("192.0.2.1", 8080) == "web,192.0.2.2"


def test_rules_of_others_are_left_alone(here: World) -> None:
    nft(
        "add table inet foreign; add chain inet foreign c { type filter hook input priority 0; }; add rule inet foreign c accept"
    )
    try:
        before = nft("list table inet foreign")
        net = net_a(here)
        web_on(here, net, Port(80, "tcp", "", 8080))
        nft(f"delete table inet {here.netd.table}")
        until(lambda: here.netd.table in nft("list tables"))
        here.netd.stop()
        assert nft("list table inet foreign") == before
        assert here.netd.table not in nft("list tables")
    finally:
        nft("delete table inet foreign")


def test_somebody_who_flushes_in_a_loop(here: World) -> None:
    net_a(here)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        nft("flush ruleset")
    until(lambda: here.netd.table in nft("list tables"))
    here.netd.check()


def test_many_ports(here: World) -> None:
    net = net_a(here)
    ports = [Port(80, "tcp", "127.0.0.1", 20000 + number) for number in range(250)]
    web_on(here, net, *ports)
    assert from_host("127.0.0.1", 20000) == from_host("127.0.0.1", 20249) == "web,10.77.1.1"
    here.netd.check("box-web", net.name)


def test_many_at_once(here: World) -> None:
    """Whatever the order, what is there in the end is what is left of it."""
    net = net_a(here)

    def come_and_go(number: int) -> None:
        port = Port(80, "tcp", "", 20000 + number)
        state = EndpointState(
            f"box-{number}", net.name, "", (f"10.77.1.{number}/24", f"fd77:1::{number}/64"), names=("n",), ports=(port,)
        )
        for _turn in range(3):
            here.netd.endpoint(state)
            if number % 2 or _turn < 2:
                here.netd.forget(f"box-{number}", net.name)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(come_and_go, range(10, 90)))
    here.netd.check()
    assert len(here.netd.known()) == 40
    for name in ("any4", "any6"):
        assert nft(f"list map inet {here.netd.table} {name}").count("tcp . 2") == 40
