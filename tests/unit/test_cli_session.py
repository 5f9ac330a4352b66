"""What goes on between client and command: signals, sizes, clients that leave, many at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.cli import Client, FakeEngine, call, container
from wherry.api import Event, Exit, LogLine
from wherry.linux import framing
from wherry_plugins.frontend.cli.server import CliConfig, CliFrontend


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)
    return found


class Held:
    """A container that runs until it is told to end."""

    def __init__(self, **answers: Any) -> None:
        self.over = threading.Event()
        self.code = 0
        self.engine = FakeEngine(wait=self.wait, **answers)

    def wait(self, *_args: Any) -> Exit:
        assert self.over.wait(20)
        return Exit(self.code, 0)

    def end(self, code: int = 0) -> None:
        self.code = code
        self.over.set()


def test_signals_reach_the_container() -> None:
    held = Held()
    client = Client(held.engine, ("run", "busybox", "sleep", "9"))
    assert client.reader.next() == ({"attached": True}, [])
    framing.send(client.near, {"signal": int(signal.SIGTERM)})
    framing.send(client.near, {"signal": int(signal.SIGUSR1)})
    until(lambda: len(held.engine.called("kill")) == 2)
    assert held.engine.called("kill") == [(container().id, "TERM", ""), (container().id, "USR1", "")]
    held.end(143)
    assert client.finish()[0] == 143


def test_a_signal_before_the_start_waits_for_it() -> None:
    started = threading.Event()

    def run(*_args: Any) -> Any:
        assert started.wait(20)
        return container()

    held = Held(run=run)
    client = Client(held.engine, ("run", "busybox"))
    until(lambda: held.engine.called("run"))
    framing.send(client.near, {"signal": int(signal.SIGINT)})
    time.sleep(0.05)
    assert held.engine.called("kill") == []
    started.set()
    until(lambda: held.engine.called("kill") == [(container().id, "INT", "")])
    held.end(130)
    assert client.finish()[0] == 130


def test_a_signal_ends_a_command_that_follows_no_container() -> None:
    def logs(*_args: Any, **_kwargs: Any) -> Iterator[LogLine]:
        while True:
            time.sleep(0.01)
            yield LogLine(0, "stdout", b"")

    client = Client(FakeEngine(logs=logs), ("logs", "-f", "web"))
    framing.send(client.near, {"signal": int(signal.SIGINT)})
    assert client.finish()[0] == 130
    assert not client.thread.is_alive()


def test_without_sig_proxy_only_the_client_ends() -> None:
    held = Held()
    client = Client(held.engine, ("run", "--sig-proxy=false", "busybox"))
    assert client.reader.next() == ({"attached": True}, [])
    framing.send(client.near, {"signal": int(signal.SIGINT)})
    assert client.reader.next() == ({"exit": 130}, [])
    until(lambda: held.engine.called("detach"))
    assert held.engine.called("kill") == []
    held.end()
    client.finish()


def test_sizes_reach_the_terminal() -> None:
    held = Held(exec="e1")
    client = Client(held.engine, ("exec", "-it", "web", "sh"), tty=(True, True, True))
    assert [client.reader.next() for _ in range(2)] == [({"raw": True}, []), ({"attached": True}, [])]
    framing.send(client.near, {"resize": [50, 132]})
    until(lambda: held.engine.called("resize") == [("web", 50, 132, "e1")])
    held.end()
    assert client.finish()[0] == 0
    assert client.seen == [{"raw": False}, {"exit": 0}]


def test_a_client_that_leaves_is_detached_and_its_streams_are_let_go() -> None:
    held = Held()
    client = Client(held.engine, ("run", "busybox"))
    assert client.reader.next() == ({"attached": True}, [])
    client.near.close()
    until(lambda: held.engine.called("detach"))
    assert held.engine.called("detach") == [(container().id, held.engine.called("run")[0][1].token, "")]
    assert os.read(client.out_end, 1) == b""  # end of file at once, though the container goes on
    assert os.read(client.err_end, 1) == b""
    held.end()
    client.thread.join(20)
    for end in (client.out_end, client.err_end):
        os.close(end)


def test_a_closed_pipe_ends_quietly() -> None:
    containers = tuple(container(id=f"{number:064x}") for number in range(20_000))
    client = Client(FakeEngine(containers=containers), ("ps", "-q", "--no-trunc"))
    os.close(client.out_end)
    assert client.reader.next() == ({"exit": 141}, [])
    client.out_end = os.open("/dev/null", os.O_RDONLY)
    assert client.finish()[2] == ""


@pytest.mark.parametrize("command", [("ps", "-q"), ("save", "a")])
def test_a_stdout_on_a_full_disk_is_told(command: tuple[str, ...]) -> None:
    """``wherry save a > a.tar`` would else end without a word."""
    engine = FakeEngine(containers=(container(),), save=lambda *_, **__: (piece for piece in (b"archive",)))
    said = 'wherry: file "stdout": no space left on device\n'
    assert call(engine, *command, stdout="/dev/full") == (1, "", said)


def test_a_stdout_that_nobody_reads_ends_the_client() -> None:
    held = Held()
    client = Client(held.engine, ("run", "busybox", "yes"))
    assert client.reader.next() == ({"attached": True}, [])
    os.close(client.out_end)
    assert client.reader.next() == ({"exit": 141}, [])
    until(lambda: held.engine.called("detach"))
    assert held.engine.called("detach") == [(container().id, held.engine.called("run")[0][1].token, "")]
    held.end()
    client.out_end = os.open("/dev/null", os.O_RDONLY)
    client.finish()
    assert client.cli.hub.sessions == {}


def test_a_non_blocking_stdout_gets_everything() -> None:
    containers = tuple(container(id=f"{number:064x}") for number in range(5_000))
    client = Client(FakeEngine(containers=containers), ("ps", "-q", "--no-trunc"), blocking=False)
    out = b""
    while chunk := os.read(client.out_end, 999):
        out += chunk
    assert len(out) == 5_000 * 65
    assert client.finish()[0] == 0


def test_events_stop_with_the_client() -> None:
    ended = threading.Event()

    def events(*_args: Any, **_kwargs: Any) -> Iterator[Event]:
        try:
            yield Event("task.exited", "web", 10**9, {"code": "0"}, 1)
            while True:
                time.sleep(0.01)
                yield Event("", "", 0)
        finally:
            ended.set()

    client = Client(FakeEngine(events=events), ("events",))
    assert os.read(client.out_end, 100) == b"1970-01-01T00:00:01Z task.exited web (code=0)\n"
    client.near.close()
    assert ended.wait(10)
    client.thread.join(10)
    for end in (client.out_end, client.err_end):
        os.close(end)


def test_many_clients_at_once_keep_to_themselves() -> None:
    cli = CliFrontend(CliConfig(), None)
    threading.Thread(target=cli.hub.run, daemon=True).start()
    before = len(os.listdir("/proc/self/fd"))
    engine = FakeEngine(inspect=lambda name: {"Spec": {"n": name}})
    found: dict[int, Any] = {}

    def one(number: int) -> None:
        found[number] = call(engine, "inspect", "-f", "{{.Spec.n}}", f"c{number}", cli=cli)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {number: (0, f"c{number}\n", "") for number in range(40)}
    assert len(os.listdir("/proc/self/fd")) <= before
    assert cli.hub.sessions == {}
    cli.stop()


def test_names_that_are_not_utf8_survive() -> None:
    engine = FakeEngine()
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    code, out, _err = call(engine, "stop", name)
    assert (code, out) == (0, name + "\n")


def test_garbage_from_a_client_ends_it_alone() -> None:
    held = Held()
    client = Client(held.engine, ("run", "busybox"))
    assert client.reader.next() == ({"attached": True}, [])
    client.near.sendall(b"\xff\xff\xff\xff garbage")
    until(lambda: held.engine.called("detach"))
    held.end()
    client.thread.join(20)
    client.near.close()
    for end in (client.out_end, client.err_end):
        os.close(end)


def let_go_of() -> tuple[str, str]:
    """The tokens by which two clients of one container are let go of: of ``run``, and of a ``start -a`` beside it."""
    held = Held(start=container())
    first = Client(held.engine, ("run", "busybox"))
    assert first.reader.next() == ({"attached": True}, [])
    second = Client(held.engine, ("start", "-a", "web"))
    assert second.reader.next() == ({"attached": True}, [])
    second.near.close()
    until(lambda: held.engine.called("detach"))
    ((_id, token, _exec),) = held.engine.called("detach")
    assert token == held.engine.called("start")[0][1].token
    held.end()
    first.finish()
    second.thread.join(20)
    for end in (second.out_end, second.err_end):
        os.close(end)
    return held.engine.called("run")[0][1].token, token


def test_who_attaches_by_start_lets_go_of_its_own_streams_alone() -> None:
    mine, others = let_go_of()
    assert mine != others


def test_twin_clients_without_a_token_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_plugins.frontend.cli.streams.os.urandom", lambda _count: b"")
    assert let_go_of() == ("", "")
