"""The options of every driver are read by one validator, whose errors are worded alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.fakes import World, engine
from wherry.api import Invalid, NetworkConfig, RunRequest
from wherry.engine.containers import userns
from wherry.errors import suggest
from wherry.kit import options
from wherry.kit.names import check_name, is_name
from wherry_plugins.log.json_file import JsonFile, JsonFileConfig
from wherry_plugins.log.none import NoneConfig, NoneLog
from wherry_plugins.network.bridge.config import options_of
from wherry_plugins.network.cni import conflist
from wherry_plugins.network.macvlan import MacvlanConfig
from wherry_plugins.network.macvlan.driver import MacvlanNetwork
from wherry_plugins.volume.local import LocalConfig, LocalVolumes

Given = Mapping[str, str]


@pytest.fixture
def drivers(tmp_path: Path) -> dict[str, Callable[[Given], object]]:
    """How each gets the options of users."""
    context: Any = SimpleNamespace(root=tmp_path, run=tmp_path, shim=None)

    def network(given: Given) -> NetworkConfig:
        return NetworkConfig("one", options=given)

    return {
        'the log driver "json-file"': lambda given: JsonFile(JsonFileConfig(), context).sink("x", given),
        'the log driver "none"': lambda given: NoneLog(NoneConfig(), context).sink("x", given),
        'the network driver "bridge"': lambda given: options_of(network(given)),
        'the network driver "cni"': lambda given: conflist.judge(network(given)),
        'the network driver "macvlan"': lambda given: MacvlanNetwork(MacvlanConfig(), context).create(network(given)),
        'the volume driver "local"': lambda given: LocalVolumes(LocalConfig(), context).create("one", given, {}),
        'user namespace "auto"': lambda given: userns.parse("auto:" + ",".join(f"{k}={v}" for k, v in given.items())),
    }


def test_an_unknown_option_is_named_with_its_owner(drivers: dict[str, Callable[[Given], object]]) -> None:
    for owner, take in drivers.items():
        with pytest.raises(Invalid) as caught:
            take({"zzzz": "1"})
        assert str(caught.value).startswith(f'option "zzzz": {owner} has no such option; there '), owner


@pytest.mark.parametrize(
    ("owner", "key", "text", "cause"),
    [
        ('the log driver "json-file"', "max-size", "10x", 'is not a size: a number with a unit, such as "10m"'),
        ('the log driver "json-file"', "max-size", "1k", "is less than 4096 bytes"),
        ('the log driver "json-file"', "max-file", "0", "is not a number from 1 to 1000"),
        ('the log driver "json-file"', "mode", "fast", "is none of blocking, non-blocking"),
        ('the network driver "bridge"', "mtu", "67", "is not a number of bytes from 68 to 65535"),
        ('the network driver "bridge"', "com.docker.network.bridge.enable_icc", "no", "is neither true nor false"),
        ('the network driver "cni"', "mtu", "1e3", "is not a number of bytes from 68 to 65535"),
        ('the network driver "macvlan"', "macvlan_mode", "odd", "is none of private, vepa, bridge, passthru"),
        ('user namespace "auto"', "size", "-1", "is not a number from 0 to 999999999"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_owner(
    drivers: dict[str, Callable[[Given], object]], owner: str, key: str, text: str, cause: str
) -> None:
    with pytest.raises(Invalid) as caught:
        drivers[owner]({key: text})
    assert str(caught.value) == f'option "{key}={text}" of {owner}: {cause}'


def test_what_is_read() -> None:
    known: dict[str, options.Reader] = {"mtu": options.mtu, "on": options.flag, "link": options.interface}
    assert options.read_options({}, known, "x") == {}
    given = {"size.mtu": "1400", "on": "TRUE", "link": "eth0"}
    assert options.read_options(given, known, "x", {"size.mtu": "mtu"}) == {"mtu": 1400, "on": True, "link": "eth0"}
    with pytest.raises(Invalid, match='has no such option; did you mean "size.mtu"'):
        options.read_options({"size.mtv": "1"}, known, "x", {"size.mtu": "mtu"})
    for text in ("", "a/b", "a b", "a:b", "..", "x" * 16):
        with pytest.raises(ValueError, match="is not the name of an interface"):
            options.interface(text)
    for text in ("", "-1", "1_0", "٣", "9" * 5000):
        with pytest.raises(ValueError, match="is not a number"):
            options.number(0, 100)(text)


def test_suggestions() -> None:
    assert suggest("prepar", ["prepare", "commit"]) == 'did you mean "prepare"?'
    assert suggest("x", ["prepare", "commit"]) == "there are prepare, commit"
    assert suggest("x", ["prepare"]) == "there is prepare"
    assert suggest("x", []) == "there is none"
    assert suggest("x", ["prepare"], otherwise="see there") == "see there"
    assert suggest("ab1", ["ab2", "ab3", "zz"], count=2) == 'did you mean "ab3" or "ab2"?'


def test_names_and_labels_have_one_rule(tmp_path: Path) -> None:
    parts = engine(tmp_path, World())
    creations: tuple[Callable[[str, Given], object], ...] = (
        lambda name, labels: parts.lifecycle.create(RunRequest("x", name=name, labels=labels)),
        lambda name, labels: parts.networks.create(NetworkConfig(name, labels=labels), "none"),
        lambda name, labels: parts.state.volumes.create(name, "fake", {}, labels),
    )
    for create in creations:
        with pytest.raises(Invalid, match='label "": empty or too long'):
            create("one", {"": "x"})
    for create in creations[:2]:  # what a volume may be called is its driver's business
        for name in ("-a", "a/b", "a\n", "x" * 129):
            with pytest.raises(
                Invalid, match=r'(?s)name ".*": not a letter or digit, followed by letters, digits, _, \. or -'
            ):
                create(name, {})
    parts.close()
    assert is_name("x" * 255, 255)
    assert not is_name("x" * 256, 255)
    assert check_name("a_B.c-1", "name") == "a_B.c-1"
