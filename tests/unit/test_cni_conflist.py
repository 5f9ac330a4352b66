"""Network configuration lists of any shape: a list, or Invalid."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.api import Invalid
from wherry_plugins.network.cni.conflist import from_stored, parse, stored

WORDS = st.sampled_from(["", "a", "bridge", "10.1.0.0/24", "10.1.0.1", "fd00::/64", "1.0.0", "../x", "true"])
KEYS = st.sampled_from(
    [
        "cniVersion",
        "cniVersions",
        "name",
        "type",
        "plugins",
        "capabilities",
        "ipam",
        "ranges",
        "subnet",
        "gateway",
        "args",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(whole=JSON, ipam=JSON, capabilities=JSON, versions=JSON)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_anything(whole: Any, ipam: Any, capabilities: Any, versions: Any) -> None:
    plugin = {"type": "x", "ipam": ipam, "capabilities": capabilities}
    for data in (whole, {"cniVersion": "1.0.0", "name": "lab", "plugins": [plugin], "cniVersions": versions}):
        try:
            made = parse(data)
        except Invalid:
            continue
        assert from_stored(stored(made)) == made
        assert made.described().name == made.name
        assert made.offers("ips") in (True, False)


@pytest.mark.parametrize(
    ("version", "asked", "speaks"),
    [("1.1.0", "1.1.0", True), ("1.0.0", "1.1.0", False), ("0.4.0", "0.4.0", True), ("0.3.1", "0.4.0", False)],
)
def test_what_a_version_has(version: str, asked: str, speaks: bool) -> None:
    made = parse({"cniVersion": version, "name": "lab", "plugins": [{"type": "x"}]})
    assert made.speaks(asked) is speaks


def test_flags_may_be_strings() -> None:
    made = parse(
        {"cniVersion": "1.1.0", "name": "lab", "plugins": [{"type": "x"}], "disableCheck": "true", "disableGC": True}
    )
    assert (made.disable_check, made.disable_gc) == (True, True)
