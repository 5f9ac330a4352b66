"""Parts of the registry transport: URLs, challenges, addresses, endpoints, waits; and generated nonsense for each parser."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.api import Invalid, Unavailable
from wherry.spec.distribution import INDEX, MANIFEST, media_type_of
from wherry.spec.reference import parse_reference
from wherry_plugins.credentials import docker_config
from wherry_plugins.transport.registry import HostConfig, RegistryConfig
from wherry_plugins.transport.registry.address_policy import AddressPolicy, may_lead, nearest, reach_of
from wherry_plugins.transport.registry.challenge import Challenge, parse_challenges
from wherry_plugins.transport.registry.connection import TransferError
from wherry_plugins.transport.registry.endpoint import endpoint_of, plain, tls
from wherry_plugins.transport.registry.retry import RetryPolicy, retry_after
from wherry_plugins.transport.registry.transport import _is_rest
from wherry_plugins.transport.registry.url import parse_url
from wherry_plugins.transport.registry.watchdog import Watchdog


class TestUrls:
    def test_parts(self) -> None:
        url = parse_url("https://Registry.Example:5000/a/b?sig=secret#x", "url")
        assert (url.scheme, url.host, url.port, url.target) == ("https", "registry.example", 5000, "/a/b?sig=secret")
        assert str(url) == "https://registry.example:5000/a/b", "a signature is not for messages"
        assert parse_url("http://[::1]", "url").netloc == "[::1]"
        assert parse_url("https://a:443/", "url").origin == parse_url("https://a", "url").origin

    @pytest.mark.parametrize(
        "text",
        [
            "", "file:///etc/passwd", "ftp://a/", "//a/b", "https://", "https://user@a/", "https://u:p@a/", "https://a:99999/",
            "https://a b/", "https://a/\r\nX: y", "https://a\\@b/", "https://[::1/", "https://-a/", "https://a/\x00", "gopher://a",
            "https://[fe80::1%25eth0]/", "https://é/", "x" * 9000,
        ],
    )  # fmt: skip
    def test_refused(self, text: str) -> None:
        with pytest.raises(Invalid):
            parse_url(text, "url")

    def test_joined(self) -> None:
        url = parse_url("https://a/v2/x/blobs/y", "url")
        assert str(url.joined("/z", "url")) == "https://a/z"
        assert url.joined("//b/z?q", "url").origin == ("https", "b", 443)
        for location in ("", "file:/x", "https://u@b/", "/a b"):
            with pytest.raises(Invalid):
                url.joined(location, "url")

    @given(st.text(max_size=60))
    @settings(max_examples=300, deadline=None)
    def test_nonsense(self, text: str) -> None:
        for candidate in (text, f"https://{text}", f"https://a/{text}"):
            try:
                url = parse_url(candidate, "url")
            except Invalid:
                continue
            assert parse_url(f"{url.site}{url.target}", "url") == url


class TestChallenges:
    def test_bearer(self) -> None:
        header = 'Bearer realm="https://auth.example/token",service="a, b",scope="repository:x:pull"'
        assert parse_challenges(header, "r") == (
            Challenge(
                "bearer", {"realm": "https://auth.example/token", "service": "a, b", "scope": "repository:x:pull"}
            ),
        )

    def test_several(self) -> None:
        found = parse_challenges(r'Negotiate, Basic realm="a \"b\"" , charset=UTF-8,BEARER Realm=x', "r")
        assert [challenge.scheme for challenge in found] == ["negotiate", "basic", "bearer"]
        assert found[1].parameters == {"realm": 'a "b"', "charset": "UTF-8"}
        assert found[2].parameters == {"realm": "x"}

    @pytest.mark.parametrize(
        "text", ['Bearer realm="a', 'Bearer realm=a,realm="b"', "realm=a", "Bearer (a)", "x" * 9000]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(Invalid):
            parse_challenges(text, "r")

    def test_nothing(self) -> None:
        assert parse_challenges("", "r") == ()

    @given(st.text(alphabet=' ,="\\abBearer\t;()', max_size=80))
    @settings(max_examples=400, deadline=None)
    def test_nonsense(self, text: str) -> None:
        try:
            parse_challenges(text, "r")
        except Invalid:
            pass


class TestReach:
    @pytest.mark.parametrize(
        ("address", "reach"),
        [
            ("127.0.0.1", AddressPolicy.LOOPBACK),
            ("127.8.8.8", AddressPolicy.LOOPBACK),
            ("0.0.0.0", AddressPolicy.LOOPBACK),
            ("::1", AddressPolicy.LOOPBACK),
            ("::", AddressPolicy.LOOPBACK),
            ("::ffff:127.0.0.1", AddressPolicy.LOOPBACK),
            ("169.254.169.254", AddressPolicy.LINK_LOCAL),
            ("fe80::1%eth0", AddressPolicy.LINK_LOCAL),
            ("::ffff:169.254.169.254", AddressPolicy.LINK_LOCAL),
            ("64:ff9b::a9fe:a9fe", AddressPolicy.LINK_LOCAL),
            ("224.0.0.1", AddressPolicy.LINK_LOCAL),
            ("10.1.2.3", AddressPolicy.PRIVATE),
            ("192.168.0.1", AddressPolicy.PRIVATE),
            ("fd00:ec2::254", AddressPolicy.PRIVATE),
            ("100.64.0.1", AddressPolicy.PRIVATE), ("2002:a9fe:a9fe::1", AddressPolicy.LINK_LOCAL), ("8.8.8.8", AddressPolicy.PUBLIC),
            ("2606:4700::1111", AddressPolicy.PUBLIC),
        ],
    )  # fmt: skip
    def test_of(self, address: str, reach: AddressPolicy) -> None:
        assert reach_of(address) == reach

    def test_who_may_lead_where(self) -> None:
        allowed = {
            (source.name, target.name)
            for source in AddressPolicy
            for target in AddressPolicy
            if may_lead(source, target)
        }
        assert allowed == {
            ("PUBLIC", "PUBLIC"), ("PRIVATE", "PUBLIC"), ("PRIVATE", "PRIVATE"), ("LINK_LOCAL", "PUBLIC"),
            ("LINK_LOCAL", "LINK_LOCAL"), ("LOOPBACK", "PUBLIC"), ("LOOPBACK", "PRIVATE"), ("LOOPBACK", "LOOPBACK"),
        }  # fmt: skip

    def test_other_ways_to_write_an_address(self) -> None:
        for text in ("127.1", "2130706433", "0x7f000001", "localhost"):
            assert nearest(text, 80) == AddressPolicy.LOOPBACK


class TestEndpoints:
    def test_conventions(self) -> None:
        config = RegistryConfig(certs=())
        hub = endpoint_of("docker.io", config)
        assert (
            str(hub.url("library/busybox/manifests/1")) == "https://registry-1.docker.io/v2/library/busybox/manifests/1"
        )
        assert hub.realms == {"auth.docker.io"}
        assert endpoint_of("localhost:5000", config).base.scheme == "http"
        assert endpoint_of("[::1]:5000", config).base.scheme == "http"
        assert endpoint_of("127.0.0.1", config).base.scheme == "http"
        assert endpoint_of("registry.example", config).base.scheme == "https"
        assert endpoint_of("localhost.example", config).base.scheme == "https"

    def test_config(self, tmp_path: Path) -> None:
        config = RegistryConfig(
            certs=(str(tmp_path),),
            hosts={
                "docker.io": HostConfig(server="https://mirror.example/hub/"), "plain.example": HostConfig(plain_http=True),
                "localhost:1": HostConfig(plain_http=False), "bad": HostConfig(server="http://mirror.example"),
            },
        )  # fmt: skip
        assert str(endpoint_of("docker.io", config).url("a/blobs/b")) == "https://mirror.example/hub/v2/a/blobs/b"
        assert endpoint_of("plain.example", config).base.scheme == "http"
        assert endpoint_of("localhost:1", config).base.scheme == "https"
        with pytest.raises(Invalid, match="plain_http = true"):
            endpoint_of("bad", config)
        assert plain("localhost:2", config)
        (tmp_path / "localhost:2").mkdir()
        (tmp_path / "localhost:2/ca.crt").write_text("no certificate")
        assert not plain("localhost:2", config), "who has certificates for it does not want http"
        with pytest.raises(Invalid, match="ca.crt"):
            tls("localhost:2", config)


class TestWaiting:
    def test_retry_after(self) -> None:
        assert retry_after("7") == 7
        assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
        for text in ("", "soon", "-1", "9" * 30, "Wed, 99 Oct 99999 07:28:00 GMT"):
            assert retry_after(text) is None

    def test_it_ends(self) -> None:
        patience = RetryPolicy(RegistryConfig(retries=2), "x", lambda: None)
        patience.after(TransferError("no"), 0)
        patience.after(TransferError("no"), 0)
        with pytest.raises(Unavailable, match="x: no, tried 3 times"):
            patience.after(TransferError("no"), 0)

    def test_not_for_hours(self) -> None:
        with pytest.raises(Unavailable, match="in 7200 s"):
            RetryPolicy(RegistryConfig(), "x", lambda: None).after(TransferError("busy"), 7200)

    def test_a_watchdog_ends_a_wait(self) -> None:
        here, there = socket.socketpair()
        watchdog = Watchdog()
        with here, there:
            kept = watchdog.set(there, 60)
            alarm = watchdog.set(here, 0.05)
            assert here.recv(1) == b""
            assert watchdog.clear(alarm)
            assert not watchdog.clear(kept)


class TestDocuments:
    def test_media_types(self) -> None:
        manifest, index = b'{"schemaVersion": 2, "config": {}}', b'{"schemaVersion": 2, "manifests": []}'
        assert media_type_of(manifest, f"{MANIFEST}; charset=utf-8", "m") == MANIFEST
        assert media_type_of(manifest, "", "m") == MANIFEST
        assert media_type_of(index, "application/json", "m") == INDEX
        assert media_type_of(json.dumps({"mediaType": INDEX}).encode(), "text/html", "m") == INDEX
        with pytest.raises(Invalid, match="text/html"):
            media_type_of(manifest, "text/html", "m")

    def test_ranges(self) -> None:
        assert _is_rest("bytes 5-9/10", 5, 10)
        assert _is_rest("bytes 5-9/*", 5, 10)
        for text in ("", "bytes 0-9/10", "bytes 5-8/10", "bytes 5-9/11", "bytes 5-99/10", "5-9/10", "bytes */10"):
            assert not _is_rest(text, 5, 10)

    def test_references(self) -> None:
        parts = parse_reference("busybox")
        assert (parts.domain, parts.path, parts.tag, parts.digest) == ("docker.io", "library/busybox", "latest", "")
        name = f"r.example:5000/a/b:1@sha256:{'0' * 64}"
        assert parse_reference(name).name == name
        for text in (
            "a/../b",
            "r.example/%2e%2e/x",
            "r.example/a?x=y",
            "r.example/a#b",
            "r.example/a\r\nb",
            "a:b/c:d:e",
        ):
            with pytest.raises(Invalid):
                parse_reference(text)


class TestDockersConfig:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        (tmp_path / ".docker").mkdir()

    def write(self, path: Path, **document: object) -> None:
        path.write_text(json.dumps(document))

    def test_auths(self, tmp_path: Path) -> None:
        auth = base64.b64encode(b"me:my:secret").decode()
        hub = {"username": "you", "password": "p"}
        self.write(
            tmp_path / ".docker/config.json",
            auths={
                "r.example:5000": {"auth": auth},
                "https://index.docker.io/v1/": hub,
                "https://old.example/v1/": {"auth": auth},
            },
        )
        assert docker_config.wherry_credentials("r.example:5000") == ("me", "my:secret")
        assert docker_config.wherry_credentials("docker.io") == ("you", "p")
        assert docker_config.wherry_credentials("old.example") == ("me", "my:secret")
        for other in ("r.example", "r.example:50000", "example", "xr.example:5000"):
            assert docker_config.wherry_credentials(other) is None

    def test_the_first_file_that_has_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path / ".docker/config.json", auths={"a": {"username": "docker", "password": "p"}})
        self.write(tmp_path / "named.json", auths={"a": {"username": "named", "password": "p"}})
        (tmp_path / "run/containers").mkdir(parents=True)
        self.write(tmp_path / "run/containers/auth.json", auths={"b": {"username": "podman", "password": "p"}})
        assert docker_config.wherry_credentials("a") == ("docker", "p")
        assert docker_config.wherry_credentials("b") == ("podman", "p")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "named.json"))
        assert docker_config.wherry_credentials("a") == ("named", "p")

    def test_identity_tokens(self, tmp_path: Path) -> None:
        self.write(tmp_path / ".docker/config.json", auths={"a": {"auth": "PHRva2VuPjo=", "identitytoken": "t"}})
        assert docker_config.wherry_credentials("a") == ("<token>", "t")

    def test_what_cannot_be_used_is_said(self, tmp_path: Path) -> None:
        self.write(tmp_path / ".docker/config.json", auths={"a": {}, "b": {"auth": "%"}}, credsStore="desktop")
        with pytest.raises(Unavailable, match="desktop"):
            docker_config.wherry_credentials("a")
        with pytest.raises(Unavailable, match="base64"):
            docker_config.wherry_credentials("b")
        assert docker_config.wherry_credentials("c") is None
        (tmp_path / ".docker/config.json").write_text("{")
        with pytest.raises(Invalid):
            docker_config.wherry_credentials("a")

    def test_nothing_there(self) -> None:
        assert docker_config.wherry_credentials("a") is None
