"""Manifests, indexes and configs: what is read, and what is refused because two readers might read it differently."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.api import Descriptor, Digest, Invalid, NotFound
from wherry.spec import distribution, document
from wherry.spec.distribution import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Index,
    Manifest,
    choose,
    host_platform,
    parse_target,
    split,
)
from wherry.spec.image import chain_ids, parse_config

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def target(media_type: str = MANIFEST, size: int = 1, platform: str = "") -> Descriptor:
    return Descriptor(media_type, Digest(DIGEST), size, platform=platform)


def entry(media_type: str, **fields: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 5, **fields}


def manifest(**fields: Any) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "config": entry(CONFIG), "layers": [entry(f"{LAYER}+gzip")], **fields}
    ).encode()


def index(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": [entry(MANIFEST)], **fields}).encode()


def test_manifests_and_indexes() -> None:
    found = parse_target(manifest(mediaType=MANIFEST, annotations={"a": "b"}), target())
    assert isinstance(found, Manifest)
    assert (found.config.media_type, len(found.layers), found.annotations) == (CONFIG, 1, {"a": "b"})
    docker = manifest(
        mediaType=DOCKER,
        config=entry("application/vnd.docker.container.image.v1+json"),
        layers=[entry("application/vnd.docker.image.rootfs.diff.tar.gzip")],
    )
    assert isinstance(parse_target(docker, target(DOCKER)), Manifest)
    platform = {"os": "linux", "architecture": "arm", "variant": "v7"}
    many = parse_target(index(manifests=[entry(MANIFEST, platform=platform), entry(INDEX)]), target(INDEX))
    assert isinstance(many, Index)
    assert [item.platform for item in many.manifests] == ["linux/arm/v7", ""]


BAD = {
    "schema 1": (manifest(schemaVersion=1), MANIFEST),
    "no schema": (b"{}", MANIFEST),
    "other media type than the descriptor": (manifest(mediaType=DOCKER), MANIFEST),
    "a manifest called an index": (manifest(), INDEX),
    "an index called a manifest": (index(), MANIFEST),
    "manifests and layers (CVE-2021-41190)": (manifest(manifests=[]), MANIFEST),
    "layers and manifests (CVE-2021-41190)": (index(layers=[]), INDEX),
    "config and manifests": (index(config=entry(CONFIG)), INDEX),
    "schema 1's layers": (manifest(fsLayers=[]), MANIFEST),
    "neither": (manifest(), "application/json"),
    "an artifact": (manifest(config=entry("application/vnd.example+json")), MANIFEST),
    "a layer that is no tar": (manifest(layers=[entry("application/zip")]), MANIFEST),
    "no config": (json.dumps({"schemaVersion": 2, "layers": []}).encode(), MANIFEST),
    "layers as an object": (manifest(layers={}), MANIFEST),
    "a layer as text": (manifest(layers=["x"]), MANIFEST),
    "digest with a path": (manifest(config=entry(CONFIG, digest="sha256:../../x")), MANIFEST),
    "digest in capitals": (manifest(config=entry(CONFIG, digest="sha256:" + "A" * 64)), MANIFEST),
    "sha512": (manifest(config=entry(CONFIG, digest="sha512:" + "a" * 128)), MANIFEST),
    "digest with a newline": (manifest(config=entry(CONFIG, digest=DIGEST + "\n")), MANIFEST),
    "digest as a number": (manifest(config=entry(CONFIG, digest=1)), MANIFEST),
    "negative size": (manifest(config=entry(CONFIG, size=-1)), MANIFEST),
    "huge size": (manifest(config=entry(CONFIG, size=1 << 63)), MANIFEST),
    "size as a float": (manifest(config=entry(CONFIG, size=5.0)), MANIFEST),
    "size as bool": (manifest(config=entry(CONFIG, size=True)), MANIFEST),
    "annotations of numbers": (manifest(annotations={"a": 1}), MANIFEST),
    "a key twice": (manifest()[:-1] + b',"config":{}}', MANIFEST),
    "NaN": (manifest()[:-1] + b',"x":NaN}', MANIFEST),
    "a lone surrogate": (manifest()[:-1] + b',"x":"\\ud800"}', MANIFEST),
    "no UTF-8": (manifest()[:-1] + b',"x":"\xff"}', MANIFEST),
    "10^6 digits": (manifest()[:-1] + b',"x":' + b"9" * 1_000_000 + b"}", MANIFEST),
    "depth 10^5": (manifest()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", MANIFEST),
    "5 MiB": (manifest()[:-1] + b',"x":"' + b"y" * (5 << 20) + b'"}', MANIFEST),
    "a list": (b"[]", MANIFEST),
    "nothing": (b"", MANIFEST),
    "two documents": (manifest() + manifest(), MANIFEST),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    data, media_type = BAD[case]
    with pytest.raises(Invalid):
        parse_target(data, target(media_type))


def test_twin_of_ambiguous_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check one document is a manifest to whoever fetched it as one, and an index to whoever did not."""
    both = json.dumps(
        {"schemaVersion": 2, "config": entry(CONFIG), "layers": [], "manifests": [entry(MANIFEST)]}
    ).encode()
    for media_type in (MANIFEST, INDEX):
        with pytest.raises(Invalid, match="ambiguous"):
            parse_target(both, target(media_type))

    class Blind(dict):  # type: ignore[type-arg]
        def keys(self) -> Any:
            return set()

    monkeypatch.setattr(distribution, "parse", lambda data, what: Blind(json.loads(data)))
    assert isinstance(parse_target(both, target(MANIFEST)), Manifest)
    assert isinstance(parse_target(both, target(INDEX)), Index)


def test_twin_of_keys_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"a": 1, "a": 2}'
    with pytest.raises(Invalid, match="twice"):
        document.parse(data, "x")
    monkeypatch.setattr(document, "_pairs", dict)
    assert document.parse(data, "x") == {"a": 2}, "the last would win here, the first elsewhere"


# -- platforms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offered, wanted, found",
    [
        (["linux/amd64", "linux/arm64"], "linux/arm64", 1),
        (["linux/amd64", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/arm64"], "linux/aarch64/v8", 0),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", 1),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm", 1),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64/v3"], "linux/amd64", 0),
        (["unknown/unknown", "linux/amd64"], "linux/x86_64", 1),
        ([""], "linux/amd64", 0),
    ],
)
def test_the_right_platform(offered: list[str], wanted: str, found: int) -> None:
    items = [target(size=number, platform=platform) for number, platform in enumerate(offered)]
    assert choose(items, wanted, "image").size == found


def test_no_platform_fits() -> None:
    with pytest.raises(NotFound, match="it has: linux/arm64, windows/amd64"):
        choose([target(platform="windows/amd64"), target(platform="linux/arm64")], "linux/amd64", "image")
    with pytest.raises(NotFound):
        choose([], "linux/amd64", "image")
    with pytest.raises(NotFound):
        choose([target("application/vnd.example", platform="linux/amd64")], "linux/amd64", "image")
    assert split(host_platform())[0] == "linux"
    assert split("arm64") == split("linux/arm64/v8")


# -- configs ---------------------------------------------------------------------------------------------------------------


def config(inner: Any = None, **fields: Any) -> bytes:
    base = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}
    return json.dumps({**base, **({"config": inner} if inner is not None else {}), **fields}).encode()


def test_a_config() -> None:
    found = parse_config(
        config({"Env": ["A=b", "EMPTY="], "Labels": {"k": "v", "wherry.log": "evil"}, "Cmd": None},
               created="2024-02-29T12:00:00.123456789+02:00", variant="v8"), target(CONFIG),
    )  # fmt: skip
    assert found.platform == "linux/amd64/v8"
    assert found.created == 1_709_200_800_123_456_789
    assert found.labels == {"k": "v"}
    assert found.document["config"]["Labels"] == {"k": "v"}, (
        "what the runtime gives a meaning to is nobody else's to set"
    )
    assert found.chain_ids() == (DIGEST,)


@pytest.mark.parametrize(
    "created", ["", "yesterday", "2024-02-30T00:00:00Z", "0000-00-00T00:00:00Z", "1960-01-01T00:00:00Z"]
)
def test_a_date_that_is_none_is_unknown(created: str) -> None:
    assert parse_config(config(created=created), target(CONFIG)).created == 0


BAD_CONFIGS: dict[str, bytes] = {
    "environment without = (CVE-2026-57231)": config({"Env": ["HOME"]}),
    "environment *": config({"Env": ["*"]}),
    "environment without a name": config({"Env": ["=x"]}),
    "environment with NUL": config({"Env": ["A=b\0C=d"]}),
    "environment as text": config({"Env": "A=b"}),
    "command as text": config({"Cmd": "sh"}),
    "command with NUL": config({"Cmd": ["sh\0"]}),
    "user as a number": config({"User": 0}),
    "user with NUL": config({"User": "a\0b"}),
    "labels as a list": config({"Labels": []}),
    "labels of numbers": config({"Labels": {"a": 1}}),
    "volumes as a list": config({"Volumes": []}),
    "no os": json.dumps({"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}}).encode(),
    "no rootfs": json.dumps({"os": "linux", "architecture": "amd64"}).encode(),
    "rootfs of another type": config(rootfs={"type": "tree", "diff_ids": []}),
    "diff-id with a path": config(rootfs={"type": "layers", "diff_ids": ["sha256:../x"]}),
    "diff-ids as text": config(rootfs={"type": "layers", "diff_ids": DIGEST}),
    "config as a list": config([1]),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refused_configs(case: str) -> None:
    with pytest.raises(Invalid):
        parse_config(BAD_CONFIGS[case], target(CONFIG))


def test_chain_ids_are_those_of_the_specification() -> None:
    one, two, three = (f"sha256:{letter * 64}" for letter in "abc")
    second = "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {three}".encode()).hexdigest()
    assert chain_ids([one, two, three]) == (one, second, third)
    assert chain_ids([]) == ()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(DIGEST) | st.just(MANIFEST),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(
        ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "platform", "os", "architecture",
         "rootfs", "type", "diff_ids", "Env", "Labels", "annotations"]), children, max_size=5),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(_JSON, st.sampled_from([MANIFEST, INDEX, CONFIG]))
def test_any_json_is_read_or_refused(value: Any, media_type: str) -> None:
    data = json.dumps(value).encode()
    for read in (parse_target, parse_config):
        try:
            read(data, target(media_type))
        except Invalid:
            pass
