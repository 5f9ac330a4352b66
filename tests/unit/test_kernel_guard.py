"""The guard: whatever a driver does, the caller gets an answer or one typed error that names the plugin."""

from __future__ import annotations

import builtins
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.distributions import Distributions, distributions, eventually  # noqa: F401
from wherry.api import DeadlineExceeded, Exit, InUse, NotFound, PluginFault, SnapshotInfo, Unavailable
from wherry.kernel import Kernel, calls
from wherry.kernel.breaker import CircuitBreaker
from wherry.kernel.calls import Pool
from wherry.kernel.guard import Guarded

TEXT = "[engine]\ndeadline = {deadline}\n[variant.bad]\n{family} = 'bad'\n"
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the driver of the test shall do, by method name."""
    table: dict[str, Any] = {}
    monkeypatch.setattr(builtins, "wherry_test_hooks", table, raising=False)
    return table


Make = Callable[..., Kernel]


@pytest.fixture
def make(distributions: Distributions, hooks: dict[str, Any]) -> Make:  # noqa: F811
    """A kernel whose drivers "bad" of one family do what hooks says and are fakes otherwise."""

    def make(family: str = "snapshotter", deadline: float = 5.0, **more: str) -> Kernel:
        distributions.standard()
        extra = f"""
import builtins
class Bad(Fake{family.capitalize()}):
    def __getattribute__(self, name):
        return builtins.wherry_test_hooks.get(name) or object.__getattribute__(self, name)
"""
        distributions.driver(family, "bad", init="Bad", extra=extra, **more)
        return distributions.kernel(TEXT.format(deadline=deadline, family=family))

    return make


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad number"), "raised ValueError: bad number"),
        (KeyError("k"), "raised KeyError: 'k'"),
        (SystemExit(3), "raised SystemExit: 3"),
        (KeyboardInterrupt(), "raised KeyboardInterrupt"),
        (GeneratorExit(), "raised GeneratorExit"),
        (StopIteration(), "raised StopIteration"),
        (RecursionError("deep"), "raised RecursionError: deep"),
        (MemoryError(), "raised MemoryError"),
        (BaseExceptionGroup("two", [SystemExit(1), ValueError()]), "raised BaseExceptionGroup: two (2 sub-exceptions)"),
        (AssertionError("two\nlines"), "raised AssertionError: two lines"),
    ],
)
def test_foreign_exceptions_are_faults(make: Make, hooks: dict[str, Any], error: BaseException, text: str) -> None:
    snapshotter = make().variant("bad").snapshotter
    hooks["stat"] = raising(error)
    with pytest.raises(PluginFault) as caught:
        snapshotter.stat("x")
    assert str(caught.value) == f"snapshotter.bad: stat: {text}; the plugin is at fault"
    assert caught.value.plugin == "snapshotter.bad"
    assert caught.value.__cause__ is error
    assert snapshotter.usage("x") == (1, 2)


def test_errors_pass_with_their_plugin(make: Make, hooks: dict[str, Any]) -> None:
    snapshotter = make().variant("bad").snapshotter
    with pytest.raises(NotFound, match='snapshot "x": no such snapshot') as caught:
        snapshotter.stat("x")
    assert caught.value.plugin == "snapshotter.bad"
    mine = InUse("a", "b", "c", plugin="elsewhere.x")
    hooks["stat"] = raising(mine)
    with pytest.raises(InUse) as again:
        snapshotter.stat("x")
    assert again.value is mine
    assert mine.plugin == "elsewhere.x"
    hooks["stat"] = raising(FileNotFoundError(2, "gone", "/x"))
    with pytest.raises(FileNotFoundError) as third:
        snapshotter.stat("x")
    assert third.value.plugin == "snapshotter.bad"  # type: ignore[attr-defined]


class Impostor:
    """Says it is a tuple and is none."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("do not look")


@pytest.mark.parametrize(
    ("method", "value", "text"),
    [
        ("usage", None, "returned NoneType, not tuple[int, int]"),
        ("usage", [1, 2], "returned list, not tuple[int, int]"),
        ("usage", (1,), "returned a tuple of 1, not of 2"),
        ("usage", (1, "2"), "returned item 1: str, not int"),
        ("usage", (1, True), "returned item 1: bool, not int"),
        ("mounts", "abc", "returned str, not tuple[Mount, ...]"),
        ("mounts", ("abc",), "returned item 0: str, not Mount"),
        ("mounts", (1,) * (2**20 + 1), "returned a tuple of 1048577, more than 1048576"),
        ("cleanup", "0", "returned str, not int"),
        ("cleanup", 0.5, "returned float, not int"),
        ("remove", 0, "returned int, not None"),
        ("stat", {"kind": "active"}, "returned dict, not SnapshotInfo"),
        (
            "stat",
            SnapshotInfo("weird", "n", "", {}, 1, 1),
            "returned SnapshotInfo.kind: 'weird' is none of ('active', 'view', 'committed')",
        ),  # type: ignore[arg-type]
        ("stat", SnapshotInfo("active", "n", "", {"a": 1}, 1, 1), "returned SnapshotInfo.labels: 'a': int, not str"),  # type: ignore[dict-item]
        (
            "stat",
            SnapshotInfo("active", "n" * (2**26 + 1), "", {}, 1, 1),
            "returned SnapshotInfo.name: 67108865 characters, more than 67108864",
        ),
        ("walk", [1], "returned list, not Iterator[SnapshotInfo]"),
        ("walk", None, "returned NoneType, not Iterator[SnapshotInfo]"),
    ],
)
def test_wrong_answers_are_faults(make: Make, hooks: dict[str, Any], method: str, value: Any, text: str) -> None:
    snapshotter = make().variant("bad").snapshotter
    hooks[method] = lambda *_: value
    with pytest.raises(PluginFault) as caught:
        getattr(snapshotter, method)(*[] if method in {"walk", "cleanup"} else ["x"])
    assert str(caught.value) == f"snapshotter.bad: {method}: {text}"
    assert caught.value.plugin == "snapshotter.bad"


def test_an_answer_that_lies_about_itself(make: Make, hooks: dict[str, Any]) -> None:
    snapshotter = make().variant("bad").snapshotter
    hooks["mounts"] = lambda _: Impostor()
    with pytest.raises(PluginFault, match=r"snapshotter.bad: mounts: "):
        snapshotter.mounts("x")


def test_a_subclass_or_an_int_enum_is_fine(make: Make, hooks: dict[str, Any]) -> None:
    import signal

    class Named(str):
        pass

    snapshotter = make().variant("bad").snapshotter
    hooks["cleanup"] = lambda: signal.SIGINT
    hooks["stat"] = lambda _: SnapshotInfo("active", Named("n"), "", {}, 1, 1)
    assert snapshotter.cleanup() == 2
    assert snapshotter.stat("x").name == "n"


class TestHang:
    def test_the_call_is_given_up(self, make: Make, hooks: dict[str, Any]) -> None:
        kernel = make(deadline=0.1)
        snapshotter, block = kernel.variant("bad").snapshotter, threading.Event()
        hooks["update"] = lambda *_: block.wait()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            snapshotter.update("x", {})
        assert time.monotonic() - began < 3
        assert str(caught.value) == (
            "snapshotter.bad: update: did not return within 0.1 s; its thread is given up; [engine] deadline sets the limit"
        )
        assert caught.value.plugin == "snapshotter.bad"
        (info,) = [info for info in kernel.plugins() if info.id == "bad"]
        assert (info.state, info.lost_threads) == ("failed", 1)
        assert info.reason == 'its call "update" did not return within 0.1 s'
        with pytest.raises(Unavailable) as refused:
            snapshotter.cleanup()
        assert str(refused.value).startswith(
            'snapshotter.bad: cleanup: its call "update" did not return within 0.1 s; tried again in '
        )
        assert kernel.variant().snapshotter.cleanup() == 0, "the others are not touched"
        block.set()
        eventually(lambda: not next(info.lost_threads for info in kernel.plugins() if info.id == "bad"))

    def test_a_trial_call_closes_the_breaker(self, make: Make, hooks: dict[str, Any]) -> None:
        kernel = make(deadline=0.1)
        snapshotter, block = kernel.variant("bad").snapshotter, threading.Event()
        hooks["update"] = lambda *_: block.wait()
        with pytest.raises(DeadlineExceeded):
            snapshotter.update("x", {})
        kernel._driver("snapshotter", "bad").health._retry_at = 0
        assert snapshotter.cleanup() == 0
        assert snapshotter.usage("x") == (1, 2)
        assert [info.state for info in kernel.plugins() if info.id == "bad"] == ["ready"]
        block.set()

    def test_without_the_deadline_the_caller_would_hang(self, hooks: dict[str, Any]) -> None:
        """The twin: the same call without a timeout is still waiting long after the deadline."""
        block, pool = threading.Event(), Pool()
        caller = threading.Thread(target=lambda: pool.run(block.wait, (5,)), daemon=True)
        caller.start()
        caller.join(0.4)
        assert caller.is_alive()
        block.set()
        caller.join(5)
        pool.close()

    def test_an_iterator_that_hangs(self, make: Make, hooks: dict[str, Any]) -> None:
        block = threading.Event()

        def walk() -> Iterator[SnapshotInfo]:
            yield SnapshotInfo("active", "one", "", {}, 1, 1)
            block.wait()

        snapshotter = make(deadline=0.1).variant("bad").snapshotter
        hooks["walk"] = walk
        items = snapshotter.walk()
        with pytest.raises(DeadlineExceeded, match=r"snapshotter.bad: walk: did not return within 0.1 s"):
            list(items)
        block.set()

    def test_wait_has_its_own_time(self, make: Make, hooks: dict[str, Any]) -> None:
        isolation = make("isolation", deadline=0.2).variant("bad").isolation

        def wait(id: str, exec_id: str = "", timeout: float | None = None) -> Exit:
            time.sleep(0.4)
            return Exit(0, 1)

        hooks["wait"] = wait
        assert isolation.wait("x", "", 0.5) == Exit(0, 1)
        assert isolation.wait("x") == Exit(0, 1)
        with pytest.raises(DeadlineExceeded):
            isolation.wait("x", timeout=0.05)

    def test_checkpoint(self, make: Make, hooks: dict[str, Any]) -> None:
        kernel = make(deadline=0.1)
        snapshotter = kernel.variant("bad").snapshotter
        context = kernel._driver("snapshotter", "bad")._driver.context
        ended = threading.Event()

        def update(*_: Any) -> None:
            try:
                while True:
                    context.checkpoint()
                    time.sleep(0.01)
            finally:
                ended.set()

        hooks["update"] = update
        with pytest.raises(DeadlineExceeded):
            snapshotter.update("x", {})
        assert ended.wait(5), "the thread came back by itself"


def test_many_at_once_are_bounded(make: Make, hooks: dict[str, Any]) -> None:
    kernel = make(deadline=0.3)
    snapshotter, running, most, lock = kernel.variant("bad").snapshotter, [0], [0], threading.Lock()

    def usage(_: str) -> tuple[int, int]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return (1, 1)

    hooks["usage"] = usage
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(snapshotter.usage("x"))) for _ in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(1, 1)] * 150
    assert most[0] <= 64


def test_context_variables_reach_the_driver(make: Make, hooks: dict[str, Any]) -> None:
    snapshotter = make().variant("bad").snapshotter
    seen = []
    hooks["cleanup"] = lambda: seen.append((VARIABLE.get(), threading.current_thread().name)) or 0
    VARIABLE.set("from the caller")
    snapshotter.cleanup()
    assert seen[0][0] == "from the caller"
    assert seen[0][1].startswith("wherry-call-")
    VARIABLE.set("unset")


def test_a_driver_that_calls_a_driver_stays_on_its_thread(make: Make, hooks: dict[str, Any]) -> None:
    kernel = make()
    outer, inner, threads = kernel.variant("bad").snapshotter, kernel.variant("bad").store, []
    hooks["cleanup"] = lambda: threads.append(threading.get_ident()) or int(inner.info("x").size)  # type: ignore[arg-type]
    assert outer.cleanup() == 1
    with pytest.raises(NotFound) as caught:
        hooks["cleanup"] = lambda: inner.resolve("x")
        outer.cleanup()
    assert caught.value.plugin == "store.fake"


def test_iterators(make: Make, hooks: dict[str, Any]) -> None:
    snapshotter = make().variant("bad").snapshotter
    assert [info.name for info in snapshotter.walk()] == [f"s{index}" for index in range(150)]
    closed = []

    def walk() -> Iterator[Any]:
        try:
            yield SnapshotInfo("active", "one", "", {}, 1, 1)
            yield "two"
        finally:
            closed.append(True)

    hooks["walk"] = walk
    items = snapshotter.walk()
    assert next(items).name == "one"
    with pytest.raises(PluginFault, match=r"snapshotter.bad: walk: yielded str, not SnapshotInfo"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)

    def broken() -> Iterator[Any]:
        yield SnapshotInfo("active", "one", "", {}, 1, 1)
        raise SystemExit(3)

    hooks["walk"] = broken
    items = snapshotter.walk()
    assert next(items).name == "one"
    with pytest.raises(PluginFault, match=r"snapshotter.bad: walk: raised SystemExit: 3"):
        next(items)
    hooks["walk"] = walk
    closed.clear()
    items = snapshotter.walk()
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_objects_and_streams_are_guarded(make: Make, hooks: dict[str, Any], tmp_path: Path) -> None:
    store = make("store").variant("bad").store
    ingest = store.ingest("r")
    assert isinstance(ingest, Guarded)
    assert (ingest.write(b"abc"), ingest.offset, ingest.ref) == (3, 3, "r")

    class Bad:
        ref, offset = "r", "nought"

        def write(self, _: bytes) -> Any:
            return None

        reader = commit = truncate = close = raising(SystemExit(1))

    hooks["ingest"] = lambda *_: Bad()
    bad = store.ingest("r")
    with pytest.raises(PluginFault, match=r"store.bad: write: returned NoneType, not int"):
        bad.write(b"")
    with pytest.raises(PluginFault, match=r"store.bad: offset: is str, not int"):
        _ = bad.offset
    with pytest.raises(PluginFault, match=r"store.bad: close: raised SystemExit"):
        bad.close()
    hooks["ingest"] = lambda *_: object()
    with pytest.raises(
        PluginFault, match="ingest: returned object without write, reader, truncate, commit, close: not Ingest"
    ):
        store.ingest("r")

    class Stream:
        def read(self, _: int = -1) -> Any:
            raise ZeroDivisionError("no")

        def close(self) -> None:
            pass

    hooks["open"] = lambda _: Stream()
    with store.open("x") as stream, pytest.raises(PluginFault, match=r"store.bad: read: raised ZeroDivisionError: no"):  # type: ignore[arg-type]
        stream.read()
    (tmp_path / "f").write_bytes(b"data")
    hooks["open"] = lambda _: (tmp_path / "f").open("rb")
    with store.open("x") as stream:  # type: ignore[arg-type]
        assert type(stream).__name__ == "BufferedReader"
        assert stream.read() == b"data"


def test_optional_methods(make: Make) -> None:
    snapshotter = make().variant("bad").snapshotter
    with pytest.raises(PluginFault, match=r"snapshotter.bad: apply: the driver has no such method"):
        snapshotter.apply("k", None, None)  # type: ignore[arg-type]


def test_holding(make: Make) -> None:
    kernel = make()
    held: list[str] = []
    kernel.variant().snapshotter.commit("a", "k", {})
    with kernel.holding(held.append):
        kernel.variant().snapshotter.commit("b", "k", {})
    kernel.variant().snapshotter.commit("c", "k", {})
    assert held == ["snapshot/fake/b"]


def test_the_variant_of_the_call(make: Make, hooks: dict[str, Any]) -> None:
    kernel = make()
    context = kernel._driver("store", "fake").get().context
    seen: list[str] = []
    hooks["cleanup"] = lambda: seen.append(kernel._driver("snapshotter", "bad")._driver.context.variant) or 0
    kernel.variant("bad").snapshotter.cleanup()
    kernel.driver("snapshotter", "bad").cleanup()
    assert seen == ["bad", "standard"]
    assert context.variant == "standard"
    assert context.id == "store.fake"


def test_threads_end_with_the_kernel(make: Make) -> None:
    kernel = make()
    kernel.variant().snapshotter.cleanup()
    assert any(thread.name.startswith("wherry-call-") for thread in threading.enumerate())
    kernel.close()
    eventually(lambda: not any(thread.name.startswith("wherry-call-") for thread in threading.enumerate()))


class TestHealth:
    def test_backoff(self) -> None:
        now = [100.0]
        health = CircuitBreaker("x.y", clock=lambda: now[0])
        waits = []
        for _ in range(9):
            health.enter("m", 1)
            health.lost("hung")
            with pytest.raises(Unavailable):
                health.enter("m", 1)
            waits.append(health._retry_at - now[0])
            now[0] = health._retry_at
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert health.enter("m", 1) is True
        with pytest.raises(Unavailable, match=r"x.y: m: hung; a trial call is running"):
            health.enter("m", 1)
        health.leave(trial=True)
        health.enter("m", 1)
        health.leave()
        assert (health.open, health.lost_threads) == (False, 9)

    def test_a_full_driver(self) -> None:
        health = CircuitBreaker("x.y", limit=1)
        health.enter("m", 0.05)
        with pytest.raises(Unavailable, match=r"x.y: m: 1 calls run already and none ended within 0.05 s"):
            health.enter("m", 0.05)
        health.leave()
        health.enter("m", 0.05)


def test_nothing_is_collected_by_default(make: Make) -> None:
    kernel = make()
    kernel.variant().snapshotter.cleanup()
    assert kernel.spans("k") == ()
    assert calls.CURRENT.get() is None
    assert os.getpid()
