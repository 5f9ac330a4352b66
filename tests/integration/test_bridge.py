"""Containers on bridges, end to end: addresses, routes, and what is left afterwards."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

import wherry
from support.running import sh
from wherry.api import Engine

pytestmark = pytest.mark.shared
IMAGE = "host:/bin/busybox,/bin/sh"
IP = "/bin/busybox ip"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    top = tmp_path_factory.mktemp("engine")
    with wherry.Engine(root=top / "root", run=top / "run") as made:
        yield made
        for container in made.containers(all=True):
            made.remove(container.id, force=True)


@pytest.fixture(autouse=True)
def _nothing_stays(engine: Engine) -> Iterator[None]:
    yield
    for container in engine.containers(all=True):
        engine.remove(container.id, force=True)
    assert engine.doctor() == ()


def test_an_address_and_a_way_out(engine: Engine) -> None:
    said = sh(engine, f"{IP} -o -4 address show eth0; {IP} route", image=IMAGE, network="bridge")
    assert said.code == 0, said.err
    words = said.out.split()
    address = ipaddress.ip_interface(words[words.index("inet") + 1])
    assert address.ip in ipaddress.ip_network("172.16.0.0/12")
    assert f"default via {address.network.network_address + 1} dev eth0" in said.out
