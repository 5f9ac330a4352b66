"""A driver that is led astray: by a sandbox that is the host's, by a bridge that somebody took away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.running import execute
from wherry.api import AlreadyExists, AttachRequest, Engine, FailedPrecondition, Invalid, NetworkConfig, RunRequest
from wherry.testing import NetworkHarness
from wherry_plugins.network.bridge import wherry_network
from wherry_plugins.network.bridge.links import BridgeLinks
from wherry_plugins.network.bridge.netns import BridgeNetns


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[NetworkHarness]:
    made = NetworkHarness(tmp_path, "network", wherry_network(), {}, with_shim=True)
    yield made
    made.close()


def links() -> set[str]:
    return {name for _index, name in socket.if_nameindex()}


def attach_to_the_hosts(harness: NetworkHarness) -> None:
    """By the path of a namespace, which is all that a sandbox says of itself: this one's is the host's."""
    reservation = harness.open().reserve(AttachRequest("s-1", "bridge", interface="stray0"))
    sandbox = harness.sandbox("s-1", f"/proc/{os.getpid()}/ns/net")
    try:
        harness.open().attach(reservation, sandbox)
    finally:
        harness.open().detach("s-1", "bridge")


def test_the_hosts_namespace_by_its_path(harness: NetworkHarness) -> None:
    with pytest.raises(FailedPrecondition, match="is the host's"):
        attach_to_the_hosts(harness)
    assert "stray0" not in links()


def test_twin_nobody_looks_whose_it_is(harness: NetworkHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BridgeNetns, "is_ours", lambda hub, fd: False)
    monkeypatch.setattr("wherry_plugins.network.bridge.links.BridgeLinks.leave", lambda links, name: None)
    attach_to_the_hosts(harness)
    assert "stray0" in links()
    subprocess.run(["ip", "link", "delete", "stray0"], check=True, timeout=30)


def test_a_bridge_that_is_gone_is_made_anew(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab", options={"interface": "lab0"}))
    request = RunRequest("host:/bin/busybox", ("/bin/busybox", "sleep", "1000"), network="lab")
    first = engine.run(request)
    subprocess.run(["ip", "link", "delete", "lab0"], check=True, timeout=30)
    second = engine.run(request)
    gateway = engine.network("lab").config.gateways[0]
    assert execute(engine, second.id, "/bin/busybox", "ping", "-c", "1", "-W", "10", gateway).code == 0
    for container in (first, second):
        engine.remove(container.id, force=True)
    engine.remove_network("lab")
    assert engine.doctor() == ()


def test_doctor_finds_who_has_lost_the_network(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab", options={"interface": "lab0"}))
    made = engine.run(RunRequest("host:/bin/busybox", ("/bin/busybox", "sleep", "1000"), network="lab"))
    assert engine.doctor() == ()
    subprocess.run(["ip", "link", "delete", "lab0"], check=True, timeout=30)
    (found,) = engine.doctor()
    assert found.what == f"network lab of container {made.id[:12]}"
    assert 'the bridge "lab0" of network "lab" is gone' in found.problem
    engine.stop(made.id, 0)
    engine.start(made.id)
    assert engine.doctor() == ()


def test_a_bridge_that_is_gone_for_several_starts_at_once(engine: Engine) -> None:
    """The first one makes it anew; for the others it is there then, and not the one they knew."""
    engine.create_network(NetworkConfig("lab", options={"interface": "lab0"}))
    request = RunRequest("host:/bin/busybox", ("/bin/busybox", "sleep", "1000"), network="lab")
    engine.run(request)
    subprocess.run(["ip", "link", "delete", "lab0"], check=True, timeout=30)
    with ThreadPoolExecutor(4) as pool:
        made = [one.result(60) for one in [pool.submit(engine.run, request) for _ in range(4)]]
    assert all(one.status == "running" for one in made)


def test_a_bridge_that_somebody_made_anew(engine: Engine) -> None:
    """By the same name and hardware address: it is taken for ours."""
    engine.create_network(NetworkConfig("lab", options={"interface": "lab0"}))
    request = RunRequest("host:/bin/busybox", ("/bin/busybox", "sleep", "1000"), network="lab")
    engine.run(request)
    shown = subprocess.run(["ip", "-j", "link", "show", "lab0"], check=True, timeout=30, capture_output=True)
    mac = json.loads(shown.stdout)[0]["address"]
    for words in (("delete", "lab0"), ("add", "lab0", "address", mac, "type", "bridge")):
        subprocess.run(["ip", "link", *words], check=True, timeout=30)
    second = engine.run(request)
    gateway = engine.network("lab").config.gateways[0]
    assert execute(engine, second.id, "/bin/busybox", "ping", "-c", "1", "-W", "10", gateway).code == 0


def test_of_two_that_remove_a_network_one_finds_none(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab"))
    with ThreadPoolExecutor(2) as pool:
        errors = [one.exception(60) for one in [pool.submit(engine.remove_network, "lab") for _ in range(2)]]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType", "NotFound"]


def hosts_own_bridge(engine: Engine) -> None:
    """Somebody makes a bridge by a name that a network is to have, and that no container has needed yet."""
    engine.create_network(NetworkConfig("lab", options={"interface": "lab0"}))
    subprocess.run(["ip", "link", "add", "lab0", "type", "bridge"], check=True, timeout=30)
    try:
        with pytest.raises(AlreadyExists, match='interface "lab0"'):
            engine.run(RunRequest("host:/bin/busybox", ("/bin/busybox", "true"), network="lab"))
        engine.remove_network("lab")
        assert "lab0" in links()
    finally:
        subprocess.run(["ip", "link", "delete", "lab0"], check=False, timeout=30, capture_output=True)


def test_a_bridge_of_the_hosts_own_is_left_alone(engine: Engine) -> None:
    hosts_own_bridge(engine)
    assert engine.doctor() == ()


def test_twin_nobody_looks_whose_bridge_it_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BridgeLinks, "_foreign", staticmethod(lambda rtnl, shape: False))
    with pytest.raises(pytest.fail.Exception):
        hosts_own_bridge(engine)


def test_two_networks_with_one_bridge(engine: Engine) -> None:
    """It would have no walls between them."""
    engine.create_network(NetworkConfig("one", options={"interface": "lab0"}))
    with pytest.raises(AlreadyExists, match='"lab0": is that of network "one"'):
        engine.create_network(NetworkConfig("two", options={"interface": "lab0"}))
    engine.remove_network("one")
    engine.create_network(NetworkConfig("two", options={"interface": "lab0"}))
    engine.remove_network("two")


@pytest.mark.parametrize("name", ["br%d", "br*", 'x"y', "a:b", "a b", "-a", "", "x" * 16])
def test_a_name_that_the_kernel_or_nft_reads_otherwise(engine: Engine, name: str) -> None:
    with pytest.raises(Invalid, match="not the name of an interface"):
        engine.create_network(NetworkConfig("lab", options={"interface": name}))


@pytest.mark.parametrize(
    "subnet",
    ["127.0.0.0/8", "127.8.0.0/16", "126.0.0.0/7", "0.0.0.0/0", "224.1.0.0/16", "::/0", "fe80::/64", "ff02::/64"],
)
def test_a_subnet_that_is_not_for_hosts(engine: Engine, subnet: str) -> None:
    with pytest.raises(Invalid, match="not for the addresses of hosts"):
        engine.create_network(NetworkConfig("lab", subnets=(subnet,)))
