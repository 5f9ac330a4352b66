"""An engine that asks netd and takes no answers: others are answered all the same; and the table's errors name the rule."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from support.loops import Running
from wherry.kit import framing
from wherry_plugins.network.bridge.netd.server import EngineConnection

SOON = 3.0  # seconds: less than any time limit of netd's own


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


class Answering:
    """The part of netd that a connection knows."""

    def __init__(self) -> None:
        self.left: list[EngineConnection] = []

    def answer(self, message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        return message["op"] * 5000, []

    def gone(self, engine: EngineConnection) -> None:
        self.left.append(engine)


def second_is_answered(running: Running) -> bool:
    """Whether an engine is answered while another one has asked much and reads nothing."""
    server: Any = Answering()
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
        engines = [
            running.do(lambda ours=ours: EngineConnection(server, running.loop, ours))  # type: ignore[misc]
            for ours, _theirs in pairs
        ]
        (silent, asking) = (stack.enter_context(theirs) for _ours, theirs in pairs)
        for _ in range(200):
            framing.send(silent, {"op": "x"})
        asking.settimeout(SOON)
        framing.send(asking, {"op": "y"})
        try:
            frame = framing.Reader(asking).next()
        except TimeoutError:
            return False
        finally:
            silent.close()
            for engine in engines:
                running.do(engine._channel.close)
        assert frame is not None
        assert len(server.left) == 2
        return bool(frame[0] == {"ok": "y" * 5000})


def test_who_reads_nothing_makes_nobody_wait(running: Running) -> None:
    assert second_is_answered(running)


def test_twin_that_waits_for_who_reads_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(channel: framing.FrameChannel, message: dict[str, Any], _fds: Any = ()) -> None:
        channel.socket.settimeout(10)
        with contextlib.suppress(OSError):
            framing.send(channel.socket, message)
        channel.socket.setblocking(False)

    monkeypatch.setattr(framing.FrameChannel, "send", waiting)
    assert not second_is_answered(running)
