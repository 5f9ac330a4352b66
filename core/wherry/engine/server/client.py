"""connect(): the resident engine from another process, as the same Engine Protocol."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import wherry
from wherry.errors import Unavailable, decode_error
from wherry.linux import framing

if TYPE_CHECKING:
    from wherry.api import Engine

#: So long the kernel may take to end a process that was killed, on a busy machine.
DYING_SECONDS = 10.0


def connect(
    root: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    *,
    start: bool = True,
    config: str | os.PathLike[str] | None = None,
) -> Engine:
    """The engine that listens in the run directory, which is that of the command line when not given.

    start: starts shim and engine when none answers; root and config are for them. The answer is thread-safe, is closed by
    ``close()`` and is a context manager. Descriptors in ``Stdio`` are passed on. Raises Unavailable when no engine answers, or
    one of another version. Example:

        with wherry.connect() as engine:
            print([container.name for container in engine.containers()])
    """
    from wherry.engine.assembly import locate

    place_root, place_run, _loaded = locate(
        Path(root) if root is not None else None, Path(run) if run is not None else None, config
    )
    until = time.monotonic() + DYING_SECONDS
    while True:
        sock = _dial(place_run)
        if sock is None:
            if not start:
                raise Unavailable(f'engine in "{place_run}"', "none listens there", "start it: wherry engine start")
            _start(place_root, place_run, config)
            sock = _dial(place_run)
            if sock is None:
                raise Unavailable(
                    f'engine in "{place_run}"', "it was started and does not answer", f"see {place_run}/engine.log"
                )
        try:
            answered = _greet(sock, config)
        except BaseException:
            sock.close()
            raise
        if answered:
            break
        sock.close()  # an engine that was just killed takes connections until the kernel has closed its socket
        if time.monotonic() > until:
            raise Unavailable("engine", "it closed the connection", "see its log")
        time.sleep(0.01)
    from wherry.engine.server.proxy import RemoteEngine

    assert sock is not None
    return cast("Engine", RemoteEngine(sock))


def _dial(run: Path) -> socket.socket | None:
    from wherry.engine.server.server import short_path

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(run, "engine.sock") as path:
            sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _greet(sock: socket.socket, config: str | os.PathLike[str] | None) -> bool:
    """False when the connection was closed before an answer came."""
    hello: dict[str, Any] = {"wherry": 1, "version": wherry.__version__, "frontend": "api", "cwd": os.getcwd()}
    if config is not None:
        hello["config"] = os.fspath(config)
    try:
        framing.send(sock, hello)
        frame = framing.Reader(sock).next()
    except ConnectionError:  # it ended between our call and its answer
        return False
    if frame is None:
        return False
    answer = frame[0]
    if "mismatch" in answer:
        raise Unavailable(
            "engine",
            f"it is version {answer['mismatch']}, this is {wherry.__version__}",
            "restart it: wherry engine restart",
        )
    if error := answer.get("error"):
        raise decode_error(error)
    if answer.get("wherry") != 1:
        raise Unavailable("engine", "it answers in an unknown way", "see its log")
    return True


def _start(root: Path, run: Path, config: str | os.PathLike[str] | None) -> None:
    """Through the shim, which is the engine's parent."""
    from wherry.engine.shim.client import start_shim

    shim = start_shim(run, root, config=Path(config).absolute() if config is not None else None, engine=True)
    try:
        shim.engine()
    finally:
        shim.close()
