"""Discovery: names without imports, bad names and clashes as named faults, the index on disk."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from support.distributions import Distributions, distributions  # noqa: F401
from wherry.api import NotFound, PluginFault
from wherry.kernel import discovery
from wherry.kernel.discovery import PluginEntry, discover


def entry(entries: tuple[PluginEntry, ...], key: str) -> PluginEntry:
    return next(each for each in entries if each.key == key)


def test_names_are_known_without_an_import(distributions: Distributions) -> None:  # noqa: F811
    distributions.add({"snapshotter.quick": "quick_module"}, {"quick_module": "raise SystemExit(3)"}, "quick", "2.1")
    found = entry(discover(None), "snapshotter.quick")
    assert (found.distribution, found.version, found.value, found.problem) == ("quick", "2.1", "quick_module", "")
    assert "quick_module" not in sys.modules


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nodot", 'the entry point "nodot" is not named <family>.<id>'),
        ("snapshoter.x", '"snapshoter" is no family; did you mean "snapshotter"?'),
        ("store.", '"" is no id: letters, digits, "_", "." and "-", at most 128'),
        ("store.a b", '"a b" is no id: letters, digits, "_", "." and "-", at most 128'),
    ],
)
def test_bad_names_are_named(distributions: Distributions, name: str, cause: str) -> None:  # noqa: F811
    distributions.standard()
    distributions.add({name: "whatever"}, name="bad")
    infos = [info for info in distributions.kernel().plugins() if info.distribution == "bad"]
    assert [(info.state, info.reason) for info in infos] == [("failed", cause)]
    assert distributions.kernel().variant().ids["store"] == "fake"


def test_a_clash_fails_both_and_nothing_else(distributions: Distributions) -> None:  # noqa: F811
    distributions.standard()
    distributions.driver("snapshotter", "twice")
    distributions.add({"snapshotter.twice": "other"}, {"other": ""}, "rival", "3.0")
    kernel = distributions.kernel('[variant.v]\nsnapshotter = "twice"')
    infos = [info for info in kernel.plugins() if info.id == "twice"]
    assert [info.state for info in infos] == ["failed", "failed"]
    assert {info.reason for info in infos} == {"the name is claimed by dist5 1.0 and rival 3.0"}
    with pytest.raises(
        PluginFault, match=r"plugin snapshotter.twice: the name is claimed by dist5 1.0 and rival 3.0; "
    ) as caught:
        kernel.variant("v")
    assert caught.value.plugin == "snapshotter.twice"
    assert kernel.variant().ids["snapshotter"] == "fake"


def test_the_first_of_two_copies_of_a_distribution_counts(
    distributions: Distributions,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other"
    info = other / "same-0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: same\nVersion: 0.9\n")
    (info / "entry_points.txt").write_text("[wherry.plugins]\nlog.same = m\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    distributions.add({"log.same": "m"}, name="same", version="1.0")
    found = entry(discover(None), "log.same")
    assert (found.version, found.problem) == ("1.0", "")


def test_unknown_ids_get_the_nearest(distributions: Distributions) -> None:  # noqa: F811
    distributions.standard()
    with pytest.raises(NotFound, match=r'snapshotter driver "fkae": not installed; did you mean "fake"?'):
        distributions.kernel().driver("snapshotter", "fkae")
    with pytest.raises(NotFound, match='verify plugin "x": not installed; there is none'):
        distributions.kernel().driver("verify", "x")


class TestIndex:
    @pytest.fixture(autouse=True)
    def old(self, distributions: Distributions) -> None:  # noqa: F811
        """Directories that changed long ago."""
        distributions.add({"log.kept": "m"})
        for directory in sys.path:
            if Path(directory).is_dir() and str(directory).startswith(str(distributions.directory)):
                os.utime(directory, ns=(1, 1))

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distributions: Distributions) -> Path:  # noqa: F811
        monkeypatch.setattr(sys, "path", [str(distributions.site)])
        return tmp_path / "cache"

    def test_is_used(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = discover(cache)
        monkeypatch.setattr(discovery, "scan", lambda: pytest.fail("scanned again"))
        assert discover(cache) == first
        assert [each.key for each in first] == ["log.kept"]

    def test_is_void_when_a_directory_changed(self, cache: Path, distributions: Distributions) -> None:  # noqa: F811
        discover(cache)
        distributions.add({"log.new": "m"})
        assert [each.key for each in discover(cache)] == ["log.kept", "log.new"]

    def test_is_not_written_while_a_directory_may_still_change(self, cache: Path, distributions: Distributions) -> None:  # noqa: F811
        os.utime(distributions.site, ns=(time.time_ns(), time.time_ns()))
        discover(cache)
        assert not cache.exists()

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"stamp": 1}', "\x00"])
    def test_rubbish_is_ignored(self, cache: Path, text: str) -> None:
        first = discover(cache)
        (file,) = cache.iterdir()
        file.write_text(text)
        assert discover(cache) == first

    def planted(self, cache: Path) -> tuple[PluginEntry, ...]:
        discover(cache)
        (file,) = cache.iterdir()
        data = json.loads(file.read_text())
        data["entries"][0]["value"] = "evil"
        file.write_text(json.dumps(data))
        file.chmod(0o666)
        return discover(cache)

    def test_of_others_is_not_trusted(self, cache: Path) -> None:
        assert [each.value for each in self.planted(cache)] == ["m"]

    def test_of_others_would_otherwise_be_believed(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(discovery.stat, "S_IWOTH", 0)
        monkeypatch.setattr(discovery.stat, "S_IWGRP", 0)
        assert [each.value for each in self.planted(cache)] == ["evil"]

    def test_an_unwritable_place_is_no_error(self, cache: Path) -> None:
        cache.write_text("a file")
        assert [each.key for each in discover(cache)] == ["log.kept"]
