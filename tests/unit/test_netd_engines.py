"""An engine that asks netd and takes no answers: others are answered all the same; and the table's errors name the rule."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.loops import Running
from wherry.api import Denied, FailedPrecondition
from wherry.kit import framing
from wherry_plugins.network.bridge import redirect as redirecting
from wherry_plugins.network.bridge.netd.server import EngineConnection
from wherry_plugins.network.bridge.redirect import redirect
from wherry_plugins.network.bridge.transaction import NEWCHAIN, NEWRULE, NEWTABLE

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


# what the kernel refuses of a resolver's rules


def refused_by_the_kernel(code: int, refuse: int) -> Exception:
    """What comes of a transaction in which the kernel refuses the first message of a type."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        batch, said = kernel.recv(1 << 16), b""
        while batch:
            length, type, _flags, sequence, _port = struct.unpack_from("=IHHII", batch)
            batch = batch[(length + 3) & ~3 :]
            error = -code if type == refuse else 0
            said += struct.pack("=IHHIIi", 20, 2, 0, sequence, 0, error)
        kernel.send(said)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        redirect(ours.detach(), "127.0.0.11", {socket.SOCK_DGRAM: 4711, socket.SOCK_STREAM: 4712})
    except Exception as error:
        return error
    finally:
        thread.join()
        kernel.close()
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize(
    ("code", "refuse", "kind", "what"),
    [
        (errno.EPERM, NEWRULE, Denied, 'nftables rule "udp 127.0.0.11:53 dnat to :4711"'),
        (errno.EOPNOTSUPP, NEWCHAIN, FailedPrecondition, 'nftables nat chain "wherry-names output"'),
        (errno.EPERM, NEWTABLE, Denied, 'nftables table "wherry-names"'),
    ],
)
def test_a_refused_rule_is_named_with_what_to_do(code: int, refuse: int, kind: type[Exception], what: str) -> None:
    error = refused_by_the_kernel(code, refuse)
    assert type(error) is kind
    assert str(error).startswith(f"{what}: the kernel refused it: {os.strerror(code)}")
    assert "names need nf_tables with nat in this kernel" in str(error)


def test_twin_without_labels_no_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = redirecting.transact
    monkeypatch.setattr(redirecting, "transact", lambda *args, labels: whole(*args))
    assert "dnat" not in str(refused_by_the_kernel(errno.EPERM, NEWRULE))
