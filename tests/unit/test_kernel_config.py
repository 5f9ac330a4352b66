"""The config: which file counts, what lies over what, and every kind of mistake with its words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.distributions import DEFAULTS, Distributions, distributions  # noqa: F401
from wherry.api import Denied, Invalid, NotFound
from wherry.interfaces.config import Variant
from wherry.kernel import config
from wherry.kernel.config import LoadedConfig, check, load, loads, search_paths
from wherry.kernel.locate import line_of


def problems(text: str, file: str = "f.toml") -> list[str]:
    try:
        loads(text, file, DEFAULTS)
    except Invalid as error:
        return [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
    return []


class TestSearch:
    def test_order(self) -> None:
        assert search_paths({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, 1) == (
            Path("/x/wherry/config.toml"),
            Path("/etc/wherry/config.toml"),
        )
        assert search_paths({"HOME": "/h"}, 1)[0] == Path("/h/.config/wherry/config.toml")
        assert search_paths({}, 0)[0] == Path("/root/.config/wherry/config.toml")
        assert search_paths({}, 1) == (Path("/etc/wherry/config.toml"),)

    def test_the_first_found_wins_and_nothing_is_merged(self, tmp_path: Path) -> None:
        for name, text in (("a", "[engine]\nidle_exit = 5"), ("b", '[engine]\ngroup = "g"')):
            (tmp_path / name / "wherry").mkdir(parents=True)
            (tmp_path / name / "wherry" / "config.toml").write_text(text)
        named = tmp_path / "b" / "wherry" / "config.toml"
        found = load(None, {"XDG_CONFIG_HOME": str(tmp_path / "a")})
        assert (found.config.engine.idle_exit, found.config.engine.group) == (5.0, "")
        assert found.file == str(tmp_path / "a" / "wherry" / "config.toml")
        by_environment = load(None, {"XDG_CONFIG_HOME": str(tmp_path / "a"), "WHERRY_CONFIG": str(named)})
        assert (by_environment.config.engine.idle_exit, by_environment.config.engine.group) == (0.0, "g")
        by_option = load(named, {"WHERRY_CONFIG": "/nonexistent"})
        assert by_option.config.engine.group == "g"

    def test_a_named_file_must_be_there(self) -> None:
        with pytest.raises(NotFound, match='config file "/nonexistent": no such file; it is named by --config'):
            load(Path("/nonexistent"), {})
        with pytest.raises(NotFound, match=r"it is named by \$WHERRY_CONFIG"):
            load(None, {"WHERRY_CONFIG": "/nonexistent"})

    def test_no_file_is_the_defaults(self, tmp_path: Path) -> None:
        loaded = load(None, {"XDG_CONFIG_HOME": str(tmp_path)})
        if Path("/etc/wherry/config.toml").exists():
            pytest.skip("this machine has a config of its own")
        assert loaded.file == ""
        assert loaded.config.default in loaded.config.variant

    def test_unreadable(self, tmp_path: Path) -> None:
        (tmp_path / "c").write_bytes(b"\xff")
        with pytest.raises(Invalid, match=r'config file ".*/c": not UTF-8: invalid start byte at byte 0'):
            load(tmp_path / "c", {})
        with pytest.raises(Invalid, match=r"is a directory|Is a directory"):
            load(tmp_path, {})
        (tmp_path / "d").write_text("")
        (tmp_path / "d").chmod(0)
        if os.access(tmp_path / "d", os.R_OK):
            return  # root reads everything
        with pytest.raises(Denied):
            load(tmp_path / "d", {})


class TestOverTheDefaults:
    def test_only_a_variant(self) -> None:
        loaded = loads('[variant.research]\nextends = "standard"\nsnapshotter = "vfs"\n', "f.toml", DEFAULTS)
        assert loaded.config.variant["standard"] == Variant(
            store=("fake",), snapshotter=("fake",), isolation=("fake",), network=("fake",)
        )
        assert loaded.config.variant["research"].snapshotter == ("vfs",)

    def test_an_array_replaces_the_default(self) -> None:
        loaded = loads('[variant.standard]\nsnapshotter = ["a", "b"]', "f.toml", DEFAULTS)
        assert loaded.config.variant["standard"].snapshotter == ("a", "b")
        assert loaded.config.variant["standard"].store == ("fake",)

    def test_origins(self) -> None:
        loaded = loads("[engine]\ndeadline = 5\n[plugin.store.fake]\nx = [1]\ny.z = 2\n", "f.toml", DEFAULTS)
        origins = {each.key: (each.value, each.origin) for each in loaded.origins}
        assert origins["engine.deadline"] == (5.0, "f.toml")
        assert origins["engine.idle_exit"] == (0.0, "defaults")
        assert origins["variant.standard.store"] == (["fake"], "defaults")
        assert origins["plugin.store.fake.x"] == ([1], "f.toml")
        assert origins["plugin.store.fake.y.z"] == (2, "f.toml")
        assert origins["version"] == (1, "defaults")

    def test_a_string_or_an_array(self) -> None:
        loaded = loads('[variant.v]\nstore = "a"\ndecorate = []\nnetwork = ["b", "c"]', "f", DEFAULTS)
        assert loaded.config.variant["v"] == Variant(store=("a",), network=("b", "c"), decorate=())


class TestMistakes:
    def test_unknown_key_and_table(self) -> None:
        assert problems("[engine]\ndeadlin = 3\n") == [
            'f.toml:2: [engine] deadlin: unknown key "deadlin"; did you mean "deadline"?'
        ]
        assert problems("[engin]\n") == ['f.toml:1: engin: unknown key "engin"; did you mean "engine"?']
        assert problems("zzz = 1\n") == [
            'f.toml:1: zzz: unknown key "zzz"; there are version, default, engine, variant, plugin'
        ]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('[engine]\ndeadline = "5"', 'f.toml:2: [engine] deadline: "5" is a string, expected a number'),
            ("[engine]\ndeadline = true", "f.toml:2: [engine] deadline: true is a boolean, expected a number"),
            ("[engine]\ngroup = 5", "f.toml:2: [engine] group: 5 is an integer, expected a string"),
            ('[engine]\nfrontends = "cli"', 'f.toml:2: [engine] frontends: "cli" is a string, expected an array'),
            ('[engine]\nfrontends = ["a", 5]', "f.toml:2: [engine] frontends[1]: 5 is an integer, expected a string"),
            ("[variant.v]\nstore = 5", "f.toml:2: [variant.v] store: 5 is an integer, expected an array"),
            ("[variant]\nv = 5", "f.toml:2: [variant.v]: 5 is an integer, expected a table"),
            ("version = 2", "f.toml:1: version: 2 is not one of 1; this Wherry reads version 1"),
            ('version = "1"', 'f.toml:1: version: "1" is not one of 1; this Wherry reads version 1'),
            ("version = true", "f.toml:1: version: true is not one of 1; this Wherry reads version 1"),
            ("engine = 3", "f.toml:1: [engine]: 3 is an integer, expected a table"),
            ("[engine]\ndeadline = 0", "f.toml:2: [engine] deadline: 0 is not above 0; it is in seconds"),
            ("[engine]\nidle_exit = -1", "f.toml:2: [engine] idle_exit: -1 is negative; 0 is never"),
            ('default = "standrd"', 'f.toml:1: default: no variant "standrd"; did you mean "standard"?'),
            (
                '[variant.v]\nextends = "standrd"',
                'f.toml:2: [variant.v] extends: no variant "standrd"; did you mean "standard"?',
            ),
        ],
    )
    def test_wrong(self, text: str, said: str) -> None:
        assert problems(text) == [said]

    def test_an_integer_is_a_number(self) -> None:
        assert loads("[engine]\ndeadline = 5", "f", DEFAULTS).config.engine.deadline == 5.0

    def test_all_at_once(self) -> None:
        text = '[engine]\nx = 1\ndeadline = "a"\n[variant.v]\nextend = "b"\n'
        assert problems(text) == [
            'f.toml:3: [engine] deadline: "a" is a string, expected a number',
            'f.toml:2: [engine] x: unknown key "x"; there are root, run, group, frontends, transport, log, volume, adjusters, '
            "deadline, idle_exit, userns",
            'f.toml:5: [variant.v] extend: unknown key "extend"; did you mean "extends"?',
        ]

    def test_cycles(self) -> None:
        text = '[variant.a]\nextends = "b"\n[variant.b]\nextends = "a"\n'
        assert problems(text)[0] == "f.toml:2: [variant.a] extends: the variants extend each other: a -> b -> a"
        assert problems('[variant.a]\nextends = "a"') == [
            "f.toml:2: [variant.a] extends: the variants extend each other: a -> a"
        ]

    def test_not_toml(self) -> None:
        (said,) = problems("[engine\n")
        assert said.startswith('config file "f.toml": not TOML: expected')

    def test_deep_nesting_is_no_crash(self) -> None:
        assert "not TOML" in problems("a = " + "[" * 100_000)[0]


class TestCheck:
    def test_names_of_drivers_and_tables(self, distributions: Distributions) -> None:  # noqa: F811
        distributions.standard()
        text = """
[engine]
frontends = ["clii"]
[variant.v]
snapshotter = ["fakee"]
decorate = ["tracee"]
[plugin.snapshoter.fake]
[plugin.snapshotter.nope]
a = 1
[plugin.snapshotter.fake]
sise = 2
size = "2"
[plugin.decorate.trace]
limt = 3
[plugin.decorate.inject]
rules = [{call = "snapshotter.prepar", action = "delay"}]
"""
        found = [str(error) for error in check(text, "f.toml", distributions.plugins())]
        assert found[:7] == [
            'f.toml:5: [variant.v] snapshotter: snapshotter driver "fakee": not installed; did you mean "fake"?',
            'f.toml:6: [variant.v] decorate: decorate plugin "tracee": not installed; did you mean "trace"?',
            'f.toml:3: [engine] frontends: frontend driver "clii": not installed; did you mean "cli"?',
            'f.toml:7: [plugin.snapshoter]: unknown family "snapshoter"; did you mean "snapshotter"?',
            'f.toml:8: [plugin.snapshotter.nope]: no snapshotter plugin "nope" is installed; '
            + found[4].partition("installed; ")[2],
            'f.toml:12: [plugin.snapshotter.fake] size: "2" is a string, expected an integer',
            'f.toml:11: [plugin.snapshotter.fake] sise: unknown key "sise"; did you mean "size"?',
        ]
        assert found[7] == 'f.toml:14: [plugin.decorate.trace] limt: unknown key "limt"; did you mean "limit"?'
        assert found[8] == (
            'f.toml:16: [plugin.decorate.inject] rules[0]: call "snapshotter.prepar": '
            'no method "prepar"; did you mean "prepare"?'
        )

    def test_every_plugin_named_under_engine(self, distributions: Distributions) -> None:  # noqa: F811
        distributions.standard()
        for key in ("log", "transport", "volume"):
            (error,) = check(f'[engine]\n{key} = "nobody"\n', "f.toml", distributions.plugins())
            assert str(error).startswith(f'f.toml:2: [engine] {key}: {key} driver "nobody": ')

    def test_what_plugins_leave_to_their_defaults(self, distributions: Distributions) -> None:  # noqa: F811
        distributions.standard()
        plugins = distributions.plugins()
        loaded = loads("[plugin.snapshotter.fake]\nsize = 7\n", "f.toml", plugins.default_config())
        found = {each.key: (each.value, each.origin) for each in plugins.origins(loaded)}
        assert found["plugin.snapshotter.fake.size"] == (7, "f.toml")
        assert found["plugin.decorate.inject.rules"] == ([], "defaults")
        assert plugins.origins(loaded)[: len(loaded.origins)] == loaded.origins

    def test_a_good_file(self, distributions: Distributions) -> None:  # noqa: F811
        distributions.standard()
        text = '[variant.v]\nextends = "standard"\nsnapshotter = "fake"\ndecorate = ["trace"]\n'
        assert check(text, "f.toml", distributions.plugins()) == []

    def test_the_bundled_defaults_are_good(self) -> None:
        assert config.parse("", "")[1] == []


def test_lines() -> None:
    text = 'a = 1\n[b]\nc = """\n[x]\nd = 2\n"""\n"e f" = 3\n[[g.h]]\ni = 4\n[[g.h]]\ni = 5\nj.k = 6\n'
    assert line_of(text, ["a"]) == 1
    assert line_of(text, ["b"]) == 2
    assert line_of(text, ["b", "e f"]) == 7
    assert line_of(text, ["x"]) == 0
    assert line_of(text, ["g", "h", "0", "i"]) == 9
    assert line_of(text, ["g", "h", "1", "i"]) == 11
    assert line_of(text, ["g", "h", "1", "j", "k"]) == 12
    assert line_of(text, ["b", "nothing"]) == 2
    assert line_of(text, ["nothing"]) == 0


def test_a_loaded_config_can_be_made_by_hand() -> None:
    assert LoadedConfig().place("engine", "log") == "config: [engine] log"
