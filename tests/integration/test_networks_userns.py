"""Sandboxes with a user namespace of their own: their network namespace belongs to it, and each driver gets in all the same."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from support.cni import BIN, need_plugins, no_rules
from support.drivers import HOST, Driven, driven, echo, uplink, veth
from wherry.api import AttachRequest, IdMap, NetworkConfig, Sandbox

IDS = IdMap(uids=((0, 700_000, 1000),), gids=((0, 700_000, 1000),))
CONFIGS = {
    "cni": NetworkConfig("lab", subnets=("10.92.0.0/24",)),
    "macvlan": NetworkConfig("lab", subnets=("192.0.2.0/24",), gateways=("192.0.2.254",), options={"parent": "lan0"}),
}


@pytest.fixture(params=["cni", "macvlan", "pasta", "slirp4netns"])
def made(request: pytest.FixtureRequest) -> Iterator[Driven]:
    options = {}
    if request.param == "cni":
        need_plugins()
        options = {"conf_dirs": (), "bin_dirs": (BIN,)}
    with uplink(), veth("lan0", "lan1"), driven(request.param, options) as made:
        yield made
    with contextlib.suppress(FileNotFoundError):
        no_rules()


def test_in_and_out(made: Driven) -> None:
    id = made.registration.id
    name = made.open().create(CONFIGS[id]).name if id in CONFIGS else id
    reservation = made.open().reserve(AttachRequest("s-1", name))
    sandbox = made.shim.create_sandbox(Sandbox("s-1", reservation.netns, idmap=IDS))
    made._sandboxes.append("s-1")
    attached = made.open().attach(reservation, sandbox)
    assert set(attached.addresses) <= made.addresses("s-1")
    made.open().check("s-1", name)
    if id != "macvlan":  # whose containers and host do not meet
        echo(socket.socket(), made.socket("s-1"), (HOST[0], 7030), (HOST[0], 7030))
    made.open().detach("s-1", name)
