"""Every way in which a plugin can be wrong: one typed error that names it, and the other variants still work."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from support.distributions import Distributions, distributions  # noqa: F401
from wherry.api import API, DeadlineExceeded, Error, Invalid, NotFound, PluginFault, Unavailable
from wherry.kernel import Kernel
from wherry.kernel.process_state import umask

BAD = '[variant.bad]\nsnapshotter = "bad"\n'


@pytest.fixture
def dists(distributions: Distributions) -> Distributions:  # noqa: F811
    distributions.standard()
    return distributions


def fails(kernel: Kernel, variant: str = "bad") -> Error:
    """The error of the bad variant; the standard one works before and after."""
    assert kernel.variant().ids["snapshotter"] == "fake"
    with pytest.raises(Error) as caught:
        kernel.variant(variant)
    assert kernel.variant().snapshotter.usage("x") == (1, 2)
    return caught.value


def state(kernel: Kernel, id: str = "bad") -> tuple[str, str]:
    (info,) = [info for info in kernel.plugins() if info.id == id]
    return info.state, info.reason


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (
            "import nothing_like_this",
            "importing bad_module raised ModuleNotFoundError: No module named 'nothing_like_this'",
        ),
        ("raise SystemExit(3)", "importing bad_module raised SystemExit: 3"),
        ("raise KeyboardInterrupt", "importing bad_module raised KeyboardInterrupt"),
        ("def (", "importing bad_module raised SyntaxError: invalid syntax (bad_module.py, line 1)"),
        ("", "bad_module does not implement the hook wherry_snapshotter; is it marked with @hookimpl?"),
        (
            "def wherry_snapshotter(): pass",
            "bad_module does not implement the hook wherry_snapshotter; is it marked with @hookimpl?",
        ),
        (
            "from wherry.api import hookimpl\n@hookimpl\ndef wherry_snapshoter(): pass",
            "bad hook in bad_module: unknown hook 'wherry_snapshoter' in plugin <module 'bad_module' from '",
        ),
        (
            "from wherry.api import hookimpl\n@hookimpl\ndef wherry_snapshotter(extra): pass",
            "bad hook in bad_module: Plugin 'bad_module' for hook 'wherry_snapshotter' hookimpl definition: ",
        ),
        (
            "from wherry.api import hookimpl\n@hookimpl(wrapper=True)\ndef wherry_snapshotter(): yield",
            "wherry_snapshotter is a hook wrapper; every hook is called on its own: wrappers have no place",
        ),
        (
            "from wherry.api import hookimpl\n@hookimpl\ndef wherry_snapshotter(): return 5",
            "wherry_snapshotter returned int, not Registration",
        ),
        (
            "from wherry.api import hookimpl\n@hookimpl\ndef wherry_snapshotter(): return None",
            "wherry_snapshotter returned NoneType, not Registration",
        ),
        (
            "from wherry.api import hookimpl\n@hookimpl\ndef wherry_snapshotter(): 1/0",
            "wherry_snapshotter raised ZeroDivisionError: division by zero",
        ),
    ],
)
def test_module(dists: Distributions, source: str, cause: str) -> None:
    dists.add({"snapshotter.bad": "bad_module"}, {"bad_module": source}, "badly", "1.2")
    kernel = dists.kernel(BAD)
    error = fails(kernel)
    assert isinstance(error, PluginFault)
    assert str(error).startswith(f"plugin snapshotter.bad (badly 1.2): {cause}")
    assert error.plugin == "snapshotter.bad"
    assert state(kernel) == ("failed", str(error))


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (
            {"more": "api=2"},
            f"it was built for API version 2, this is version {API}; install a release of it for this version",
        ),
        ({"more": 'api="1"'}, f"it was built for API version '1', this is version {API}"),
        ({"config": "dict"}, "its config <class 'dict'> is no attrs class"),
        ({"config": "5"}, "its config 5 is no attrs class"),
        ({"init": "5"}, "its init 5 can't be called"),
        ({"more": "probe=None"}, "its probe None can't be called"),
        ({"more": "probe=lambda c, x: 5"}, "its probe returned int, not str | None"),
        ({"more": "probe=lambda c, x: 1 / 0"}, "its probe raised ZeroDivisionError: division by zero"),
        ({"more": "capabilities=lambda c, x: {}"}, "its capabilities returned dict, not Capabilities"),
        (
            {"more": "capabilities=lambda c, x: Capabilities(['a'])"},
            "its capabilities returned Capabilities.provides: list",
        ),
        ({"init": "lambda c, x: 1 / 0"}, "its init raised ZeroDivisionError: division by zero"),
        ({"init": "lambda c, x: sys.exit(2)"}, "its init raised SystemExit: 2"),
        (
            {"init": "lambda c, x: None"},
            "init returned NoneType without stat, update, relabel, ",
        ),
        (
            {"init": "lambda c: None"},
            "its init raised TypeError: wherry_snapshotter.<locals>.<lambda>() takes 1 positional argument but 2 were given",
        ),
        (
            {"init": "Half", "extra": "class Half(FakeSnapshotter):\n    walk = None"},
            "init returned Half without walk; ",
        ),
        (
            {"more": "capabilities=lambda c, x: Capabilities(frozenset({'apply'}))"},
            "init returned FakeSnapshotter without apply; the Protocol is Snapshotter in wherry.api",
        ),
    ],
)
def test_registration(dists: Distributions, arguments: dict[str, str], cause: str) -> None:
    dists.driver("snapshotter", "bad", **arguments)
    kernel = dists.kernel(BAD)
    error = fails(kernel)
    assert isinstance(error, PluginFault)
    assert str(error).startswith(f"plugin snapshotter.bad (dist5 1.0): {cause}")
    assert state(kernel) == ("failed", str(error))


def test_another_id(dists: Distributions) -> None:
    source = """
from fake_drivers import *
@hookimpl
def wherry_snapshotter():
    return Registration(id='good', config=Options, init=FakeSnapshotter)
"""
    dists.add({"snapshotter.bad": "bad_module"}, {"bad_module": source})
    said = 'it registers the id "good", its entry point says "bad"; make the two equal'
    assert said in str(fails(dists.kernel(BAD)))


def test_an_error_of_init_keeps_its_class(dists: Distributions) -> None:
    dists.driver(
        "snapshotter", "bad", init="init", extra="def init(c, x): raise Unavailable('disk', 'full', 'free some')"
    )
    error = fails(dists.kernel(BAD))
    assert type(error) is Unavailable
    assert (str(error), error.plugin) == ("disk: full; free some", "snapshotter.bad")


def test_a_failed_init_is_tried_again_after_a_pause(dists: Distributions) -> None:
    extra = """
import os
def init(c, x):
    if not os.path.exists(x.root / 'go'): raise OSError(5, 'no disk')
    return FakeSnapshotter(c, x)
"""
    dists.driver("snapshotter", "bad", init="init", extra=extra)
    kernel = dists.kernel(BAD)
    assert "its init raised OSError: [Errno 5] no disk" in str(fails(kernel))
    (dists.directory / "root/snapshotter/bad/go").touch()
    assert "no disk" in str(fails(kernel)), "not before the pause is over"
    kernel._driver("snapshotter", "bad").health._retry_at = 0
    assert kernel.variant("bad").ids["snapshotter"] == "bad"
    assert state(kernel) == ("ready", "")


class TestHangs:
    SOURCE = "import threading, builtins\nblock = builtins.wherry_test_block\n"

    @pytest.fixture(autouse=True)
    def block(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        import builtins

        event = threading.Event()
        monkeypatch.setattr(builtins, "wherry_test_block", event, raising=False)
        yield event
        event.set()

    @pytest.mark.parametrize("step", ["import", "probe", "init"])
    def test_step(self, dists: Distributions, step: str) -> None:
        extra = self.SOURCE
        arguments = {}
        if step == "import":
            extra += "block.wait()"
        elif step == "probe":
            arguments["more"] = "probe=lambda c, x: block.wait()"
        else:
            arguments["init"] = "lambda c, x: block.wait()"
        dists.driver("snapshotter", "bad", extra=extra, **arguments)
        kernel = dists.kernel("[engine]\ndeadline = 0.2\n" + BAD)
        error = fails(kernel)
        assert isinstance(error, DeadlineExceeded)
        assert (
            str(error)
            == f"plugin snapshotter.bad (dist5 1.0): its {step} did not return within 0.2 s; its thread is given up"
        )
        (info,) = [info for info in kernel.plugins() if info.id == "bad"]
        assert (info.state, info.lost_threads) == ("failed", 1)
        assert fails(kernel) is error, "it is not tried again at once, with one more thread lost"


def test_what_a_plugin_changes_of_the_process_is_put_back(dists: Distributions) -> None:
    extra = "import os\nos.umask(0o777)\nos.chdir('/proc')\nos.environ['EVIL'] = '1'\nsys.stdout = None\nsys.setrecursionlimit(77777)"
    dists.driver("snapshotter", "bad", extra=extra)
    before = (umask(), os.getcwd(), sys_stdout(), sys_limit())
    dists.kernel(BAD).variant("bad")
    assert (umask(), os.getcwd(), sys_stdout(), sys_limit()) == before
    assert "EVIL" not in os.environ


def sys_stdout() -> Any:
    import sys

    return sys.stdout


def sys_limit() -> int:
    import sys

    return sys.getrecursionlimit()


class TestTable:
    def test_mistakes_name_file_table_key(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "bad")
        kernel = dists.kernel(BAD + "[plugin.snapshotter.bad]\nsize = '1'\nfast = 1\nnam = 'x'\ntable = {a = 'b'}\n")
        error = fails(kernel)
        assert isinstance(error, Invalid)
        assert [str(each) for each in error.problems] == [  # type: ignore[attr-defined]
            'config.toml:4: [plugin.snapshotter.bad] size: "1" is a string, expected an integer',
            "config.toml:5: [plugin.snapshotter.bad] fast: 1 is an integer, expected a boolean",
            'config.toml:7: [plugin.snapshotter.bad] table.a: "b" is a string, expected an integer',
            'config.toml:6: [plugin.snapshotter.bad] nam: unknown key "nam"; did you mean "name"?',
        ]

    def test_values_arrive(self, dists: Distributions) -> None:
        dists.driver(
            "snapshotter",
            "bad",
            init="init",
            extra="def init(c, x):\n    d = FakeSnapshotter(c, x)\n    d.cleanup = lambda: c.size\n    return d",
        )
        kernel = dists.kernel(BAD + "[plugin.snapshotter.bad]\nsize = 7\nratio = 1\nwords = ['a']\nprocess = false\n")
        assert kernel.variant("bad").snapshotter.cleanup() == 7

    def test_process_must_be_a_boolean(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "bad")
        error = fails(dists.kernel(BAD + "[plugin.snapshotter.bad]\nprocess = 1\n"))
        assert str(error) == "config.toml:4: [plugin.snapshotter.bad] process: 1 is not true or false"


class TestVariants:
    def test_a_list_takes_the_first_that_can(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "no", more="probe=lambda c, x: 'no overlay here'")
        kernel = dists.kernel('[variant.v]\nsnapshotter = ["no", "fake"]')
        drivers = kernel.variant("v")
        assert (drivers.name, drivers.ids) == (
            "v",
            {"store": "fake", "snapshotter": "fake", "isolation": "fake", "network": "fake"},
        )
        assert kernel.chosen()["v"]["snapshotter"] == "fake"
        assert kernel.passed_over() == {"standard": {}, "v": {"snapshotter": {"no": "no overlay here"}}}
        assert state(kernel, "no") == ("skipped", "no overlay here")

    def test_a_failed_one_is_passed_over_too(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "bad", more="api=9")
        kernel = dists.kernel('[variant.v]\nsnapshotter = ["bad", "fake"]')
        assert kernel.variant("v").ids["snapshotter"] == "fake"
        assert "API version 9" in kernel.passed_over()["v"]["snapshotter"]["bad"]

    def test_a_list_of_which_none_can(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "a", more="probe=lambda c, x: 'reason one'")
        dists.driver("snapshotter", "b", more="probe=lambda c, x: 1 / 0")
        kernel = dists.kernel('[variant.v]\nsnapshotter = ["a", "b", "nope"]')
        error = fails(kernel, "v")
        assert isinstance(error, Unavailable)
        assert str(error).splitlines() == [
            "variant v: no snapshotter of a, b, nope can run here:",
            "  a: reason one",
            "  b: plugin snapshotter.b (dist6 1.0): its probe raised ZeroDivisionError: division by zero",
            '  nope: snapshotter driver "nope": not installed; '
            + str(error).rpartition("installed; ")[2].splitlines()[0],
        ]
        assert kernel.chosen()["v"] == {"store": "fake", "isolation": "fake", "network": "fake"}
        assert kernel.passed_over()["v"]["snapshotter"]["a"] == "reason one"

    def test_a_plain_string_is_that_one_or_an_error(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "no", more="probe=lambda c, x: 'no overlay here'")
        error = fails(dists.kernel('[variant.v]\nsnapshotter = "no"'), "v")
        assert isinstance(error, Unavailable)
        assert str(error) == 'snapshotter driver "no": no overlay here; it can\'t run here'

    def test_extends_and_the_default_fill_in(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "other")
        dists.driver("network", "other")
        kernel = dists.kernel('[variant.a]\nsnapshotter = "other"\n[variant.b]\nextends = "a"\nnetwork = "other"')
        assert kernel.variant("b").ids == {
            "store": "fake",
            "snapshotter": "other",
            "isolation": "fake",
            "network": "other",
        }

    def test_overrides(self, dists: Distributions) -> None:
        dists.driver("snapshotter", "other")
        kernel = dists.kernel()
        assert kernel.variant("", snapshotter="other").ids["snapshotter"] == "other"
        assert kernel.variant("standard").ids["snapshotter"] == "fake"
        assert kernel.variant() is kernel.variant()
        with pytest.raises(NotFound, match='isolation driver "fak": not installed; did you mean "fake"'):
            kernel.variant(isolation="fak")

    def test_an_unknown_variant(self, dists: Distributions) -> None:
        with pytest.raises(NotFound, match=r'variant "standrad": not in the config; did you mean "standard"?'):
            dists.kernel().variant("standrad")

    def test_a_pairing_that_can_t_work_is_refused_before_init(self, dists: Distributions) -> None:
        dists.driver(
            "isolation",
            "vm",
            init="touch",
            extra="def touch(c, x): (x.root / 'touched').touch(); return FakeIsolation(c, x)",
            more="capabilities=lambda c, x: Capabilities(requires={'snapshotter': frozenset({'block', 'mounts'})})",
        )
        dists.driver(
            "snapshotter", "dirs", more="capabilities=lambda c, x: Capabilities(frozenset({'mounts', 'quota'}))"
        )
        dists.driver(
            "snapshotter", "disk", more="capabilities=lambda c, x: Capabilities(frozenset({'mounts', 'block'}))"
        )
        kernel = dists.kernel('[variant.v]\nisolation = "vm"\nsnapshotter = "dirs"')
        error = fails(kernel, "v")
        assert isinstance(error, Invalid)
        assert str(error) == (
            'variant v: isolation "vm" needs "block" of the snapshotter, "dirs" provides "mounts", "quota"; '
            "choose another isolation or another snapshotter"
        )
        assert not (dists.directory / "root/isolation/vm").exists()
        assert kernel.variant("v", snapshotter="disk").ids["snapshotter"] == "disk"
        assert (dists.directory / "root/isolation/vm/touched").exists()

    def test_drivers_are_shared(self, dists: Distributions) -> None:
        kernel = dists.kernel('[variant.v]\nextends = "standard"')
        assert kernel.variant("v").store._driver is kernel.variant().store._driver  # type: ignore[attr-defined]

    def test_directories(self, dists: Distributions) -> None:
        dists.kernel().variant()
        for place in ("root", "run"):
            assert (dists.directory / place / "store" / "fake").stat().st_mode & 0o7777 == 0o700


def test_only_modules_of_the_family_are_imported(dists: Distributions) -> None:
    import sys

    dists.add({"volume.v": "volume_module", "adjust.a": "adjust_module"}, {"volume_module": "", "adjust_module": ""})
    dists.kernel().variant()
    assert not {"volume_module", "adjust_module"} & set(sys.modules)


def test_which_can_run_and_which_were_used(dists: Distributions) -> None:
    dists.driver("snapshotter", "absent", more="probe=lambda c, x: 'no such kernel'")
    dists.driver("snapshotter", "idle")
    kernel = dists.kernel()

    def usable(*, used: bool) -> set[str]:
        return {"absent", "fake", "idle"} & set(
            kernel.usable("snapshotter", used=used)
        )  # and what is installed for real

    assert kernel.at_work("snapshotter") == ()
    assert usable(used=False) == {"fake", "idle"}
    assert usable(used=True) == set()
    kernel.driver("snapshotter", "fake").usage("x")
    (kernel.root / "snapshotter" / "absent").mkdir(parents=True)
    assert kernel.at_work("snapshotter") == ("fake",)
    assert usable(used=True) == {"fake"}
    (kernel.root / "snapshotter" / "idle").mkdir()
    assert usable(used=True) == {"fake", "idle"}
    assert kernel.at_work("snapshotter") == ("fake",)
