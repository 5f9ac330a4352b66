"""A container is attached to its networks while its process is made ready; an undo finds both done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from support.fakes import World, engine
from wherry.api import RunRequest, Stdio, Unavailable
from wherry.engine.assembly import Parts
from wherry.engine.networks.attach import Attacher

BOUND = 30.0
REQUEST = RunRequest(image="x", name="one", command=("sleep",))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def parts(tmp_path: Path, world: World) -> Iterator[Parts]:
    made = engine(tmp_path, world)
    yield made
    world.fail.clear()
    made.close()


class Network:
    """The driver of network none, as one that gives addresses; said: what was asked of it, with its end."""

    def __init__(self, parts: Parts) -> None:
        self.said: list[str] = []
        self.attaching, self.detaching = threading.Event(), threading.Event()
        self.meanwhile: Callable[[], None] = lambda: None
        driver: Any = parts.state.kernel.parts["network", "none"]  # type: ignore[attr-defined]
        reserve, attach, detach = driver.reserve, driver.attach, driver.detach

        def reserving(request: Any) -> Any:
            return attrs.evolve(reserve(request), addresses=("10.9.8.7/24",))

        def attached(reservation: Any, sandbox: Any) -> Any:
            self.attaching.set()
            self.meanwhile()
            made = attach(reservation, sandbox)
            self.said.append("attached")
            return made

        def detached(sandbox_id: str, network: str) -> None:
            self.said.append("detached")
            self.detaching.set()
            detach(sandbox_id, network)

        driver.reserve, driver.attach, driver.detach = reserving, attached, detached


def nothing_is_left(world: World, parts: Parts) -> None:
    assert (world.tasks, world.sandboxes, parts.state.attached) == ({}, {}, {})
    assert parts.state.database.all("SELECT count(*) FROM sandboxes") == [(0,)]


def both_at_once(world: World, parts: Parts, patience: float = BOUND) -> None:
    network, created = Network(parts), threading.Event()

    def until_created() -> None:
        assert created.wait(BOUND)

    network.meanwhile = until_created
    create = parts.state.kernel.parts["isolation", "fake"].create  # type: ignore[attr-defined]

    def creating(request: Any) -> Any:
        meanwhile = network.attaching.wait(patience)
        created.set()
        assert meanwhile, "it is not attached meanwhile"
        return create(request)

    parts.state.kernel.parts["isolation", "fake"].create = creating  # type: ignore[attr-defined]
    one = parts.lifecycle.run(REQUEST, Stdio())
    assert [place.network for place in parts.state.attached[one.id]] == ["none"]
    parts.lifecycle.remove("one", force=True)
    assert network.said == ["attached", "detached"]
    nothing_is_left(world, parts)


def test_a_process_is_made_ready_while_its_networks_are(world: World, parts: Parts) -> None:
    both_at_once(world, parts)


def test_twin_one_after_the_other(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Attacher.begin

    def late(self: Attacher, created: Any, net: Any) -> Callable[[], None]:
        return lambda: begin(self, created, net)()

    monkeypatch.setattr(Attacher, "begin", late)
    with pytest.raises(AssertionError, match="not attached meanwhile"):
        both_at_once(world, parts, patience=0.2)


def a_process_fails_meanwhile(world: World, parts: Parts, patience: float = 0.2) -> None:
    network, failed = Network(parts), threading.Event()

    def failing(request: Any) -> Any:
        assert network.attaching.wait(BOUND)
        failed.set()
        raise Unavailable("isolation", "planted")

    def slow() -> None:
        assert failed.wait(BOUND)
        network.detaching.wait(patience)  # by an undo that does not wait

    network.meanwhile = slow
    parts.state.kernel.parts["isolation", "fake"].create = failing  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="planted"):
        parts.lifecycle.run(attrs.evolve(REQUEST, remove=True), Stdio())
    assert network.said[:2] == ["attached", "detached"]
    nothing_is_left(world, parts)


def test_an_undo_waits_for_what_is_attached(world: World, parts: Parts) -> None:
    a_process_fails_meanwhile(world, parts)


def test_twin_an_undo_that_does_not_wait(world: World, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Attacher.begin

    def forgetful(self: Attacher, created: Any, net: Any) -> Callable[[], None]:
        begin(self, created, net)
        return lambda: None

    monkeypatch.setattr(Attacher, "begin", forgetful)
    with pytest.raises(AssertionError):
        a_process_fails_meanwhile(world, parts, patience=BOUND)


def test_a_network_that_fails_ends_the_start(world: World, parts: Parts) -> None:
    network = Network(parts)

    def fails() -> None:
        raise Unavailable("network", "planted")

    network.meanwhile = fails
    with pytest.raises(Unavailable, match="planted"):
        parts.lifecycle.run(attrs.evolve(REQUEST, remove=True), Stdio())
    assert network.said[0] == "detached"
    nothing_is_left(world, parts)
