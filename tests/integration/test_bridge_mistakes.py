"""A driver that is led astray: by a sandbox that is the host's, by a bridge that somebody took away."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running import execute
from wherry.api import AttachRequest, Engine, FailedPrecondition, NetworkConfig, RunRequest
from wherry.testing import NetworkHarness
from wherry_plugins.network.bridge import wherry_network
from wherry_plugins.network.bridge.hub import Hub


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
    monkeypatch.setattr(Hub, "is_ours", lambda hub, fd: False)
    monkeypatch.setattr("wherry_plugins.network.bridge.links.Links.leave", lambda links, name: None)
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
