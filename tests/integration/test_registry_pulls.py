"""Pulls as a whole, from a registry that follows a script: what runs side by side, what is fetched once, and where it runs."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from support.images_area import world
from support.layers import member, tar
from support.registry import Handler, Scripted, image
from wherry.api import Denied, NotFound
from wherry_plugins.transport.registry.auth import basic


def test_layers_are_unpacked_while_others_come(tmp_path: Path) -> None:
    content = image(*(tar(member(f"file{number}")) for number in range(3)))
    unpacking, waited = threading.Event(), []

    def script(handler: Handler) -> bool:
        if handler.path.endswith(content.layers[2].digest):
            waited.append(unpacking.wait(20))
        return False

    with Scripted(content, script) as server, world(tmp_path) as here:
        for step in here.images.pull(f"registry:{server.host}/x:1"):
            if step.status == "unpacking":
                unpacking.set()
        assert waited == [True]
        ready = here.images.ensure(f"{server.host}/x:1", here.drivers, "", "never")
        assert ready.chain_id in {info.name for info in here.drivers.snapshotter.walk()}


def test_several_layers_come_side_by_side(tmp_path: Path) -> None:
    content = image(*(tar(member(f"file{number}")) for number in range(3)))
    together = threading.Barrier(3)

    def script(handler: Handler) -> bool:
        if handler.is_layer:
            together.wait(20)
        return False

    with Scripted(content, script) as server, world(tmp_path) as here:
        list(here.images.pull(f"registry:{server.host}/x:1"))
        assert not together.broken


def test_a_layer_that_fails_ends_the_pull(tmp_path: Path) -> None:
    """Another layer is on its way, and has no end: it is left where it is, and the image has no name."""
    content = image(tar(member("a")), tar(member("b", data=os.urandom(1 << 20))))
    begun = threading.Event()

    def script(handler: Handler) -> bool:
        if handler.path.endswith(content.layers[0].digest):
            begun.wait(20)
            return handler.reply(404)
        if handler.path.endswith(content.layers[1].digest):
            data = content.blobs[content.layers[1].digest]
            handler.reply(200, data[: len(data) // 2], Content_Length=str(len(data)))
            begun.set()
            return handler.drip(data[len(data) // 2 :], 0.05)
        return False

    with Scripted(content, script) as server, world(tmp_path) as here:
        with pytest.raises(NotFound, match=content.layers[0].digest):
            list(here.images.pull(f"registry:{server.host}/x:1"))
        assert list(here.drivers.store.list()) == []
        here.images.gc()
        assert list(here.drivers.store.walk()) == []


def test_what_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    shared, own = tar(member("shared")), tar(member("own"))
    first, second = image(shared), image(shared, own, tag="2")
    with Scripted(first) as server, world(tmp_path) as here:
        list(here.images.pull(f"registry:{server.host}/x:1"))
        server.content = second
        list(here.images.pull(f"registry:{server.host}/y:2"))
        assert len(server.asked(first.layers[0].digest)) == 1
        before = len(server.requests)
        list(here.images.pull(f"registry:{server.host}/y:2"))
        assert [seen.path for seen in server.requests[before:]] == ["/v2/y/manifests/2"]


@pytest.mark.parametrize("process", [False, True], ids=["in the engine", "in a process of its own"])
def test_wherever_it_runs(process: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = image(tar(member("noise", data=os.urandom(1 << 21))))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    table = f"\n[plugin.transport.registry]\nprocess = {str(process).lower()}\n"

    def script(handler: Handler) -> bool:
        shown = handler.headers.get("Authorization")
        return shown != basic("me", "s3cret") and handler.reply(401, WWW_Authenticate='Basic realm="r"')

    with Scripted(content, script) as server, world(tmp_path / "w", more=table) as here:
        with pytest.raises(Denied, match="there are none for it"):
            list(here.images.pull(f"registry:{server.host}/x:1"))
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {server.host: {"username": "me", "password": "s3cret"}}})
        )
        *_, last = here.images.pull(f"registry:{server.host}/x:1")
        assert last.id == f"{server.host}/x:1"
        with pytest.raises(NotFound) as caught:
            list(here.images.pull(f"registry:{server.host}/x:none"))
        assert caught.value.plugin == "transport.registry"
