"""``process = true``: the same driver behind the same Protocol, in a process whose end, hang or mess stays its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.distributions import Distributions, distributions, eventually  # noqa: F401
from wherry.api import (
    DeadlineExceeded,
    Event,
    Invalid,
    LogSink,
    Mount,
    NotFound,
    Plan,
    PluginFault,
    Stdio,
    TaskState,
    Unavailable,
)
from wherry.kernel import Kernel
from wherry.kernel.supervisor import RemoteBackend
from wherry.rpc.codec import SentStep

EXTRA = """
import os, time, threading, signal
class Own(FakeSnapshotter):
    def stat(self, name):
        if name == 'exit': os._exit(7)
        if name == 'kill': os.kill(os.getpid(), 9)
        if name == 'raise': raise ZeroDivisionError('zero')
        if name == 'system': raise SystemExit(4)
        if name == 'os': raise FileNotFoundError(2, 'gone', '/x')
        if name == 'hang': time.sleep(60)
        if name == 'close':
            for fd in range(3, 100):
                try: os.close(fd)
                except OSError: pass
        if name == 'none': return None
        if name == 'chdir': os.chdir('/proc'); os.umask(0o77); os.environ['EVIL'] = '1'
        if name == 'gil':
            re = __import__('re'); re.match('(a+)+$', 'a' * 32 + 'b')
        return SnapshotInfo("active", name, self.context.variant, {"pid": str(os.getpid())}, 1, 1)
    def update(self, name, labels):
        self.context.checkpoint()
        self.context.hold('snapshot/own/' + name)
        self.context.publish(Event('snapshot.updated', name, 1, dict(labels)))
        with self.context.span('inside', size=3):
            pass
        return super().update(name, labels)
    def mounts(self, key):
        state = self.context.shim.spawn(key, '', Plan(argv=('a',), steps=(Step1(),), fds=(1,)), Stdio(stdout=1, log=LogSink('none')))
        return (Mount('bind', state.status + ':' + str(state.pid)),)
    def cleanup(self):
        fd = self.context.shim.namespace('s', 'net')
        try: return os.fstat(fd).st_ino
        finally: os.close(fd)
    def usage(self, name):
        raise NotFound(name, 'cause', 'hint')
class Step1:
    def describe(self): return 'a step'
    def encode(self): return ('step', 1, 'x')
def probe(c, x): return 'no ' + c.name if c.name == 'luck' else None
"""
TEXT = "[engine]\ndeadline = {deadline}\n[variant.own]\nsnapshotter = 'own'\n[plugin.snapshotter.own]\nprocess = true\n{more}"


class FakeShim:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.spawned: list[tuple[str, str, Plan, Stdio]] = []

    def spawn(self, id: str, exec_id: str, plan: Plan, stdio: Stdio) -> TaskState:
        self.spawned.append((id, exec_id, plan, stdio))
        os.fstat(stdio.stdout)
        os.fstat(plan.fds[0])
        return TaskState(id, exec_id, "created", 4711, 1)

    def namespace(self, sandbox_id: str, type: str) -> int:
        return os.open(self.path, os.O_RDONLY)


@pytest.fixture
def make(distributions: Distributions, tmp_path: Path) -> Iterator[Any]:  # noqa: F811
    kernels = []

    def make(deadline: float = 10.0, more: str = "", extra: str = "", init: str = "Own") -> Kernel:
        distributions.standard()
        distributions.driver("snapshotter", "own", init=init, extra=EXTRA + extra, more="probe=probe")
        shim = FakeShim(tmp_path)
        kernel = distributions.kernel(TEXT.format(deadline=deadline, more=more), shim=shim)
        kernels.append(kernel)
        return kernel

    yield make
    for kernel in kernels:
        kernel.close()


def own_pid(kernel: Kernel) -> int:
    return int(kernel.variant("own").snapshotter.stat("x").labels["pid"])


def at_once(kernel: Kernel) -> None:
    """The pause before the next start is over."""
    kernel._driver("snapshotter", "own").health._retry_at = 0


def test_it_lives_elsewhere(make: Any) -> None:
    import sys

    kernel = make()
    pid = own_pid(kernel)
    assert pid != os.getpid()
    assert own_pid(kernel) == pid
    assert kernel.variant("own").snapshotter.stat("x").parent == "own", "the variant goes along"
    assert "fake_snapshotter_own" not in sys.modules, "the engine never imports it"
    (info,) = [info for info in kernel.plugins() if info.id == "own"]
    assert (info.state, info.process) == ("ready", True)
    kernel.close()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_answers_and_errors(make: Any) -> None:
    snapshotter = make().variant("own").snapshotter
    assert snapshotter.prepare("k", "p") == (Mount("bind", "/tmp/k", options=("rw",)),)
    assert [info.name for info in snapshotter.walk()] == [f"s{index}" for index in range(150)]
    with pytest.raises(NotFound) as caught:
        snapshotter.usage("n")
    assert (str(caught.value), caught.value.plugin) == ("n: cause; hint", "snapshotter.own")
    with pytest.raises(FileNotFoundError) as missing:
        snapshotter.stat("os")
    assert (missing.value.errno, missing.value.filename) == (2, "/x")
    with pytest.raises(
        PluginFault, match=r"^snapshotter.own: stat: raised ZeroDivisionError: zero; the plugin is at fault$"
    ):
        snapshotter.stat("raise")
    with pytest.raises(PluginFault, match=r"snapshotter.own: stat: raised SystemExit: 4"):
        snapshotter.stat("system")
    with pytest.raises(PluginFault, match=r"snapshotter.own: stat: returned NoneType, not SnapshotInfo"):
        snapshotter.stat("none")
    with pytest.raises(Invalid):
        snapshotter.stat(5)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("exit", "its process ended with exit code 7"),
        ("kill", "its process was killed by SIGKILL"),
        ("close", "its process (closed the connection|ended with exit code 0)"),
    ],
)
def test_its_end_is_isolated(make: Any, name: str, cause: str) -> None:
    kernel = make()
    snapshotter, pid = kernel.variant("own").snapshotter, own_pid(kernel)
    with pytest.raises(
        Unavailable, match=f"^snapshotter.own: stat: {cause}; it is started again with the next call"
    ) as caught:
        snapshotter.stat(name)
    assert caught.value.plugin == "snapshotter.own"
    with pytest.raises(Unavailable, match=rf"snapshotter.own: prepare: {cause}; tried again in \d"):
        snapshotter.prepare("k", "")
    assert [info.state for info in kernel.plugins() if info.id == "own"] == ["failed"]
    assert kernel.variant().snapshotter.usage("x") == (1, 2)
    at_once(kernel)
    assert own_pid(kernel) != pid
    assert [(info.state, info.lost_threads) for info in kernel.plugins() if info.id == "own"] == [("ready", 0)]


@pytest.mark.parametrize("name", ["hang", "gil"])
def test_a_hang_is_ended(make: Any, name: str) -> None:
    kernel = make(deadline=3.0)  # in which a slow machine starts the process
    pid, began = own_pid(kernel), time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        kernel.variant("own").snapshotter.stat(name)
    assert time.monotonic() - began < 30
    assert re.match(r"snapshotter.own: stat: did not return within [0-3]\.", str(caught.value))
    assert not Path(f"/proc/{pid}").exists()
    assert [info.lost_threads for info in kernel.plugins() if info.id == "own"] == [0], (
        "no thread of the engine is lost"
    )
    at_once(kernel)
    assert own_pid(kernel) != pid


def test_killed_from_outside_between_calls(make: Any) -> None:
    kernel = make()
    pid = own_pid(kernel)
    os.kill(pid, signal.SIGKILL)
    process = kernel._driver("snapshotter", "own")._backing._process  # type: ignore[union-attr]
    eventually(lambda: process.dead)
    assert own_pid(kernel) != pid, "nothing was under way: it is simply started again"


def test_what_it_does_to_its_process_stays_there(make: Any) -> None:
    before = (os.getcwd(), dict(os.environ))
    make().variant("own").snapshotter.stat("chdir")
    assert (os.getcwd(), dict(os.environ)) == before


def test_services(make: Any, distributions: Distributions, tmp_path: Path) -> None:  # noqa: F811
    kernel = make()
    snapshotter, held = kernel.variant("own").snapshotter, []
    with kernel.holding(held.append), kernel.tracing("k"):
        snapshotter.update("n", {"a": "b"})
    snapshotter.update("m", {})
    assert held == ["snapshot/own/n"]
    assert distributions.events[0] == Event("snapshot.updated", "n", 1, {"a": "b"})
    inner, outer = kernel.spans("k")
    assert (inner.name, inner.plugin, inner.attributes) == ("inside", "snapshotter.own", {"size": 3})
    assert (outer.name, outer.plugin) == ("snapshotter.update", "snapshotter.own")
    assert inner.parent == outer.id
    assert snapshotter.mounts("c") == (Mount("bind", "created:4711"),)
    ((id, exec_id, plan, stdio),) = kernel.shim.spawned  # type: ignore[attr-defined]
    assert (id, exec_id, plan.argv) == ("c", "", ("a",))
    assert isinstance(plan.steps[0], SentStep)
    assert (plan.steps[0].describe(), plan.steps[0].encode()) == ("a step", ("step", 1, "x"))
    assert stdio.log == LogSink("none")
    assert snapshotter.cleanup() == tmp_path.stat().st_ino, "a descriptor came back"


def test_descriptors_are_not_leaked(make: Any) -> None:
    kernel = make()
    snapshotter = kernel.variant("own").snapshotter
    snapshotter.mounts("c")
    snapshotter.cleanup()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        snapshotter.mounts("c")
        snapshotter.cleanup()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_probe_options_and_init(make: Any) -> None:
    kernel = make(more="name = 'luck'")
    with pytest.raises(Unavailable, match='snapshotter driver "own": no luck'):
        kernel.variant("own")
    assert [(info.state, info.reason) for info in kernel.plugins() if info.id == "own"] == [("skipped", "no luck")]


def test_a_bad_table(make: Any) -> None:
    kernel = make(more="sise = 1")
    with pytest.raises(Invalid) as caught:
        kernel.variant("own")
    assert str(caught.value) == 'config.toml:7: [plugin.snapshotter.own] sise: unknown key "sise"; did you mean "size"?'
    assert kernel.variant().ids["snapshotter"] == "fake"


@pytest.mark.parametrize(
    ("extra", "init", "cause"),
    [
        ("raise ValueError('no')", "Own", "importing fake_snapshotter_own raised ValueError: no"),
        ("os._exit(3)", "Own", "its import failed: its process ended with exit code 3; what it wrote is in engine.log"),
        ("", "lambda c, x: None", "init returned NoneType without stat, "),
        (
            "",
            "lambda c, x: os._exit(5)",
            "its init failed: its process ended with exit code 5; what it wrote is in engine.log",
        ),
        ("", "lambda c, x: 1 / 0", "its init raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_fails_at_the_start(make: Any, extra: str, init: str, cause: str) -> None:
    kernel = make(extra=extra, init=init)
    with pytest.raises(PluginFault) as caught:
        kernel.variant("own")
    assert str(caught.value).startswith(f"plugin snapshotter.own (dist5 1.0): {cause}")
    assert caught.value.plugin == "snapshotter.own"
    assert kernel.variant().snapshotter.usage("x") == (1, 2)


def test_an_init_that_hangs(make: Any) -> None:
    kernel = make(deadline=1.5, init="lambda c, x: time.sleep(60)")
    with pytest.raises(DeadlineExceeded, match=r"plugin snapshotter.own .*: its init did not return within 1.5 s"):
        kernel.variant("own")


def test_decorated(make: Any, distributions: Distributions) -> None:  # noqa: F811
    kernel = make(deadline=3.0, more="[variant.traced]\nextends = 'own'\ndecorate = ['trace']")
    snapshotter = kernel.variant("traced").snapshotter
    with kernel.tracing("k"):
        assert snapshotter.stat("x").name == "x"
    assert [span.name for span in kernel.spans("k")] == ["own.stat", "snapshotter.stat"]
    with pytest.raises(DeadlineExceeded):
        snapshotter.stat("hang")
    assert isinstance(kernel._driver("snapshotter", "own")._backing, RemoteBackend)


def test_a_store_over_the_wire(distributions: Distributions) -> None:  # noqa: F811
    distributions.standard()
    kernel = distributions.kernel("[plugin.store.fake]\nprocess = true")
    store = kernel.variant().store
    with store.open("sha256:x") as stream:  # type: ignore[arg-type]
        assert stream.read() == b"content of sha256:x"
    ingest = store.ingest("r")
    assert ingest.write(b"\x00\xff" * 50_000) == 100_000
    assert (ingest.offset, ingest.ref) == (100_000, "r")
    assert ingest.commit(None, "sha256:x", {"a": "b"}).labels == {"a": "b"}  # type: ignore[arg-type]
    ingest.close()
    assert list(store.ingests()) == [("a", 1), ("b", 2)]


def test_sockets_are_ours_alone(make: Any) -> None:
    """Nothing else of the engine is open in the driver's process."""
    mine, theirs = socket.socketpair()
    kernel = make()
    pid = own_pid(kernel)
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert f"socket:[{os.fstat(mine.fileno()).st_ino}]" not in links
    mine.close()
    theirs.close()


@pytest.mark.parametrize(("process", "code"), [("true", 0), ("false", 7)])
def test_without_a_process_of_its_own_the_engine_would_end(tmp_path: Path, process: str, code: int) -> None:
    """With the twin: the same driver in the engine's process takes the engine with it."""
    import subprocess
    import sys

    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from support.distributions import Distributions
from wherry.api import Unavailable
dists = Distributions(Path({str(tmp_path)!r}))
sys.path.insert(0, str(dists.site))
dists.standard()
dists.driver("snapshotter", "own", init="Own", extra={EXTRA!r})
kernel = dists.kernel("[variant.own]\\nsnapshotter = 'own'\\n[plugin.snapshotter.own]\\nprocess = {process}")
try:
    kernel.variant("own").snapshotter.stat("exit")
except Unavailable:
    pass
assert kernel.variant().snapshotter.usage("x") == (1, 2)
kernel.close()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == code
