"""From a plugin's name to a guarded driver, step by step, each step done once and its outcome remembered.

import -> registration -> options -> probe -> init. A failed import, registration or table stays failed; a failed init is tried
again after a backoff, since what it lacked may have come meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, cast

from attrs import frozen

from wherry.errors import DeadlineExceeded, Error, PluginFault, Unavailable
from wherry.interfaces.common import Capabilities
from wherry.interfaces.kernel import Registration
from wherry.kernel import process_state
from wherry.kernel.breaker import CircuitBreaker
from wherry.kernel.calls import CURRENT, Call, CallTimeout, Pool
from wherry.kernel.checks import check_for
from wherry.kernel.config import LoadedConfig
from wherry.kernel.context import DriverContext, make_directories
from wherry.kernel.discovery import PluginEntry
from wherry.kernel.guard import missing
from wherry.kernel.log import logger as log
from wherry.kernel.plugins import Plugins, in_process, options, said
from wherry.kernel.protocols import OPTIONAL, PROTOCOLS


@frozen
class DriverEnvironment:
    """What every driver of a kernel shares."""

    loaded: LoadedConfig
    plugins: Plugins
    pool: Pool
    context: Callable[[str, str], DriverContext]


class DriverBackend(Protocol):
    """Where a driver lives: in this process, or in one of its own."""

    def prepare(self) -> None:
        """Import, registration and options. Raises NotFound, PluginFault, Invalid."""
        ...

    def probe(self) -> str | None: ...
    def capabilities(self) -> Capabilities: ...
    def init(self) -> Any:
        """The driver, or what stands for it here."""
        ...

    def close(self) -> None: ...


class Driver:
    """One driver, shared by all variants that name it. Each step is done once and its outcome remembered. Thread-safe."""

    def __init__(self, family: str, id: str, environment: DriverEnvironment) -> None:
        self.family = family
        self.id = id
        self.key = f"{family}.{id}"
        self.environment = environment
        self.health = CircuitBreaker(self.key)
        self.process = False
        self._lock = threading.RLock()
        self._backing: DriverBackend | None = None
        self._probed: tuple[str | None] | None = None
        self._capabilities: Capabilities | None = None
        self._driver: Any = None
        self._broken: Error | None = None
        self._failure: Error | None = None

    @property
    def at_work(self) -> bool:
        """Whether it was made and answers; nothing is imported or probed to tell."""
        return self._driver is not None and not self.health.open

    def state(self) -> tuple[Literal["ready", "available", "skipped", "failed"], str]:
        """(state, reason) as ``wherry plugins`` shows them; imports and probes when that was not done yet."""
        if self._driver is not None:
            return ("failed", self.health.reason) if self.health.open else ("ready", "")
        if self._failure is not None:
            return "failed", str(self._failure)
        try:
            reason = self.probe()
            self.capabilities()
        except Error as error:
            return "failed", str(error)
        return ("skipped", reason) if reason else ("available", "")

    def _prepared(self) -> DriverBackend:
        if self._broken is not None:
            passing = isinstance(self._broken, DeadlineExceeded | Unavailable)
            if not (self.process and passing and self.health.due()):
                raise self._broken
            self._broken = None
        if self._backing is None:
            env = self.environment
            try:
                entry = env.plugins.entry(self.family, self.id)
                self.process = in_process(env.loaded, self.family, self.id)
                if self.process:
                    from wherry.kernel.supervisor import RemoteBackend

                    backing: DriverBackend = RemoteBackend(self, entry)
                else:
                    backing = LocalBackend(self)
                backing.prepare()
            except Error as error:
                self._broken = error
                if self.process:
                    self.health.fail(error.cause)
                raise
            self._backing = backing
            self.health.reset()
        return self._backing

    def probe(self) -> str | None:
        """The reason why it can't run here, or None; asked once. Raises NotFound, PluginFault, Invalid, DeadlineExceeded."""
        with self._lock:
            if self._probed is None:
                backing = self._prepared()
                try:
                    self._probed = (backing.probe(),)
                except Error as error:
                    self._broken = error
                    raise
            return self._probed[0]

    def capabilities(self) -> Capabilities:
        """Its flags; asked once. Raises as probe does."""
        with self._lock:
            if self._capabilities is None:
                backing = self._prepared()
                try:
                    self._capabilities = backing.capabilities()
                except Error as error:
                    self._broken = error
                    raise
            return self._capabilities

    def get(self) -> Any:
        """The driver itself, unguarded, initialised at the first call. Raises as probe does, and Unavailable for a probe that
        says no; what init raised is raised again until a backoff has passed."""
        if self._driver is not None:
            return self._driver
        with self._lock:
            if self._driver is None:
                if self._failure is not None and not self.health.due():
                    raise self._failure
                if reason := self.probe():
                    raise Unavailable(f'{self.family} driver "{self.id}"', reason, "it can't run here", plugin=self.key)
                try:
                    context = self.context()
                    make_directories(context.root, context.run)
                    self._driver = self._prepared().init()
                except (Error, OSError) as error:
                    self._failure = error if isinstance(error, Error) else self.fault(f"its init raised {said(error)}")
                    self.health.fail(f"its init failed: {self._failure.cause}")
                    raise self._failure from None
                self._failure = None
                self.health.reset()
            return self._driver

    def context(self) -> DriverContext:
        """Its kernel services."""
        return self.environment.context(self.family, self.id)

    def on_hang(self) -> None:
        """A call was given up: a driver's own process is ended, which ends the call."""
        kill = getattr(self._backing, "kill", None)
        if kill is not None:
            kill("a call hung")

    def close(self) -> None:
        """Ends the driver's own process, if it has one, or what it has in this one."""
        if self._backing is not None:
            self._backing.close()

    def fault(self, cause: str, hint: str = "") -> PluginFault:
        """A fault of this plugin."""
        return PluginFault(self.what(), cause, hint, plugin=self.key)

    def what(self) -> str:
        """The plugin in messages: name, distribution, version."""
        try:
            entry: PluginEntry = self.environment.plugins.entry(self.family, self.id)
        except Error:
            return f"plugin {self.key}"
        return f"plugin {self.key} ({entry.distribution} {entry.version})"


class LocalBackend:
    """A driver in the engine's process: each step of the plugin's own code runs on a pool thread with the deadline."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._context = driver.context()
        self._registration: Registration[Any, Any]
        self._options: Any = None
        self._made: Any = None

    def prepare(self) -> None:
        """See Backing."""
        driver = self._driver
        env = driver.environment
        self._registration = self._bounded("import", lambda: env.plugins.registration(driver.family, driver.id))
        self._options = options(env.loaded, driver.family, driver.id, self._registration.config)

    def probe(self) -> str | None:
        """See Backing."""
        answer = self._asked("probe", lambda: self._registration.probe(self._options, self._context), str | None)
        return cast("str | None", answer)

    def capabilities(self) -> Capabilities:
        """See Backing."""
        ask = self._registration.capabilities
        return cast(Capabilities, self._asked("capabilities", lambda: ask(self._options, self._context), Capabilities))

    def init(self) -> Any:
        """See Backing."""
        driver = self._bounded("init", lambda: self._registration.init(self._options, self._context))
        if reason := unfit(driver, self._driver.family, self._driver.capabilities()):
            hint = f"the Protocol is {PROTOCOLS[self._driver.family].__name__} in wherry.api"
            raise self._driver.fault(f"init returned {reason}", hint)
        self._made = driver
        return driver

    def close(self) -> None:
        """Descriptors, threads and the like of an engine that is one of several in this process: only its driver knows them."""
        made, self._made = self._made, None
        close = getattr(made, "close", None)
        if close is not None:
            try:
                self._bounded("close", close)
            except (Error, OSError) as error:
                log.warning("{}: not closed: {}", self._driver.key, error)

    def _asked(self, what: str, ask: Callable[[], Any], annotation: Any) -> Any:
        value = self._bounded(what, ask)
        if reason := check_for(annotation)(value):
            raise self._driver.fault(f"its {what} returned {reason}")
        return value

    def _bounded(self, what: str, function: Callable[[], Any]) -> Any:
        driver, env = self._driver, self._driver.environment
        deadline = env.loaded.config.engine.deadline

        def step() -> Any:
            CURRENT.set(Call(driver.key, what, "", None))
            with process_state.kept(driver.key):
                return function()

        try:
            return env.pool.run(step, timeout=deadline, back=driver.health.back)
        except CallTimeout:
            cause = f"its {what} did not return within {deadline:g} s"
            driver.health.hung(cause)
            raise DeadlineExceeded(driver.what(), cause, "its thread is given up", plugin=driver.key) from None
        except Error as error:
            if not error.plugin:
                error.plugin = driver.key
            raise
        except BaseException as error:
            raise driver.fault(f"its {what} raised {said(error)}") from error


def unfit(driver: Any, family: str, capabilities: Capabilities) -> str:
    """Why an object is no driver of the family, "" when it is one."""
    lacking = missing(driver, PROTOCOLS[family])
    for flag, names, protocol in OPTIONAL.get(family, ()):
        if flag not in capabilities.provides:
            lacking = [name for name in lacking if name not in names]
        else:
            lacking += [name for name in missing(driver, protocol) if name in names and name not in lacking]
    return f"{type(driver).__name__} without {', '.join(lacking)}" if lacking else ""


def provided(capabilities: Mapping[Any, Capabilities]) -> list[tuple[str, str, frozenset[str]]]:
    """(kind that wants, kind that lacks, flags) for each requirement that is not met."""
    unmet = []
    for kind, own in capabilities.items():
        for other, flags in own.requires.items():
            lacking = frozenset(flags) - (capabilities[other].provides if other in capabilities else frozenset())
            if lacking:
                unmet.append((str(kind), str(other), lacking))
    return unmet
