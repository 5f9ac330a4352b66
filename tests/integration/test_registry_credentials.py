"""Registries that want what is not theirs: credentials, and requests to elsewhere. Each with a twin without the step that protects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import isolation
from support.registry import Handler, Scripted, certificate, fetch, image, pull, transport
from wherry.api import Denied, Invalid, Unavailable
from wherry_plugins.transport.registry import HostConfig, address_policy, auth, client
from wherry_plugins.transport.registry.client import Client
from wherry_plugins.transport.registry.url import Url

Script = Callable[[Handler], bool]

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
                client,
                "nearest",
                lambda host, port: address_policy.AddressPolicy.PUBLIC if host.startswith("169") else seen(host, port),
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
