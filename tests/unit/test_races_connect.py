"""A client that comes while an engine that was killed still has its socket open asks again until that is gone."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

import wherry
from wherry.api import Unavailable
from wherry.engine.server import client
from wherry.linux import framing

BOUND = 30.0


def a_dying_engine(tmp_path: Path, refusals: int) -> None:
    """What listens closes so many connections without an answer, as a killed process does, and then answers."""
    run = tmp_path / "run"
    run.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run / "engine.sock"))
        listener.listen()
        listener.settimeout(BOUND)

        def serve() -> None:
            for number in range(refusals + 1):
                try:
                    sock, _address = listener.accept()
                except OSError:  # nobody asks any more
                    return
                with sock:
                    if number == refusals:
                        sock.settimeout(BOUND)
                        framing.Reader(sock).next()
                        framing.send(sock, {"wherry": 1, "version": wherry.__version__})

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            wherry.connect(tmp_path / "root", run, start=False).close()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(BOUND)


def test_an_engine_that_takes_long_to_die(tmp_path: Path) -> None:
    a_dying_engine(tmp_path, refusals=5)


def test_twin_no_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DYING_SECONDS", -1.0)
    with pytest.raises(Unavailable, match="closed the connection"):
        a_dying_engine(tmp_path, refusals=5)
