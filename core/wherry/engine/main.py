"""The engine as a process: ``python -I -m wherry.engine.main --root DIR --run DIR [--config FILE] [--ready-fd N]``.

The shim starts it, or systemd. It writes "ready" and a line break to the ready descriptor once engine.sock accepts, or one
line that says why it could not start. SIGTERM and SIGINT end it; its containers go on under the shim.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

#: A thread that waits for the interpreter gets it after this many seconds: the default of 5 ms is a whole container start.
SWITCH_SECONDS = 0.0005
#: So many more objects made than gone before the cycle collector looks at the youngest: a start makes some hundred.
GC_THRESHOLDS = (20_000, 20, 50)
#: By then the front ends have imported what they put off.
SETTLED_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until told to stop; the exit code of the process."""
    options = _options(sys.argv[1:] if argv is None else argv)
    ready = int(options.get("ready-fd", "-1"))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        return _serve(options, ready, stop)
    except Exception as error:
        from wherry.errors import Error

        if not isinstance(error, Error | OSError):
            import traceback

            traceback.print_exc()
        text = str(error) or type(error).__name__
        _tell(ready, text)
        sys.stderr.write(f"wherry: {text}\n")
        return 1


def _options(argv: Sequence[str]) -> dict[str, str]:
    known = ("root", "run", "config", "ready-fd")
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--") or name[2:] not in known or (not equals and not words):
            raise SystemExit(
                f'wherry: engine: bad argument "{name}"; one of ' + ", ".join("--" + word for word in known)
            )
        found[name[2:]] = value if equals else words.pop(0)
    return found


def _tell(fd: int, line: str) -> None:
    if fd < 0:
        return
    try:
        os.write(fd, (line.replace("\n", " ") + "\n").encode("utf-8", "replace"))
        os.close(fd)
    except OSError:
        pass


def _serve(options: dict[str, str], ready: int, stop: threading.Event) -> int:
    from wherry.engine.local import Engine
    from wherry.engine.server.server import SocketServer
    from wherry.errors import Error
    from wherry.kernel.log import logger as log

    root, run = (Path(options[key]) if key in options else None for key in ("root", "run"))
    engine = Engine(root, run, options.get("config") or None, resident=True)
    state = engine.state
    settings = state.settings
    frontends = {}
    for id in settings.frontends:
        try:
            frontends[id] = state.kernel.frontend(id)
        except Error as error:
            log.error("front end {}: {}", id, error)
    server = SocketServer(
        engine,
        root=state.root,
        run=state.run,
        group=settings.group,
        config=state.loaded.file,
        frontends=frontends,
    )
    try:
        server.open()
        threads = [threading.Thread(target=server.serve, name="wherry-accept", daemon=True)]
        threads += [
            threading.Thread(target=frontend.serve, args=(engine,), name=f"wherry-{id}", daemon=True)
            for id, frontend in frontends.items()
        ]
        for thread in threads:
            thread.start()
        gc.set_threshold(*GC_THRESHOLDS)
        _tell(ready, "ready")
        _idle(engine, server, stop, settings.idle_exit)
    finally:
        server.close()
        for frontend in frontends.values():
            frontend.stop()
        engine.close()
    return 0


def _idle(engine: object, server: object, stop: threading.Event, seconds: float) -> None:
    """Waits for a signal, or until nothing was asked and nothing ran for so long (0: for ever)."""
    from wherry.engine.local import Engine
    from wherry.engine.server.server import SocketServer

    assert isinstance(engine, Engine) and isinstance(server, SocketServer)  # noqa: PT018 for the type checker
    if not stop.wait(SETTLED_SECONDS):
        gc.freeze()  # what is there now stays: no collection need look at it again
    while not stop.wait(seconds / 4 if seconds > 0 else None):
        busy = server.clients or any(record.live for record in engine.state.registry)
        if not busy and time.monotonic() - server.last_active > seconds:
            engine.state.quit_shim.set()
            return


if __name__ == "__main__":
    sys.exit(main())
