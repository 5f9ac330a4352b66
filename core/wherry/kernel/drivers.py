"""From a plugin's name to a guarded driver, step by step, each step done once and its outcome remembered.

import -> registration -> options -> probe -> init. A failed import, registration or table stays failed; a failed init is tried
again after a backoff, since what it lacked may have come meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import frozen

from wherry.errors import DeadlineExceeded, Error, PluginFault, Unavailable
from wherry.interfaces.common import Capabilities
from wherry.interfaces.contributions import Frontend, LogDriver, Transport, VolumeDriver
from wherry.interfaces.isolation import Checkpointer, Isolation
from wherry.interfaces.kernel import Registration
from wherry.interfaces.network import Network
from wherry.interfaces.snapshotter import LayerSnapshotter, Snapshotter
from wherry.interfaces.store import Store
from wherry.kernel import process_state
from wherry.kernel.calls import CURRENT, Abandoned, Call, Pool
from wherry.kernel.checks import check_for
from wherry.kernel.config import LoadedConfig
from wherry.kernel.context import DriverContext, make_directories
from wherry.kernel.discovery import Entry
from wherry.kernel.guard import missing
from wherry.kernel.health import Health
from wherry.kernel.plugins import Plugins, in_process, options, said

PROTOCOLS: dict[str, Any] = {
    "store": Store,
    "snapshotter": Snapshotter,
    "isolation": Isolation,
    "network": Network,
    "transport": Transport,
    "log": LogDriver,
    "volume": VolumeDriver,
    "frontend": Frontend,
}
OPTIONAL: dict[str, tuple[tuple[str, frozenset[str], Any], ...]] = {
    "snapshotter": (("apply", frozenset({"apply"}), LayerSnapshotter), ("diff", frozenset({"diff"}), LayerSnapshotter)),
    "isolation": (("checkpoint", frozenset({"checkpoint", "restore"}), Checkpointer),),
    "transport": (("push", frozenset({"push"}), Transport),),
}
"""family -> (flag, methods that only drivers with the flag need to have, the Protocol they stand in)."""


@frozen
class Environment:
    """What every driver of a kernel shares."""

    loaded: LoadedConfig
    plugins: Plugins
    pool: Pool
    context: Callable[[str, str], DriverContext]


class Driver:
    """One driver, shared by all variants that name it. Thread-safe."""

    def __init__(self, family: str, id: str, environment: Environment) -> None:
        self.family = family
        self.id = id
        self.key = f"{family}.{id}"
        self.environment = environment
        self.health = Health(self.key)
        self.process = False
        self._lock = threading.RLock()
        self._registration: Registration[Any, Any] | None = None
        self._options: Any = None
        self._probed: tuple[str | None] | None = None
        self._capabilities: Capabilities | None = None
        self._driver: Any = None
        self._broken: Error | None = None
        self._failure: Error | None = None
        self._context: DriverContext | None = None
        self.on_hang: Callable[[], None] | None = None

    # what `wherry plugins` shows

    def state(self) -> tuple[Literal["ready", "available", "skipped", "failed"], str]:
        """(state, reason); imports and probes when that was not done yet."""
        if self._driver is not None:
            if self.health.open:
                return "failed", self.health.reason
            return "ready", ""
        if self._failure is not None:
            return "failed", str(self._failure)
        try:
            reason = self.probe()
        except Error as error:
            return "failed", str(error)
        return ("skipped", reason) if reason else ("available", "")

    # the steps

    def prepare(self) -> tuple[Registration[Any, Any], Any, DriverContext]:
        """Import, registration and options. Raises NotFound, PluginFault, Invalid."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._registration is None or self._context is None:
                env = self.environment
                try:
                    env.plugins.entry(self.family, self.id)
                    self.process = in_process(env.loaded, self.family, self.id)
                    registration = self._bounded("import", lambda: env.plugins.registration(self.family, self.id))
                    self._options = options(env.loaded, self.family, self.id, registration.config)
                except Error as error:
                    self._broken = error
                    raise
                self._context = env.context(self.family, self.id)
                self._registration = registration
            return self._registration, self._options, self._context

    def probe(self) -> str | None:
        """The reason why it can't run here, or None; asked once. Raises as prepare does."""
        with self._lock:
            if self._probed is None:
                registration, config, context = self.prepare()
                self._probed = (self._asked("probe", lambda: registration.probe(config, context), str | None),)
            return self._probed[0]

    def capabilities(self) -> Capabilities:
        """Its flags; asked once. Raises as prepare does."""
        with self._lock:
            if self._capabilities is None:
                registration, config, context = self.prepare()
                self._capabilities = self._asked(
                    "capabilities", lambda: registration.capabilities(config, context), Capabilities
                )
            return self._capabilities

    def get(self) -> Any:
        """The driver itself, unguarded, initialised at the first call. Raises as prepare does, and Unavailable for a probe
        that says no or an init that failed a moment ago."""
        if self._driver is not None:
            return self._driver
        with self._lock:
            if self._driver is None:
                if self._failure is not None:
                    if not self.health.due():
                        raise self._failure
                    self._failure = None
                if reason := self.probe():
                    raise Unavailable(f'{self.family} driver "{self.id}"', reason, "it can't run here", plugin=self.key)
                try:
                    self._driver = self._init()
                except Error as error:
                    self._failure = error
                    self.health.fail(f"its init failed: {error.cause}")
                    raise
                self.health.reset()
            return self._driver

    def _init(self) -> Any:
        registration, config, context = self.prepare()
        make_directories(context.root, context.run)
        if self.process:
            from wherry.kernel.remote import RemoteDriver

            return RemoteDriver(self, context).driver()
        driver = self._bounded("init", lambda: registration.init(config, context))
        self.judge(driver)
        return driver

    def close(self) -> None:
        """Ends the driver's own process, if it has one."""
        if self.process and self._driver is not None:
            self._driver.close()

    def judge(self, driver: Any) -> None:
        """Raises PluginFault when the object is no driver of this family."""
        lacking = missing(driver, PROTOCOLS[self.family])
        flags = self.capabilities().provides
        for flag, names, protocol in OPTIONAL.get(self.family, ()):
            if flag in flags:
                lacking += [
                    name for name in missing(driver, protocol) if name in (names or {flag}) and name not in lacking
                ]
            else:
                lacking = [name for name in lacking if name not in names]
        if lacking:
            cause = f"init returned {type(driver).__name__} without {', '.join(lacking)}"
            raise self.fault(cause, f"the Protocol is {PROTOCOLS[self.family].__name__} in wherry.api")

    def _asked(self, what: str, ask: Callable[[], Any], annotation: Any) -> Any:
        value = self._bounded(what, ask)
        if reason := check_for(annotation)(value):
            raise self.fault(f"{what} returned {reason}")
        return value

    def _bounded(self, what: str, function: Callable[[], Any]) -> Any:
        """A step of the plugin's own code, on a pool thread with the deadline, every exception named."""
        env = self.environment
        deadline = env.loaded.config.engine.deadline

        def step() -> Any:
            CURRENT.set(Call(self.key, what, "", None))
            with process_state.kept(self.key):
                return function()

        try:
            return env.pool.run(step, timeout=deadline, back=self.health.back)
        except Abandoned:
            self.health.hung(f"its {what} did not return within {deadline:g} s")
            cause = f"its {what} did not return within {deadline:g} s"
            raise DeadlineExceeded(self._what(), cause, plugin=self.key) from None
        except Error as error:
            if not error.plugin:
                error.plugin = self.key
            raise
        except BaseException as error:
            raise self.fault(f"its {what} raised {said(error)}") from error

    def fault(self, cause: str, hint: str = "") -> PluginFault:
        """A fault of this plugin."""
        return PluginFault(self._what(), cause, hint, plugin=self.key)

    def _what(self) -> str:
        try:
            entry: Entry = self.environment.plugins.entry(self.family, self.id)
        except Error:
            return f"plugin {self.key}"
        return f"plugin {self.key} ({entry.distribution} {entry.version})"


def provided(capabilities: Mapping[Any, Capabilities]) -> list[tuple[str, str, frozenset[str]]]:
    """(kind that wants, kind that lacks, flags) for each requirement that is not met."""
    unmet = []
    for kind, own in capabilities.items():
        for other, flags in own.requires.items():
            lacking = frozenset(flags) - (capabilities[other].provides if other in capabilities else frozenset())
            if lacking:
                unmet.append((str(kind), str(other), lacking))
    return unmet
