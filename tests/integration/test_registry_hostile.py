"""Registries that break, lie, drip and lead astray. Where a step protects, a twin without that step shows what it protects from."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import isolation
from support.images_area import world
from support.layers import member, tar
from support.registry import Content, Handler, Scripted, certificate, digest, fetch, image, pull, transport
from wherry.api import Denied, Descriptor, Digest, Error, Invalid, NotFound, Unavailable
from wherry.spec import document
from wherry.spec.distribution import INDEX, LAYER, MANIFEST
from wherry_plugins.transport.registry import HostConfig, auth, client, reach
from wherry_plugins.transport.registry import transport as transport_module
from wherry_plugins.transport.registry.client import Client
from wherry_plugins.transport.registry.url import Url
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


CREDENTIALS = ("me", "s3cret")
SHOWN = "Basic bWU6czNjcmV0"


def wants_basic(handler: Handler) -> bool:
    return handler.headers.get("Authorization") != SHOWN and handler.reply(401, WWW_Authenticate='Basic realm="r"')


class Tokens:
    """A registry that wants tokens, and their server where realm says."""

    def __init__(self, realm: str = "") -> None:
        self.realm = realm
        self.answer = b'{"token": "t0ken"}'

    def __call__(self, handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            return handler.reply(200, self.answer)
        if handler.headers.get("Authorization") == "Bearer t0ken":
            return False
        realm = self.realm or f"{handler.server.owner.url}/token"
        return handler.reply(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s",scope="registry:catalog:*"')


class TestCredentials:
    def test_basic(self) -> None:
        content = image()
        with Scripted(content, wants_basic) as server:
            assert content.target.digest in pull(transport({server.host: CREDENTIALS}), f"{server.host}/x:1")
            assert "authorization" not in server.requests[0].headers, "nothing is shown before it is asked for"
            with pytest.raises(Denied, match="wants a user name"):
                transport().resolve(f"{server.host}/x:1", "")
            before = len(server.requests)
            with pytest.raises(Denied, match="refuses: 401"):
                transport({server.host: ("me", "wrong")}).resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == before + 2

    def test_tokens(self) -> None:
        content = image()
        with Scripted(content, Tokens()) as server:
            assert content.target.digest in pull(transport(), f"{server.host}/x:1")
            (asked,) = server.asked("/token")
            assert asked.path == "/token?service=s&scope=repository:x:pull", "no more rights than a pull needs"
            assert "authorization" not in asked.headers
            pull(transport({server.host: CREDENTIALS}), f"{server.host}/x:1")
            asked = server.asked("/token")[-1]
            assert asked.headers["authorization"] == SHOWN
            assert "account=me" in asked.path
            shown = {seen.headers.get("authorization") for seen in server.asked("/v2/")}
            assert shown == {None, "Bearer t0ken"}, "the password is for the token server"

    def test_identity_tokens(self) -> None:
        with Scripted(image(), Tokens()) as server:
            pull(transport({server.host: ("<token>", "refresh")}), f"{server.host}/x:1")
            (asked,) = server.asked("/token")
            assert asked.method == "POST"
            assert b"refresh_token=refresh" in asked.body
            assert "refresh" not in asked.path

    def test_a_token_that_runs_out(self) -> None:
        content = image()
        valid = ["t0ken"]

        def script(handler: Handler) -> bool:
            if handler.path.startswith("/token"):
                return handler.reply(200, json.dumps({"access_token": valid[0], "expires_in": 3600}).encode())
            if handler.headers.get("Authorization") == f"Bearer {valid[0]}":
                return False
            return handler.reply(401, WWW_Authenticate=f'Bearer realm="{handler.server.owner.url}/token"')

        with Scripted(content, script) as server:
            source = transport()
            source.resolve(f"{server.host}/x:1", "")
            valid[0] = "another"
            assert fetch(source, f"{server.host}/x:1", content.layers[0])

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (b"{}", "no token"), (b'{"token": 5}', "has to be a string"), (b'{"token": "a\\r\\nX: y"}', "no token"), (b"[]", "object"),
            (b'{"token": "' + b"x" * (1 << 20) + b'"}', "1048576"),
        ],
    )  # fmt: skip
    def test_answers_that_are_no_token(self, answer: bytes, message: str) -> None:
        tokens = Tokens()
        tokens.answer = answer
        with Scripted(image(), tokens) as server:
            with pytest.raises(Invalid, match=message):
                transport().resolve(f"{server.host}/x:1", "")

    def test_twin_without_a_limit_for_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "TOKEN_MAX", 1 << 30)
        tokens = Tokens()
        tokens.answer = b'{"token": "t0ken", "padding": "' + b"x" * (1 << 20) + b'"}'
        with Scripted(image(), tokens) as server:
            assert transport().resolve(f"{server.host}/x:1", "")

    @pytest.mark.parametrize("header", ["", "Negotiate", "Bearer", 'Bearer realm=""', 'Bearer realm="x'])
    def test_challenges_that_lead_nowhere(self, header: str) -> None:
        with Scripted(image(), lambda h: h.reply(401, **({"WWW_Authenticate": header} if header else {}))) as server:
            with pytest.raises((Denied, Invalid)):
                transport({server.host: CREDENTIALS}).resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 1

    def test_never_enough(self) -> None:
        """A registry that takes no token it gave."""

        def script(handler: Handler) -> bool:
            tokens = Tokens()
            return tokens(handler) if handler.path.startswith("/token") else handler.reply(
                401, WWW_Authenticate=f'Bearer realm="{handler.server.owner.url}/token"'
            )  # fmt: skip

        with Scripted(image(), script) as server:
            with pytest.raises(Denied):
                transport().resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 3

    def test_a_token_server_elsewhere_is_shown_nothing(self) -> None:
        with Scripted(image(), Tokens()) as elsewhere, Scripted(image(), Tokens(f"{elsewhere.url}/token")) as server:
            source = transport({server.host: CREDENTIALS, elsewhere.host: ("other", "other")})
            source.resolve(f"{server.host}/x:1", "")
            (asked,) = elsewhere.requests
            assert "authorization" not in asked.headers
            assert "account" not in asked.path

    def test_and_says_so_when_that_was_not_enough(self) -> None:
        refuses: Script = lambda h: h.reply(401, b'{"errors":[{"message":"who are you"}]}')  # noqa: E731
        with Scripted(image(), refuses) as elsewhere, Scripted(image(), Tokens(f"{elsewhere.url}/t")) as server:
            with pytest.raises(Denied, match=f"who are you; .* were not sent to {elsewhere.host}.*realms = ") as caught:
                transport({server.host: CREDENTIALS}).resolve(f"{server.host}/x:1", "")
            assert "s3cret" not in str(caught.value)

    def test_twin_that_trusts_it(self) -> None:
        with Scripted(image(), Tokens()) as elsewhere, Scripted(image(), Tokens(f"{elsewhere.url}/token")) as server:
            hosts = {server.host: HostConfig(realms=(elsewhere.host,))}
            transport({server.host: CREDENTIALS}, hosts=hosts).resolve(f"{server.host}/x:1", "")
            assert elsewhere.requests[0].headers["authorization"] == SHOWN

    @pytest.mark.parametrize(
        "realm",
        [
            "file:///etc/passwd",
            "ftp://127.0.0.1/",
            "http://me:s3cret@127.0.0.1/",
            "/token",
            "https://a b/",
            "gopher://x",
        ],
    )
    def test_realms_that_are_none(self, realm: str) -> None:
        with Scripted(image(), Tokens(realm)) as server:
            with pytest.raises(Invalid, match="token server"):
                transport({server.host: CREDENTIALS}).resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 1


@pytest.fixture
def metadata() -> Iterator[Scripted]:
    """A server at the address where clouds keep their secrets; here it is on loopback's device, in a namespace of the test's."""
    if not isolation.isolated():
        pytest.skip("needs a network namespace of its own")
    address = ["169.254.169.254/32", "dev", "lo"]
    subprocess.run(["ip", "addr", "add", *address], check=True)
    try:
        with Scripted(image(), Tokens(), address="169.254.169.254") as server:
            yield server
    finally:
        subprocess.run(["ip", "addr", "del", *address], check=True)


class TestNearAddresses:
    """The registry is at 127.0.0.1 here; it may lead to its like and outwards, and from no place to a link-local address."""

    def plain(self, metadata: Scripted) -> dict[str, HostConfig]:
        return {metadata.host: HostConfig(plain_http=True)}

    def redirect(self, metadata: Scripted) -> Script:
        return lambda h: h.reply(307, Location=f"{metadata.url}{h.path}")

    def test_a_realm(self, metadata: Scripted) -> None:
        with Scripted(image(), Tokens(f"{metadata.url}/token")) as server:
            for hosts, message in (({}, "by plain http"), (self.plain(metadata), "a link-local address")):
                with pytest.raises(Denied, match=message):
                    transport({server.host: CREDENTIALS}, hosts=hosts).resolve(f"{server.host}/x:1", "")
        assert not metadata.requests

    def test_a_redirect(self, metadata: Scripted) -> None:
        with Scripted(image(), self.redirect(metadata)) as server:
            for hosts, message in (({}, "by plain http"), (self.plain(metadata), "a link-local address")):
                with pytest.raises(Denied, match=message):
                    transport(hosts=hosts).resolve(f"{server.host}/x:1", "")
        assert not metadata.requests

    def test_a_name_that_changes_its_mind(self, metadata: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        """Public when it is looked at, link-local when it is connected to."""
        with Scripted(image(), Tokens(f"{metadata.url}/token")) as server:
            seen = client.nearest
            monkeypatch.setattr(
                client, "nearest", lambda host, port: reach.Reach.PUBLIC if host.startswith("169") else seen(host, port)
            )
            with pytest.raises(Denied, match="a link-local address"):
                transport(hosts=self.plain(metadata)).resolve(f"{server.host}/x:1", "")
        assert not metadata.requests

    def test_twins_without_the_rule(self, metadata: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "may_lead", lambda source, target: True)
        with Scripted(image(), Tokens(f"{metadata.url}/token")) as server:
            transport(hosts=self.plain(metadata)).resolve(f"{server.host}/x:1", "")
        with Scripted(image(), self.redirect(metadata)) as server:
            with pytest.raises(Denied):  # what it would have been told is not what it was after
                transport(hosts=self.plain(metadata)).resolve(f"{server.host}/x:1", "")
        assert [seen.path.partition("?")[0] for seen in metadata.requests] == ["/token", "/v2/x/manifests/1"]

    def test_unless_the_config_allows_it(self, metadata: Scripted) -> None:
        with Scripted(image(), Tokens(f"{metadata.url}/token")) as server:
            hosts = {server.host: HostConfig(realms=(metadata.host,)), **self.plain(metadata)}
            assert transport(hosts=hosts).resolve(f"{server.host}/x:1", "")


class TestRedirects:
    def test_elsewhere_without_credentials(self) -> None:
        content = image()
        with Scripted(content) as storage:

            def script(handler: Handler) -> bool:
                return wants_basic(handler) or (
                    handler.is_blob and handler.reply(307, Location=f"{storage.url}{handler.path}?signature=x")
                )

            with Scripted(content, script) as server:
                source = transport({server.host: CREDENTIALS, storage.host: ("other", "other")})
                assert content.target.digest in pull(source, f"{server.host}/x:1")
            assert len(storage.requests) == 2
            assert not [seen for seen in storage.requests if "authorization" in seen.headers]

    def test_twin_that_takes_all_for_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = image()
        with Scripted(content) as storage:

            def script(handler: Handler) -> bool:
                return wants_basic(handler) or handler.reply(307, Location=f"{storage.url}{handler.path}")

            with Scripted(content, script) as server:
                source = transport({server.host: CREDENTIALS})
                follow = Client._follow

                def leaky(self: Client, url: Url, headers: Any, authorization: str, what: str) -> Any:
                    shown = {**headers, "Authorization": authorization} if authorization else headers
                    return follow(self, url, shown, authorization, what)

                monkeypatch.setattr(Client, "_follow", leaky)
                source.resolve(f"{server.host}/x:1", "")
            assert storage.requests[0].headers["authorization"] == SHOWN

    def test_a_token_stays_too(self) -> None:
        content = image()
        with Scripted(content) as storage:
            tokens = Tokens()

            def script(handler: Handler) -> bool:
                return tokens(handler) or (
                    handler.is_blob and handler.reply(302, Location=f"{storage.url}{handler.path}")
                )

            with Scripted(content, script) as server:
                pull(transport(), f"{server.host}/x:1")
            assert storage.requests
            assert not [seen for seen in storage.requests if "authorization" in seen.headers]

    def test_a_challenge_elsewhere_is_not_met(self) -> None:
        with Scripted(image(), wants_basic) as elsewhere:
            script: Script = lambda h: wants_basic(h) or h.reply(307, Location=f"{elsewhere.url}{h.path}")  # noqa: E731
            with Scripted(image(), script) as server:
                with pytest.raises(Denied, match=f"{elsewhere.host} refuses"):
                    transport({server.host: CREDENTIALS, elsewhere.host: CREDENTIALS}).resolve(f"{server.host}/x:1", "")
            assert len(elsewhere.requests) == 1

    def test_twin_that_meets_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever takes all servers for one shows the registry's credentials to whom it leads to."""
        follow = Client._follow

        def fooled(self: Client, url: Url, headers: Any, authorization: str, what: str) -> Any:
            shown = {**headers, "Authorization": authorization} if authorization else headers
            answer = follow(self, url, shown, authorization, what)
            answer.url = self.endpoint.base
            return answer

        monkeypatch.setattr(Client, "_follow", fooled)
        with Scripted(image(), wants_basic) as elsewhere:
            script: Script = lambda h: h.reply(307, Location=f"{elsewhere.url}{h.path}")  # noqa: E731
            with Scripted(image(), script) as server:
                assert transport({server.host: CREDENTIALS}).resolve(f"{server.host}/x:1", "")
            assert elsewhere.requests[-1].headers["authorization"] == SHOWN

    def test_in_circles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Scripted(image(), lambda h: h.reply(307, Location=h.path)) as server:
            with pytest.raises(Invalid, match="without end"):
                transport().resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 6
            monkeypatch.setattr(client, "_REDIRECTS", 50)  # the twin
            with pytest.raises(Invalid, match="without end"):
                transport().resolve(f"{server.host}/x:1", "")
            assert len(server.requests) == 6 + 51

    @pytest.mark.parametrize("location", ["", "file:///etc/passwd", "http://u:p@127.0.0.1/", "https://[::1"])
    def test_to_what_is_no_place(self, location: str) -> None:
        with Scripted(image(), lambda h: h.reply(307, Location=location)) as server:
            with pytest.raises(Invalid, match="redirect"):
                transport().resolve(f"{server.host}/x:1", "")


class TestTls:
    def test_authorities(self, tmp_path: Path) -> None:
        pair = certificate(tmp_path)
        content = image()
        with Scripted(content, tls=pair) as server:
            reference = f"{server.host}/x:1"
            with pytest.raises(Unavailable, match="is not trusted: .*ca = FILE"):
                transport(hosts={server.host: HostConfig(plain_http=False)}).resolve(reference, "")
            assert not server.requests
            for options in (HostConfig(ca=str(pair[0])), HostConfig(insecure=True)):
                assert content.target.digest in pull(transport(hosts={server.host: options}), reference)
            directory = tmp_path / "certs.d" / server.host
            directory.mkdir(parents=True)
            (directory / "ca.crt").write_bytes(pair[0].read_bytes())
            assert transport(certs=(str(tmp_path / "certs.d"),)).resolve(reference, "")

    def test_plain_http_where_tls_was_meant(self) -> None:
        with Scripted(image()) as server:
            with pytest.raises(Unavailable, match="plain_http = true"):
                transport(hosts={server.host: HostConfig(plain_http=False)}).resolve(f"{server.host}/x:1", "")

    def test_from_https_to_http(self, tmp_path: Path) -> None:
        pair = certificate(tmp_path)
        with Scripted(image()) as elsewhere:
            script: Script = lambda h: h.reply(307, Location=f"{elsewhere.url}{h.path}")  # noqa: E731
            with Scripted(image(), script, tls=pair) as server:
                with pytest.raises(Denied, match="from https to http"):
                    transport(hosts={server.host: HostConfig(ca=str(pair[0]))}).resolve(f"{server.host}/x:1", "")
            with Scripted(image(), Tokens(f"{elsewhere.url}/token"), tls=pair) as server:
                with pytest.raises(Denied, match="by plain http"):
                    transport(hosts={server.host: HostConfig(ca=str(pair[0]))}).resolve(f"{server.host}/x:1", "")
            assert not elsewhere.requests

    def test_twin_that_follows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = certificate(tmp_path)
        monkeypatch.setattr(Client, "_allow", lambda self, url: None)
        with Scripted(image(), Tokens()) as elsewhere:
            with Scripted(image(), Tokens(f"{elsewhere.url}/token"), tls=pair) as server:
                transport(hosts={server.host: HostConfig(ca=str(pair[0]))}).resolve(f"{server.host}/x:1", "")
            assert elsewhere.asked("/token")

    def test_a_name_of_this_machine_elsewhere(self, metadata: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
        """Plain http is for this machine: a name that says so and is elsewhere gets nothing."""
        import socket

        found = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *args, **kwargs: found("169.254.169.254", *args, **kwargs)
        )
        with pytest.raises(Denied, match="is not this machine"):
            transport({f"localhost:{metadata.port}": CREDENTIALS}).resolve(f"localhost:{metadata.port}/x:1", "")
        assert not metadata.requests


def test_credentials_are_in_no_message() -> None:
    """What is shown to a registry is not shown to whoever reads its errors."""
    with Scripted(image(), lambda h: wants_basic(h) or h.reply(500)) as server:
        with pytest.raises(Unavailable) as caught:
            transport({server.host: CREDENTIALS}, retries=0).resolve(f"{server.host}/x:1", "")
    assert "s3cret" not in repr(caught.value)
    assert SHOWN not in repr(caught.value)
    assert auth.basic(*CREDENTIALS) == SHOWN
