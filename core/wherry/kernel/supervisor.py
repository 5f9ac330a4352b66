"""A driver in a process of its own (``process = true``), seen from the engine.

The process is started with the first use and again, after a backoff, when it died or hung; calls under way then end with
Unavailable. Two sockets join it to the engine: one for calls, one on which it asks for the services of its Context.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from wherry.errors import Error, Invalid, PluginFault, Unavailable
from wherry.interfaces.common import Capabilities, Event
from wherry.interfaces.engine import Span
from wherry.interfaces.kernel import Workers
from wherry.interfaces.process import Shim
from wherry.interfaces.tracing import CURRENT as SPANS
from wherry.kernel import calls
from wherry.kernel.config import combined
from wherry.kernel.discovery import PluginEntry
from wherry.kernel.log import logger
from wherry.kernel.protocols import protocols
from wherry.rpc.client import ConnectionLost, RemoteMethod, RpcChannel, TimedOut, make_proxy
from wherry.rpc.codec import decoder
from wherry.rpc.server import serve

if TYPE_CHECKING:
    from wherry.kernel.drivers import Driver

_TOKEN: ContextVar[int] = ContextVar("wherry_call_token", default=0)

START_SECONDS = 10.0
"""The least that a new process gets for its start: an interpreter and its imports take most of a second on a busy machine."""


@frozen
class DriverSetup:
    """What a driver's process is told first."""

    family: str
    id: str
    value: str
    distribution: str
    version: str
    table: dict[str, Any]
    uid: int
    root: str
    run: str
    features: tuple[str, ...]
    variant: str


@frozen
class DriverSetupResult:
    """What it answers. problems: of its table, (path, cause, hint)."""

    problems: tuple[tuple[tuple[str, ...], str, str], ...] = ()
    probe: str | None = None
    capabilities: Capabilities = Capabilities()


class DriverHost(Protocol):
    """The process itself; the driver is its object "driver" after init."""

    def prepare(self, order: DriverSetup) -> DriverSetupResult: ...
    def init(self) -> None: ...


class EngineServices(Protocol):
    """What the process may ask of the engine."""

    shim: Shim
    workers: Workers

    def publish(self, event: Event) -> None: ...
    def hold(self, resource: str) -> None: ...
    def credentials(self, host: str) -> tuple[str, str] | None: ...


class RemoteBackend:
    """See ``wherry.kernel.drivers.DriverBackend``."""

    def __init__(self, driver: Driver, entry: PluginEntry) -> None:
        self._driver = driver
        self._entry = entry
        self._context = driver.context()
        self._lock = threading.RLock()
        self._process: _Process | None = None
        self._prepared = DriverSetupResult()
        self._ready = False
        self.name = driver.key

    # steps

    def prepare(self) -> None:
        """See Backing."""
        try:
            with self._bounded("import", at_least=START_SECONDS):
                self._start()
        except BaseException:
            self.close()
            raise

    def probe(self) -> str | None:
        """See Backing; it was asked with prepare."""
        return self._prepared.probe

    def capabilities(self) -> Capabilities:
        """See Backing; they were asked for with prepare."""
        return self._prepared.capabilities

    def init(self) -> Any:
        """See Backing."""
        with self._bounded("init"):
            self._live()
        return make_proxy(protocols(self._driver.family)[0], self, "driver")  # type: ignore[arg-type]

    def kill(self, reason: str) -> None:
        """Ends the process at once."""
        with self._lock:
            process = self._process
        if process is not None:
            process.kill(reason)

    def close(self) -> None:
        """Ends the process; it gets a moment to do so by itself."""
        with self._lock:
            process, self._process, self._ready = self._process, None, False
        if process is not None:
            process.close()

    # what a proxy needs of a channel

    def call(self, handle: int | str, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carries out one call of the driver, in the process that lives now."""
        process = self._live()
        try:
            return process.call(handle, method, args, kwargs)
        except TimedOut as error:
            process.kill("a call hung")
            cause, hint = f"{error.cause}", "its process was ended and is started again"
            raise TimedOut(f"{self.name}: {method.name}", cause, hint, plugin=self.name) from None
        except ConnectionLost:
            hint = "it is started again with the next call after a pause"
            raise ConnectionLost(f"{self.name}: {method.name}", process.epitaph(), hint, plugin=self.name) from None

    def free(self, handle: int) -> None:
        """The driver itself is never freed."""

    # the process

    def _live(self) -> _Process:
        process = self._process
        if process is not None and self._ready and not process.dead:
            return process
        with self._lock:
            if self._process is None or self._process.dead or not self._ready:
                if self._process is None or self._process.dead:
                    self._start()
                assert self._process is not None
                make_proxy(DriverHost, self._process.channel, "").init()
                self._ready = True
            return self._process

    def _start(self) -> None:
        with self._lock:
            self._ready = False
            if self._process is not None:
                logger.warning("plugin {}: {}; starting it again", self.name, self._process.epitaph())
                self._process.close()
            try:
                self._process = _Process(self.name, self._context)
            except OSError as error:
                self._process = None
                cause = f"its process could not be started: {error.strerror or error}"
                raise Unavailable(self._driver.what(), cause, plugin=self.name) from None
            loaded, entry, context = self._driver.environment.loaded, self._entry, self._context
            table = dict(loaded.config.plugin.get(entry.family, {}).get(entry.id, {}))
            table.pop("process", None)
            order = DriverSetup(
                entry.family,
                entry.id,
                entry.value,
                entry.distribution,
                entry.version,
                table,
                context.uid,
                str(context.root),
                str(context.run),
                tuple(sorted(context.features)),
                loaded.config.default,
            )
            prepared = make_proxy(DriverHost, self._process.channel, "").prepare(order)
            if prepared.problems:
                self.close()
                problems: list[Error] = [
                    Invalid(loaded.place("plugin", entry.family, entry.id, *path), cause, hint, plugin=self.name)
                    for path, cause, hint in prepared.problems
                ]
                raise combined(problems, loaded.file)
            self._prepared = prepared

    @contextmanager
    def _bounded(self, what: str, at_least: float = 0.0) -> Iterator[None]:
        """The deadline for a step, and errors in the words of the same step in the engine's process."""
        deadline = max(self._driver.environment.loaded.config.engine.deadline, at_least)
        token = calls.CURRENT.set(calls.Call(self.name, what, "", time.monotonic() + deadline))
        try:
            yield
        except TimedOut:
            self.kill(f"its {what} hung")
            cause = f"its {what} did not return within {deadline:g} s"
            raise TimedOut(self._driver.what(), cause, "its process was ended", plugin=self.name) from None
        except ConnectionLost:
            cause = f"its {what} failed: {self._process.epitaph()}" if self._process else f"its {what} failed"
            raise PluginFault(self._driver.what(), cause, "what it wrote is in engine.log", plugin=self.name) from None
        except Error as error:
            if not error.plugin:
                error.plugin = self.name
            raise
        finally:
            calls.CURRENT.reset(token)


class _Process:
    """One life of the driver's process."""

    def __init__(self, name: str, context: Any) -> None:
        self.name = name
        self._tokens = itertools.count(1)
        self._calls: dict[int, tuple[Any, Any, Any]] = {}
        self._reason = ""
        self._status: int | None = None
        self._reaping = threading.Lock()
        ours, theirs = socket.socketpair()
        services, asked = socket.socketpair()
        try:
            self.pid = _spawn(theirs.fileno(), asked.fileno())
        except OSError:
            ours.close()
            services.close()
            raise
        finally:
            theirs.close()
            asked.close()
        self.channel = RpcChannel(ours, name=name, context=self._along, answered=self._spans, timeout=calls.remaining)
        threading.Thread(target=self._serve, args=(services, context), name=f"wherry-{name}", daemon=True).start()

    def call(self, handle: int | str, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        token = next(self._tokens)
        self._calls[token] = (calls.HOLD.get(), SPANS.get(), calls.CURRENT.get())
        reset = _TOKEN.set(token)
        try:
            return self.channel.call(handle, method, args, kwargs)
        finally:
            _TOKEN.reset(reset)
            self._calls.pop(token, None)

    @property
    def dead(self) -> bool:
        return self.channel.over()

    def kill(self, reason: str) -> None:
        """SIGKILL; the socket then ends whatever waits for it."""
        self._reason = self._reason or reason
        with self._reaping:
            if self._status is None:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        self.channel.close()
        self._reap(wait=1.0)

    def close(self) -> None:
        self.channel.close()
        if not self._reap(wait=1.0):
            self.kill("it did not end by itself")

    def epitaph(self) -> str:
        """How it ended, for a message."""
        self._reap(wait=1.0)
        status = self._status
        if status is None:
            return "its process closed the connection" if self.channel.dead else "its process does not answer"
        if self._reason:
            return f"its process was ended because {self._reason}"
        if status < 0:
            return f"its process was killed by {_signal_name(-status)}"
        return f"its process ended with exit code {status}"

    def _reap(self, wait: float = 0.0) -> bool:
        until = time.monotonic() + wait
        while True:
            with self._reaping:
                if self._status is None:
                    try:
                        pid, status = os.waitpid(self.pid, os.WNOHANG)
                    except ChildProcessError:
                        pid, status = self.pid, 0
                    if pid:
                        self._status = os.waitstatus_to_exitcode(status)
                if self._status is not None:
                    return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.005)

    # what goes along

    def _along(self) -> dict[str, Any]:
        call, spans = calls.CURRENT.get(), SPANS.get()
        along: dict[str, Any] = {"t": _TOKEN.get()}
        if call is not None:
            along["v"] = call.variant
            if (rest := calls.remaining()) is not None:
                along["d"] = rest
        if spans is not None:
            along["s"] = spans[1]
        return along

    def _spans(self, along: Any) -> None:
        current = SPANS.get()
        if current is not None:
            for span in decoder(tuple[Span, ...])(along["spans"]):
                current[0].add(span)

    def _serve(self, sock: socket.socket, context: Any) -> None:
        others = {"shim": (Shim, context.shim), "workers": (Workers, context.workers)}
        try:
            serve(EngineServices, context, sock, others=others, around=self._within)
        finally:
            sock.close()

    @contextmanager
    def _within(self, token: Any) -> Iterator[Callable[[], Any] | None]:
        """A service is asked for by a call: its lease, its spans and its deadline count."""
        hold, spans, call = self._calls.get(token, (None, None, None))
        resets = (calls.HOLD.set(hold), SPANS.set(spans), calls.CURRENT.set(call))
        try:
            yield None
        finally:
            calls.HOLD.reset(resets[0])
            SPANS.reset(resets[1])
            calls.CURRENT.reset(resets[2])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


def _spawn(call_fd: int, service_fd: int) -> int:
    """posix_spawn(3) of the host with the two sockets as descriptors 3 and 4; the pid."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (call_fd, service_fd)]
    argv = [sys.executable, "-I", "-m", "wherry.kernel.driver_main", *sys.path]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, high[0], 3),
        (os.POSIX_SPAWN_DUP2, high[1], 4),
    ]
    try:
        return os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setpgroup=0)
    finally:
        for fd in high:
            os.close(fd)
