"""Decorators: order, what may come out of them, and the two bundled ones."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from support.distributions import Distributions, distributions  # noqa: F401
from wherry import api
from wherry.api import DeadlineExceeded, Error, Invalid, NotFound, PluginFault, Span, Unavailable, trace_events
from wherry.interfaces.tracing import SpanCollector, collecting, span
from wherry_plugins.decorate import inject
from wherry_plugins.decorate.trace import short

DECORATOR = """
from wherry.api import hookimpl
class Wrapped:
    def __init__(self, driver, name): self.driver, self.name = driver, name
    def __getattr__(self, name): return getattr(self.driver, name)
    def usage(self, key): return self.driver.usage(key + ">" + self.name)
    def cleanup(self): raise ValueError(self.name)
@hookimpl
def wherry_decorate(kind, id, driver, config):
    {body}
"""


@pytest.fixture
def dists(distributions: Distributions) -> Distributions:  # noqa: F811
    distributions.standard()
    extra = """
class Telling(FakeSnapshotter):
    def usage(self, key): raise NotFound(key, 'told')
    def remove(self, name): raise KeyError(name)
"""
    distributions.driver("snapshotter", "telling", init="Telling", extra=extra)
    return distributions


def decorator(dists: Distributions, id: str, body: str = "") -> None:
    body = body or f"return Wrapped(driver, '{id}') if kind == 'snapshotter' else driver"
    dists.add({f"decorate.{id}": f"deco_{id}"}, {f"deco_{id}": DECORATOR.format(body=body)})


class TestOrder:
    def test_the_first_is_the_outermost(self, dists: Distributions) -> None:
        decorator(dists, "one")
        decorator(dists, "two")
        kernel = dists.kernel('[variant.v]\nsnapshotter = "telling"\ndecorate = ["one", "two"]')
        with pytest.raises(NotFound, match=r"^k>one>two: told$") as caught:
            kernel.variant("v").snapshotter.usage("k")
        assert caught.value.plugin == "snapshotter.telling"

    def test_who_is_to_blame(self, dists: Distributions) -> None:
        decorator(dists, "one")
        decorator(dists, "two")
        kernel = dists.kernel('[variant.v]\nsnapshotter = "telling"\ndecorate = ["one", "two"]')
        with pytest.raises(PluginFault, match=r"decorate.one: cleanup: raised ValueError: one") as caught:
            kernel.variant("v").snapshotter.cleanup()
        assert caught.value.plugin == "decorate.one"
        with pytest.raises(PluginFault, match=r"snapshotter.telling: remove: raised KeyError: 'x'"):
            kernel.variant("v").snapshotter.remove("x")

    def test_it_is_inherited_or_replaced(self, dists: Distributions) -> None:
        decorator(dists, "one")
        text = (
            '[variant.a]\ndecorate = ["one"]\n[variant.b]\nextends = "a"\n[variant.c]\nextends = "a"\ndecorate = []\n'
        )
        kernel = dists.kernel(text)
        for name, decorated in (("a", True), ("b", True), ("c", False), ("standard", False)):
            driver = kernel.variant(name).snapshotter._driver  # type: ignore[attr-defined]
            assert (type(driver).__name__ == "Wrapped") is decorated
        assert type(kernel.variant("a").store._driver).__name__ == "FakeStore"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return None", "plugin decorate.bad: wherry_decorate returned None for "),
        ("return 5", "plugin decorate.bad: wherry_decorate returned int without "),
        ("1 / 0", "plugin decorate.bad: its hook raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(1)", "plugin decorate.bad: its hook raised SystemExit: 1"),
        ("import time; time.sleep(2)", "plugin decorate.bad: its hook did not return within 0.2 s"),
    ],
)
def test_one_that_fails(dists: Distributions, body: str, text: str) -> None:
    decorator(dists, "bad", body)
    kernel = dists.kernel('[engine]\ndeadline = 0.2\n[variant.v]\ndecorate = ["bad"]')
    with pytest.raises(Error) as caught:
        kernel.variant("v")
    assert str(caught.value).startswith(text)
    assert caught.value.plugin == "decorate.bad"
    assert kernel.variant().snapshotter.usage("x") == (1, 2)


def test_an_unknown_one(dists: Distributions) -> None:
    with pytest.raises(NotFound, match='decorate plugin "trance": not installed; did you mean "trace"'):
        dists.kernel('[variant.v]\ndecorate = ["trance"]').variant("v")


class TestSpans:
    def test_of_the_kernel(self, dists: Distributions) -> None:
        kernel = dists.kernel('[variant.v]\nsnapshotter = "telling"')
        with kernel.tracing("k"), span("run", container="c"):
            kernel.variant("v").snapshotter.prepare("a", "")
            with pytest.raises(NotFound):
                kernel.variant("v").snapshotter.usage("a")
        kernel.variant("v").snapshotter.prepare("b", "")
        first, second, run = kernel.spans("k")
        assert (first.name, first.plugin, first.parent, first.attributes) == (
            "snapshotter.prepare",
            "snapshotter.telling",
            run.id,
            {"variant": "v"},
        )
        assert (second.name, second.error) == ("snapshotter.usage", "NotFound: a: told")
        assert (run.name, run.plugin, run.parent, run.attributes) == ("run", "", 0, {"container": "c"})
        assert run.start <= first.start
        assert first.duration <= run.duration
        with kernel.tracing("k"):
            kernel.variant("v").snapshotter.prepare("c", "")
        assert len(kernel.spans("k")) == 4
        kernel.drop_spans("k")
        assert kernel.spans("k") == ()

    def test_of_a_driver_on_its_thread(self, dists: Distributions) -> None:
        extra = "class Own(FakeSnapshotter):\n    def cleanup(self):\n        with self.context.span('step', size=1): return 0"
        dists.driver("snapshotter", "own", init="Own", extra=extra)
        kernel = dists.kernel('[variant.v]\nsnapshotter = "own"')
        with kernel.tracing("k"):
            kernel.variant("v").snapshotter.cleanup()
        step, call = kernel.spans("k")
        assert (step.name, step.plugin, step.parent, step.attributes) == (
            "step",
            "snapshotter.own",
            call.id,
            {"size": 1},
        )
        assert step.thread != call.thread

    def test_a_collector_is_bounded(self) -> None:
        collector = SpanCollector(2)
        with collecting(collector):
            for _ in range(5):
                with span("x"):
                    pass
        assert (len(collector.spans), collector.dropped) == (2, 3)

    def test_trace_events(self) -> None:
        spans = [
            Span(
                "b",
                "snapshotter.vfs",
                2_000_500,
                1_500,
                7,
                2,
                1,
                {"a": 1, "b": object(), "c": [(1, "x")]},
                "NotFound: x",
            ),
            Span("a", "", 1_000_000, 9_000_000, 8, 1, 0),
        ]
        events = trace_events(spans, pid=99)
        events = json.loads(json.dumps(events))
        metadata = [event for event in events["traceEvents"] if event["ph"] == "M"]
        assert [(event["name"], event["pid"], event["tid"]) for event in metadata] == [
            ("process_name", 99, 0),
            ("thread_name", 99, 7),
            ("thread_name", 99, 8),
        ]
        first, second = [event for event in events["traceEvents"] if event["ph"] == "X"]
        assert (first["name"], first["cat"], first["ts"], first["dur"], first["tid"]) == ("a", "kernel", 1000, 9000, 8)
        assert (second["cat"], second["ts"], second["dur"]) == ("snapshotter", 2000.5, 1.5)
        assert second["args"]["error"] == "NotFound: x"
        assert second["args"]["c"] == [[1, "x"]]
        assert second["args"]["parent"] == 1


class TestTrace:
    TEXT = '[variant.v]\nsnapshotter = "{}"\ndecorate = ["trace"]\n'

    def test_arguments_and_results(self, dists: Distributions) -> None:
        drivers = dists.kernel(self.TEXT.format("telling")).variant("v")
        collector = SpanCollector()
        with collecting(collector):
            drivers.snapshotter.prepare("a", parent="p" * 200)
            with pytest.raises(NotFound):
                drivers.snapshotter.usage("a")
            ingest = drivers.store.ingest("r")
            ingest.write(b"x" * 50)
            assert len(list(drivers.snapshotter.walk())) == 150
        by_name = {each.name: each for each in collector.spans}
        inside, outside = by_name["telling.prepare"], by_name["snapshotter.prepare"]
        assert inside.parent == outside.id
        assert inside.plugin == "snapshotter.telling"
        assert inside.attributes["layer"] == "decorate.trace"
        assert inside.attributes["arguments"] == {"0": "'a'", "parent": "'" + "p" * 116 + "..."}
        assert inside.attributes["result"].startswith("(Mount(type='bind'")
        assert by_name["telling.usage"].error == "NotFound: a: told"
        assert by_name["fake.ingest.write"].attributes["arguments"] == {"0": "<50 bytes>"}
        assert by_name["telling.walk items"].attributes["items"] == 150
        json.dumps(trace_events(collector.spans))

    def test_options(self, dists: Distributions) -> None:
        text = self.TEXT.format("telling") + "[plugin.decorate.trace]\nlimit = 10\nresults = false"
        snapshotter, collector = dists.kernel(text).variant("v").snapshotter, SpanCollector()
        with collecting(collector):
            snapshotter.prepare("a", "p" * 50)
        assert collector.spans[0].attributes == {
            "layer": "decorate.trace",
            "arguments": {"0": "'a'", "1": "'pppppp..."},
        }
        with pytest.raises(Invalid, match=r"\[plugin.decorate.trace\] limit: \"10\" is a string, expected an integer"):
            dists.kernel(self.TEXT.format("telling") + '[plugin.decorate.trace]\nlimit = "10"').variant("v")

    def test_nesting_with_another(self, dists: Distributions) -> None:
        rules = '[[plugin.decorate.inject.rules]]\ncall = "snapshotter.cleanup"\naction = "error"\n'
        for order, count in ((["trace", "inject"], 2), (["inject", "trace"], 1)):
            kernel = dists.kernel(f'[variant.v]\nsnapshotter = "telling"\ndecorate = {order}\n{rules}')
            collector = SpanCollector()
            with collecting(collector), pytest.raises(Unavailable):
                kernel.variant("v").snapshotter.cleanup()
            assert len(collector.spans) == count

    def test_short(self) -> None:
        class Bad:
            def __repr__(self) -> str:
                raise ValueError

        assert short(Bad(), 100) == "<Bad: repr raised ValueError>"
        assert short(b"abc", 3) == "<3 bytes>"
        assert short("abc", 100) == "'abc'"


class TestInject:
    def snapshotter(self, dists: Distributions, rules: str, more: str = "") -> Any:
        text = f'[engine]\ndeadline = 0.3\n[variant.v]\ndecorate = ["inject"]\n[plugin.decorate.inject]\n{more}\nrules = [{rules}]\n'
        return dists.kernel(text).variant("v").snapshotter

    def test_errors(self, dists: Distributions) -> None:
        snapshotter = self.snapshotter(
            dists, '{call = "snapshotter.usage", action = "error", error = "NotFound", text = "away"}'
        )
        with pytest.raises(NotFound) as caught:
            snapshotter.usage("x")
        assert str(caught.value) == "snapshotter.fake: usage: away; a rule of [plugin.decorate.inject] says so"
        assert snapshotter.cleanup() == 0
        snapshotter = self.snapshotter(
            dists, '{call = "*.usage", action = "error", error = "OSError", errno = "ENOSPC"}'
        )
        with pytest.raises(OSError, match="injected") as full:
            snapshotter.usage("x")
        assert full.value.errno == errno.ENOSPC
        snapshotter = self.snapshotter(dists, '{call = "snapshotter.*", action = "error", error = "SystemExit"}')
        with pytest.raises(PluginFault, match="raised SystemExit: injected"):
            snapshotter.cleanup()

    def test_nth_count_driver_after(self, dists: Distributions) -> None:
        def fate(rule: str, calls: int = 5) -> str:
            snapshotter = self.snapshotter(dists, f'{{call = "snapshotter.usage", action = "error", {rule}}}')
            result = ""
            for _ in range(calls):
                try:
                    snapshotter.usage("x")
                    result += "."
                except Unavailable:
                    result += "x"
            return result

        assert fate("nth = 3") == "..x.."
        assert fate("count = 2") == "xx..."
        assert fate('driver = "other"') == "....."
        assert fate('driver = "fake"') == "xxxxx"
        assert fate("after = true, nth = 1") == "x...."
        some = fate("probability = 0.5", 40)
        assert 5 < some.count("x") < 35
        assert some == fate("probability = 0.5", 40), "the same seed, the same fate"

    def test_delay_and_hang(self, dists: Distributions) -> None:
        snapshotter = self.snapshotter(dists, '{call = "snapshotter.usage", action = "delay", seconds = 0.01}')
        assert snapshotter.usage("x") == (1, 2)
        snapshotter = self.snapshotter(dists, '{call = "snapshotter.update", action = "hang", seconds = 1}')
        with pytest.raises(DeadlineExceeded):
            snapshotter.update("x", {})

    def test_hangs_can_be_released(self, dists: Distributions) -> None:
        snapshotter = self.snapshotter(dists, '{call = "snapshotter.usage", action = "hang"}')
        inject.release()
        try:
            assert snapshotter.usage("x") == (1, 2)
        finally:
            inject._released.clear()

    def test_ingests(self, dists: Distributions) -> None:
        text = '[variant.v]\ndecorate = ["inject"]\n[[plugin.decorate.inject.rules]]\ncall = "ingest.write"\naction = "error"\nnth = 2'
        ingest = dists.kernel(text).variant("v").store.ingest("r")
        assert ingest.write(b"ab") == 2
        with pytest.raises(Unavailable):
            ingest.write(b"ab")
        assert ingest.offset == 2

    @pytest.mark.parametrize(
        ("rule", "text"),
        [
            ('call = "usage", action = "error"', 'rules[0]: call "usage" is not named <kind>.<method>'),
            ('call = "snapshoter.usage", action = "error"', 'no kind "snapshoter"; did you mean "snapshotter"?'),
            ('call = "snapshotter.usag", action = "error"', 'no method "usag"; did you mean "usage"?'),
            (
                'call = "snapshotter.usage", action = "eror"',
                'rules[0].action: "eror" is not one of "delay", "error", "hang"',
            ),
            (
                'call = "snapshotter.usage", action = "error", error = "Notfound"',
                'no error class "Notfound"; did you mean "NotFound"?',
            ),
            (
                'call = "snapshotter.usage", action = "error", errno = "ENOSPACE"',
                'no errno "ENOSPACE"; did you mean "ENOSPC"?',
            ),
            ('call = "snapshotter.usage", action = "error", probability = 2', "probability 2 is not between 0 and 1"),
            ('call = "snapshotter.usage", action = "delay", seconds = -1', "seconds -1 is negative"),
            (
                'call = "snapshotter.usage", action = "delay", second = 1',
                'unknown key "second"; did you mean "seconds"?',
            ),
            ('action = "delay"', 'rules[0].call: the key "call" is missing'),
        ],
    )
    def test_bad_rules(self, dists: Distributions, rule: str, text: str) -> None:
        with pytest.raises(Invalid) as caught:
            self.snapshotter(dists, f"{{{rule}}}")
        assert text in str(caught.value)
        assert str(caught.value).startswith("config.toml:7: [plugin.decorate.inject] rules[0]")


def test_the_helpers_are_part_of_the_contract() -> None:
    assert {"span", "trace_events"} <= set(api.__all__)
