"""netd's process as the engine sees it: where its socket and its log are, how it is started, reached and awaited."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from wherry import __version__
from wherry.api import Context, Plan, Stdio, TaskState, Unavailable
from wherry.kit import processes, steps

#: What netd's interpreter runs. The packages above it are stand-ins: their own modules would bring the whole contract along.
BOOT = """
import sys
core, plugins, site, version, table, path, hub = sys.argv[1:]
sys.path += [core, plugins, site]
for name, top in (("wherry", core), ("wherry_plugins", plugins), ("wherry_plugins.network", plugins),
                  ("wherry_plugins.network.bridge", plugins)):
    package = sys.modules[name] = type(sys)(name)
    package.__path__ = [top + "/" + name.replace(".", "/")]
from wherry_plugins.network.bridge.netd.main import main
main(version, table, path, hub)
"""
PATIENCE = 20.0  # seconds for an answer, or an end
_BACKLOG = 16
_LOG = 1 << 20


class Starter:
    """table: the name of the rules' table, by the run directory. path: of the socket, by the hub."""

    def __init__(self, context: Context, hub: str) -> None:
        self._context = context
        self._hub = hub
        run = context.run.parent.parent
        self.table = "wherry-" + hashlib.sha256(os.fsencode(run)).hexdigest()[:8]
        name = f"netd-{hub}" if hub else "netd"
        self.path = context.run / f"{name}.sock"
        self.log = context.run / f"{name}.log"
        self._said = 0  # how long the log was before the last start

    def dial(self) -> socket.socket | None:
        """A connection; None where nobody takes one."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(PATIENCE)
        try:
            with _short(self.path) as name:
                sock.connect(name)
        except OSError:
            sock.close()
            return None
        return sock

    def spawn(self) -> None:
        """Starts one through the shim, which is its parent, on a socket that is bound here, so that nobody has to wait for it."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        log = -1
        try:
            self.path.unlink(missing_ok=True)
            with _short(self.path) as name:
                listener.bind(name)
            self.path.chmod(0o600)
            listener.listen(_BACKLOG)
            log = self._open_log()
            self._said = os.fstat(log).st_size
            plan = Plan(
                argv=(
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    BOOT,
                    *places(),
                    __version__,
                    self.table,
                    str(self.path),
                    self._hub,
                ),
                env=("LC_ALL=C.UTF-8",),
                how="clone" if self._hub else "spawn",
                sandbox_id=self._hub,
                steps=(steps.Join(("net",)), steps.Created(), steps.Signals(), steps.Execute()) if self._hub else (),
                fds=(listener.fileno(),),
            )
            task = f"{self._context.id}.netd.{secrets.token_hex(4)}"
            self._context.shim.spawn(task, "", plan, Stdio(stdout=log, stderr=log))
            if self._hub:
                self._context.shim.start(task, "")
        except OSError as error:
            raise Unavailable("netd", f"could not be started: {error}", f'see "{self.log}"') from None
        finally:
            listener.close()
            if log >= 0:
                os.close(log)

    def _open_log(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG:
                self.log.rename(f"{self.log}.1")
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def last_words(self) -> str:
        """Why it ended right after its start: the last line that it has written since; "" where there is none."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[self._said :].decode(errors="replace").split("\n")
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""

    def await_end(self) -> None:
        """Until its process is gone; where it is in a hub, until the shim has seen that: the hub can't be removed before."""
        end = time.monotonic() + PATIENCE
        while any(self._hub or _lives(task) for task in self._tasks()):
            if time.monotonic() > end:
                raise Unavailable("netd", "it does not end", f'see "{self.log}"')
            time.sleep(0.002)

    def _tasks(self) -> list[TaskState]:
        """That one, and such as an engine before this one has started."""
        ours = f"{self._context.id}.netd."
        return [task for task in self._context.shim.list() if task.status != "stopped" and task.id.startswith(ours)]


def _lives(task: TaskState) -> bool:
    """A shim that has followed a lost one takes some seconds to tell an end that it did not see."""
    try:
        return processes.start_time(task.pid) == task.start_time
    except OSError:
        return False


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for a socket however long its path is (unix(7): 108 bytes)."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


@functools.cache
def places() -> tuple[str, ...]:
    """Where netd finds wherry, wherry_plugins and dnslib."""
    found = []
    for name in ("wherry", "wherry_plugins", "dnslib"):
        spec = importlib.util.find_spec(name)
        locations = (spec.submodule_search_locations if spec else None) or ()
        if not locations:
            raise Unavailable("netd", f'the package "{name}" is not installed')
        found.append(str(Path(next(iter(locations))).parent))
    return tuple(found)


__all__ = ["BOOT", "PATIENCE", "Starter", "places"]
