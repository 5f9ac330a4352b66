"""Registries that break, lie and drip. Where a step protects, a twin without that step shows what it protects from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.images_area import world
from support.layers import member, tar
from support.registry import Content, Handler, Scripted, digest, fetch, image, pull, transport
from wherry.api import Descriptor, Digest, Error, Invalid, NotFound, Unavailable
from wherry.spec import document
from wherry.spec.distribution import INDEX, LAYER, MANIFEST
from wherry_plugins.transport.registry import transport as transport_module
from wherry_plugins.transport.registry.watchdog import Watchdog

Script = Callable[[Handler], bool]


@pytest.fixture(scope="module")
def big() -> Content:
    """An image whose one layer has a megabyte that gzip can't shorten."""
    return image(tar(member("noise", data=os.urandom(1 << 20))))


def layer_of(content: Content) -> bytes:
    return content.blobs[content.layers[0].digest]


def times(number: int, first: Script) -> Script:
    """The script for the first requests of layers, honesty after."""
    left = [number]

    def script(handler: Handler) -> bool:
        if not handler.is_layer or not left[0]:
            return False
        left[0] -= 1
        return first(handler)

    return script


class TestBreaks:
    def half(self, handler: Handler) -> bool:
        data = handler.server.owner.content.blobs[handler.path.rpartition("/")[2]]
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : (start + len(data)) // 2])
        return handler.hang_up()

    def test_goes_on_where_it_broke(self, big: Content) -> None:
        with Scripted(big, times(3, self.half)) as server:
            assert fetch(transport(), f"{server.host}/x:1", big.layers[0]) == layer_of(big)
            ranges = [seen.headers.get("range") for seen in server.asked("/blobs/")]
        assert ranges[0] is None
        starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in ranges[1:] if text]
        assert starts == sorted(set(starts))
        assert starts[0] == len(layer_of(big)) // 2
        assert len(starts) == 3

    def test_twin_without_another_attempt(self, big: Content) -> None:
        with Scripted(big, times(1, self.half)) as server:
            with pytest.raises(Unavailable, match="broke off"):
                fetch(transport(retries=0), f"{server.host}/x:1", big.layers[0])

    def test_what_came_is_kept_for_the_next_pull(self, big: Content, tmp_path: Path) -> None:
        with Scripted(big, times(1, self.half)) as server, world(tmp_path, more=IMPATIENT) as here:
            with pytest.raises(Unavailable):
                list(here.images.pull(f"registry:{server.host}/x:1"))
            assert [offset for _ref, offset in here.drivers.store.ingests()] == [len(layer_of(big)) // 2]
            assert big.layers[0].digest not in {blob.digest for blob in here.drivers.store.walk()}
            assert not list(here.drivers.store.list())
            list(here.images.pull(f"registry:{server.host}/x:1"))
            assert server.asked(big.layers[0].digest)[-1].headers["range"] == f"bytes={len(layer_of(big)) // 2}-"
            assert [item.name for item in here.drivers.store.list()] == [f"{server.host}/x:1"]

    @pytest.mark.parametrize(
        "answer",
        [
            lambda h, data: h.reply(200, data),
            lambda h, data: h.reply(206, data, Content_Range=f"bytes 0-{len(data) - 1}/{len(data)}"),
            lambda h, data: h.reply(206, data[1:], Content_Range=f"bytes 1-{len(data) - 1}/{len(data)}"),
            lambda h, data: h.reply(206, data[100:200], Content_Range=f"bytes 100-199/{len(data)}"),
            lambda h, data: h.reply(206, data[100:]),
            lambda h, data: h.reply(416, b""),
        ],
        ids=["ignored", "whole", "wrong start", "too little", "unnamed", "refused"],
    )
    def test_a_wrong_answer_to_a_range(self, big: Content, answer: Any) -> None:
        def script(handler: Handler) -> bool:
            return bool(handler.headers.get("Range")) and answer(handler, layer_of(big))

        with Scripted(big, script) as server:
            assert fetch(transport(), f"{server.host}/x:1", big.layers[0], 100) == layer_of(big)[100:]

    def test_twin_that_believes_a_range(self, big: Content, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport_module, "_is_rest", lambda *_: True)

        def script(handler: Handler) -> bool:
            data = layer_of(big)
            return bool(handler.headers.get("Range")) and handler.reply(
                206, b"X" + data[101:], Content_Range=f"bytes 0-{len(data) - 101}/{len(data)}"
            )

        with Scripted(big, script) as server:
            assert fetch(transport(), f"{server.host}/x:1", big.layers[0], 100) != layer_of(big)[100:]

    def test_an_end_that_is_none(self, big: Content) -> None:
        """Chunked, cleanly ended, and too short: again and again."""

        def script(handler: Handler) -> bool:
            if not handler.is_layer:
                return False
            handler.reply(200, b"", Transfer_Encoding="chunked", Content_Length="")
            handler.wfile.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")
            return True

        with Scripted(big, script) as server:
            with pytest.raises(Unavailable, match=r"ended after 1000 of \d+ bytes, tried"):
                fetch(transport(), f"{server.host}/x:1", big.layers[0])
            assert len(server.asked("/blobs/")) <= 5

    def test_busy(self, big: Content) -> None:
        with Scripted(big, times(2, lambda h: h.reply(429, b"", Retry_After="0"))) as server:
            assert fetch(transport(), f"{server.host}/x:1", big.layers[0]) == layer_of(big)
            assert len(server.asked("/blobs/")) == 3

    def test_busy_for_an_hour(self, big: Content) -> None:
        script: Script = lambda h: h.reply(429, b'{"errors":[{"message":"slow down"}]}', Retry_After="3600")  # noqa: E731
        with Scripted(big, script) as server:
            with pytest.raises(Unavailable, match="429: slow down, and asks to come back in 3600 s"):
                transport().resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 1

    def test_broken_for_good(self, big: Content) -> None:
        with Scripted(big, lambda h: h.reply(503, b"\x1b[31m<html>", Content_Type="text/plain")) as server:
            with pytest.raises(Unavailable, match=r"answers 503: \[31m<html>, tried 4 times"):
                transport().resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 4

    def test_nobody_there(self) -> None:
        with Scripted(image()) as server:
            host = server.host
        with pytest.raises(Unavailable, match="refuses the connection"):
            transport().resolve(f"{host}/x:1", "")
        with pytest.raises(Unavailable, match="has no address"):
            transport().resolve("registry.invalid/x:1", "")

    @pytest.mark.parametrize(
        "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"\0" * 70000]
    )
    def test_no_http(self, answer: bytes) -> None:
        def script(handler: Handler) -> bool:
            handler.wfile.write(answer)
            return handler.hang_up()

        with Scripted(image(), script) as server:
            with pytest.raises((Unavailable, Invalid)):
                transport(retries=1).resolve(f"{server.host}/x:1", "")


IMPATIENT = "\n[plugin.transport.registry]\nretries = 0\ntimeout = 2.0\n"


class TestSlow:
    def head(self, handler: Handler) -> bool:
        return handler.drip(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(40)), 0.01)

    def body(self, handler: Handler) -> bool:
        if not handler.is_layer:
            return False
        handler.reply(200, b"", Content_Length=str(handler.server.owner.content.layers[0].size))
        return handler.drip(bytes(1000), 0.02)

    def line(self, handler: Handler) -> bool:
        """A chunk's size that never ends: each byte starts the timeout of a socket again."""
        if not handler.is_layer:
            return False
        handler.reply(200, b"", Transfer_Encoding="chunked", Content_Length="")
        return handler.drip(b"0" * 1000, 0.02)

    @pytest.mark.parametrize("part", ["head", "body", "line"])
    def test_a_drip_ends(self, part: str, big: Content) -> None:
        source = transport(timeout=0.6, patience=1.0, retries=1)
        with Scripted(big, getattr(self, part)) as server:
            with pytest.raises(Unavailable, match="in time|sent .* bytes in|broke"):
                fetch(source, f"{server.host}/x:1", big.layers[0])

    def test_twin_without_a_watchdog(self, monkeypatch: pytest.MonkeyPatch, big: Content) -> None:
        """The same head, which a socket's own timeout lets pass: it drips longer than the timeout, and is taken."""
        monkeypatch.setattr(Watchdog, "set", lambda self, sock, seconds: 0)
        monkeypatch.setattr(Watchdog, "clear", lambda self, number: False)

        def script(handler: Handler) -> bool:
            data = layer_of(big)
            handler.drip(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(12)), 0.01)
            handler.wfile.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
            return True

        with Scripted(big, script) as server:
            assert fetch(transport(timeout=0.3, retries=0), f"{server.host}/x:1", big.layers[0]) == layer_of(big)

    def test_with_the_watchdog_that_head_is_none(self, big: Content) -> None:
        with Scripted(big, self.head) as server:
            with pytest.raises(Unavailable, match="did not answer in time"):
                fetch(transport(timeout=0.3, retries=0), f"{server.host}/x:1", big.layers[0])

    def test_silence(self) -> None:
        with Scripted(image(), lambda h: h.server.owner.over.wait(20) or True) as server:
            with pytest.raises(Unavailable, match="in time"):
                transport(timeout=0.3, patience=0.5, retries=1).resolve(f"{server.host}/x:1", "")


class TestLies:
    def test_another_manifest_than_asked_for(self) -> None:
        content, other = image(), image(tar(member("other")))
        _type, data = other.manifests[other.target.digest]
        with Scripted(content, lambda h: h.reply(200, data, Content_Type=MANIFEST)) as server:
            with pytest.raises(Invalid, match="sends something else"):
                transport().resolve(f"{server.host}/x@{content.target.digest}", "")
            with pytest.raises(Invalid, match="sends something else|announced with"):
                transport().fetch(f"{server.host}/x:1", content.target, 0)

    def test_twin_that_does_not_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content, other = image(), image(tar(member("other")))
        _type, data = other.manifests[other.target.digest]
        monkeypatch.setattr(transport_module.hashlib, "sha256", lambda _data: Liar(content.target.digest))
        with Scripted(content, lambda h: h.reply(200, data, Content_Type=MANIFEST)) as server:
            (named,) = transport().resolve(f"{server.host}/x@{content.target.digest}", "")
            assert (
                transport().fetch(f"{server.host}/x:1", Descriptor(MANIFEST, named.target.digest, len(data)), 0).read()
                == data
            )

    def test_a_header_with_another_digest(self) -> None:
        content = image()
        _type, data = content.manifests[content.target.digest]
        wrong = f"sha256:{'0' * 64}"
        with Scripted(
            content, lambda h: h.reply(200, data, Content_Type=MANIFEST, Docker_Content_Digest=wrong)
        ) as server:
            with pytest.raises(Invalid, match="says that its digest"):
                transport().resolve(f"{server.host}/x:1", "")

    def test_a_blob_of_other_bytes(self, big: Content, tmp_path: Path) -> None:
        with (
            Scripted(big, lambda h: h.is_layer and h.reply(200, bytes(big.layers[0].size))) as server,
            world(tmp_path) as here,
        ):
            with pytest.raises(Invalid, match="digest"):
                list(here.images.pull(f"registry:{server.host}/x:1"))
            assert big.layers[0].digest not in {blob.digest for blob in here.drivers.store.walk()}
            assert not list(here.drivers.store.ingests()), "bytes that can't become the blob are not kept"
            assert not list(here.drivers.store.list())

    @pytest.mark.parametrize("change", [-1, 1, 10_000])
    def test_a_size_that_is_not_the_manifests(self, big: Content, change: int) -> None:
        data = layer_of(big) + b"x" * change if change > 0 else layer_of(big)[:change]
        with Scripted(big, lambda h: h.is_layer and h.reply(200, data)) as server:
            with pytest.raises(Invalid, match=f"is {big.layers[0].size} bytes by the manifest, .* sends {len(data)}"):
                fetch(transport(), f"{server.host}/x:1", big.layers[0])

    def test_more_than_announced_without_a_length(self, big: Content) -> None:
        """Not one byte more is taken than the manifest has."""

        def script(handler: Handler) -> bool:
            if not handler.is_layer:
                return False
            handler.close_connection = True
            return handler.reply(200, layer_of(big) + b"more", Content_Length="", Connection="close")

        with Scripted(big, script) as server:
            assert fetch(transport(), f"{server.host}/x:1", big.layers[0]) == layer_of(big)

    @pytest.mark.parametrize(
        ("media_type", "text", "message"),
        [
            (MANIFEST, {"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}, "ambiguous"),
            (INDEX, {"schemaVersion": 2, "layers": [], "manifests": []}, "ambiguous"),
            (MANIFEST, {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, "the descriptor says"),
            (INDEX, {"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []}, "the descriptor says"),
            ("text/html", {"schemaVersion": 2}, "text/html"),
            (MANIFEST, {"schemaVersion": 1}, "schemaVersion"),
            (f"{transport_module._OLD}+prettyjws", {"schemaVersion": 1}, "2014"),
            (MANIFEST, [], "not a JSON object"),
            (MANIFEST, {"schemaVersion": 2, "config": {"mediaType": "x/y", "digest": digest(b""), "size": 0}}, "not an image"),
        ],
    )  # fmt: skip
    def test_confusion(self, media_type: str, text: object, message: str) -> None:
        with Scripted(image(), lambda h: h.reply(200, json.dumps(text).encode(), Content_Type=media_type)) as server:
            with pytest.raises(Invalid, match=message):
                transport().resolve(f"{server.host}/x:1", "")

    @pytest.mark.parametrize("announced", [True, False])
    def test_a_manifest_of_ten_megabytes(self, announced: bool) -> None:
        with Scripted(image(), lambda h: self.huge(h, announced)) as server:
            with pytest.raises(Invalid, match="4194304"):
                transport().resolve(f"{server.host}/x:1", "")

    def huge(self, handler: Handler, announced: bool) -> bool:
        handler.close_connection = True
        length = str(10 << 20) if announced else ""
        handler.reply(200, b"", Content_Length=length, Content_Type=MANIFEST, Connection="close")
        handler.server.owner.sent = 0
        for _ in range(160):
            handler.wfile.write(b" " * (1 << 16))
            handler.server.owner.sent += 1 << 16
        return True

    def test_twin_without_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport_module, "DOCUMENT_MAX", 1 << 30)
        monkeypatch.setattr(document, "DOCUMENT_MAX", 1 << 30)
        with Scripted(image(), lambda h: self.huge(h, False)) as server:
            with pytest.raises(Invalid, match="is not JSON"):
                transport().resolve(f"{server.host}/x:1", "")
            assert server.sent == 10 << 20, "all of it was read"  # type: ignore[attr-defined]

    def test_urls_of_foreign_layers_are_not_followed(self) -> None:
        """CVE-2020-15157. There is no step that could be missing: nothing reads them."""
        kind = f"{LAYER.removesuffix('.tar')}.nondistributable.v1.tar+gzip".replace(
            ".v1.nondistributable", ".nondistributable"
        )
        with Scripted(image()) as elsewhere:
            content = image(layer_type=kind, urls=[f"{elsewhere.url}/layer"])
            with Scripted(content, lambda h: h.is_layer and h.reply(404)) as server:
                with pytest.raises(NotFound, match="URLs are not followed"):
                    pull(transport(), f"{server.host}/x:1")
            assert not elsewhere.requests

    def test_a_digest_that_is_a_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Scripted(image()) as server:
            wanted = Descriptor(LAYER, Digest("sha256:../../../x"), 1)
            with pytest.raises(Invalid):
                transport().fetch(f"{server.host}/x:1", wanted, 0)
            assert not server.requests
            monkeypatch.setattr(transport_module, "check_digest", lambda text, what: text)  # the twin
            with pytest.raises(Error):
                transport().fetch(f"{server.host}/x:1", wanted, 0)
            assert "/../../" in server.requests[0].path


class Liar:
    def __init__(self, text: str) -> None:
        self.text = text

    def hexdigest(self) -> str:
        return self.text.partition(":")[2]
