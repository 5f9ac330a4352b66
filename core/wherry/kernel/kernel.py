"""The kernel: which drivers there are, which are put together, and everything that is asked of plugins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from wherry.errors import Error
from wherry.hookspecs import FAMILY_HOOK
from wherry.interfaces.common import Capabilities, Descriptor, Event, Kind
from wherry.interfaces.config import Origin, PluginInfo
from wherry.interfaces.contributions import Frontend, LogDriver, Transport, VolumeDriver
from wherry.interfaces.engine import RunRequest, Span
from wherry.interfaces.kernel import Workers
from wherry.interfaces.process import Shim
from wherry.interfaces.tracing import SpanCollector, collecting
from wherry.kernel import calls, features
from wherry.kernel.calls import Pool
from wherry.kernel.config import LoadedConfig
from wherry.kernel.context import DriverContext
from wherry.kernel.contributions import Contributions, Listeners
from wherry.kernel.decorators import Decorators
from wherry.kernel.drivers import Driver, DriverEnvironment
from wherry.kernel.plugins import REGISTERED, Plugins, in_process, installed
from wherry.kernel.variants import KINDS, Drivers, Variants
from wherry.linux import userns

T = TypeVar("T")


class Kernel:
    """One per engine. Every driver it gives out is guarded (see ``wherry.kernel.guard``). Thread-safe."""

    def __init__(
        self,
        config: LoadedConfig,
        *,
        root: Path,
        run: Path,
        shim: Shim,
        workers: Workers,
        publish: Callable[[Event], None],
        plugins: Plugins | None = None,
    ) -> None:
        self.loaded = config
        self.root = root
        self.run = run
        self.shim = shim
        self.workers = workers
        self._publish = publish
        self._plugins = plugins or installed()
        self._pool = Pool()
        self._lock = threading.RLock()
        self._drivers: dict[str, Driver] = {}
        self._collectors: dict[str, SpanCollector] = {}
        environment = DriverEnvironment(config, self._plugins, self._pool, self._context)
        self._environment = environment
        self._decorators = Decorators(config, self._plugins, self._pool)
        self._variants = Variants(config, self._pool, self._driver, self._decorators)
        self._contributions = Contributions(config, self._plugins, self._pool)
        self._listeners = Listeners(self._plugins)

    # drivers

    def variant(self, name: str = "", *, store: str = "", snapshotter: str = "", isolation: str = "") -> Drivers:
        """The drivers of a variant ("" is the default one), one kind or another overridden.

        Raises NotFound (unknown variant or driver), Invalid (a pairing that can't work), Unavailable (none of a list can run;
        every reason is in the text), PluginFault.
        """
        return self._variants.get(name, store, snapshotter, isolation)

    def able(self, variant: str, kind: Kind, flag: str) -> str:
        """The id of the first driver in a variant's list that can run and provides a flag; "" without one. NotFound."""
        return self._variants.able(variant, kind, flag)

    def driver(self, kind: str, id: str) -> Any:
        """A driver by itself, without decorators. Raises NotFound, Unavailable, PluginFault."""
        return self._variants.guarded(kind, id)

    def capabilities(self, kind: str, id: str) -> Capabilities:
        """A driver's flags, without initialising it."""
        return self._driver(kind, id).capabilities()

    def transport(self, id: str) -> Transport:
        """A transport by its id, the prefix of a reference."""
        return cast(Transport, self.driver("transport", id))

    def transports(self) -> tuple[str, ...]:
        """Ids of all transports: the prefixes that a reference may have."""
        return self._plugins.ids("transport")

    def log(self, id: str = "") -> LogDriver:
        """A log driver; "" is that of [engine] log."""
        return cast(LogDriver, self.driver("log", id or self.loaded.config.engine.log))

    def volume(self, id: str) -> VolumeDriver:
        """A volume driver."""
        return cast(VolumeDriver, self.driver("volume", id))

    def frontend(self, id: str) -> Frontend:
        """A front end. Its serve and handle run on the thread that calls them, without a deadline."""
        return cast(Frontend, self.driver("frontend", id))

    # contributions

    def adjust(self, spec: Mapping[str, Any], request: RunRequest) -> tuple[dict[str, Any], dict[str, str]]:
        """The spec after all adjusters, and JSON pointer -> "adjust.<id>" for what they set."""
        return self._contributions.adjust(spec, request)

    def validate(self, spec: Mapping[str, Any], owners: Mapping[str, str]) -> None:
        """Raises Denied when a validator refuses the merged spec."""
        self._contributions.validate(spec, owners)

    def notify(self, event: Event) -> None:
        """Hands an event to every listener, without waiting for any."""
        self._listeners.notify(event)

    def credentials(self, host: str) -> tuple[str, str] | None:
        """(user, secret) for a registry host, from the first plugin that knows it."""
        return self._contributions.credentials(host)

    def gc_roots(self) -> frozenset[str]:
        """Resources that plugins want kept, written as in Context.hold."""
        return self._contributions.gc_roots()

    def verify(self, name: str, target: Descriptor) -> None:
        """Raises Denied when a verifier refuses the image."""
        self._contributions.verify(name, target)

    def together(self, function: Callable[..., T], *args: Any) -> T:
        """Runs work that calls several drivers in a row: cheaper than as many calls one by one, with the same deadline for each.

        When one hangs, DeadlineExceeded is raised here, and nothing of the work goes on: what has to be taken back is the
        caller's. So no lock may be held inside that a hanging call would keep.
        """
        return cast("T", self._pool.together(function, args, self.loaded.config.engine.deadline))

    # leases and spans

    def holding(self, callback: Callable[[str], None]) -> AbstractContextManager[None]:
        """Inside, ``Context.hold(resource)`` of any driver calls callback(resource): the current lease."""
        return calls.holding(callback)

    @contextmanager
    def tracing(self, key: str) -> Iterator[SpanCollector]:
        """Collects the spans of everything that runs inside under key; a second time adds to the first."""
        with self._lock:
            collector = self._collectors.setdefault(key, SpanCollector())
        with collecting(collector):
            yield collector

    def spans(self, key: str) -> tuple[Span, ...]:
        """What was collected under key so far, () for nothing."""
        collector = self._collectors.get(key)
        return tuple(collector.spans) if collector else ()

    def drop_spans(self, key: str) -> None:
        """Forgets what was collected under key."""
        with self._lock:
            self._collectors.pop(key, None)

    # what it is made of

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin with its state and, where it can't be used, the reason. Imports all of them."""
        return tuple(self._info(entry) for entry in self._plugins.entries)

    def usable(self, family: str, *, used: bool = False) -> tuple[str, ...]:
        """Ids of the plugins of a family that can run here. used: only those at work already, or with state on disk: one that was never
        used has nothing, and need not be loaded to say so."""
        found = []
        for entry in self._plugins.entries:
            if entry.family == family:
                state = self._info(entry).state
                there = not used or (self.root / family / entry.id).is_dir()
                if state == "ready" or (state == "available" and there):
                    found.append(entry.id)
        return tuple(sorted(found))

    def at_work(self, family: str) -> tuple[str, ...]:
        """Ids of the drivers of a family that this engine has had a use for."""
        drivers = list(self._drivers.items())
        return tuple(
            sorted(key.partition(".")[2] for key, one in drivers if key.startswith(f"{family}.") and one.at_work)
        )

    def chosen(self) -> dict[str, dict[Kind, str]]:
        """variant -> kind -> driver, for every variant of the config; a kind without a working driver is left out."""
        return {
            name: {kind: choice for kind in KINDS if (choice := self._chosen(name, kind)[0])}
            for name in self.loaded.config.variant
        }

    def passed_over(self) -> dict[str, dict[Kind, dict[str, str]]]:
        """variant -> kind -> driver -> the reason why it was not taken."""
        return {
            name: {kind: passed for kind in KINDS if (passed := self._chosen(name, kind)[1])}
            for name in self.loaded.config.variant
        }

    def features(self) -> frozenset[str]:
        """What the Linux kernel can do (see ``Context.features``)."""
        return features.probe()

    def config(self) -> tuple[Origin, ...]:
        """The effective config, each value with its origin."""
        return self._plugins.origins(self.loaded)

    def close(self) -> None:
        """Lets listeners finish, ends drivers' processes and idle threads, and has drivers let go of what they hold."""
        self._listeners.close()
        for driver in list(self._drivers.values()):
            driver.close()
        self._pool.close()

    def _driver(self, family: str, id: str) -> Driver:
        key = f"{family}.{id}"
        try:
            return self._drivers[key]
        except KeyError:
            pass
        with self._lock:
            if key not in self._drivers:
                self._plugins.entry(family, id)
                self._drivers[key] = Driver(family, id, self._environment)
            return self._drivers[key]

    def _context(self, family: str, id: str) -> DriverContext:
        return DriverContext(
            f"{family}.{id}",
            uid=userns.outer_uid(),
            root=self.root / family / id,
            run=self.run / family / id,
            features=features.probe(),
            shim=self.shim,
            workers=self.workers,
            publish=self._publish,
            credentials=self.credentials,
            default_variant=self.loaded.config.default,
        )

    def _chosen(self, name: str, kind: Kind) -> tuple[str, dict[str, str]]:
        try:
            choice = self._variants.choose(name, kind, getattr(self._variants.resolve(name), kind))
        except Error as error:
            ids: tuple[str, ...] = ()
            if name in self.loaded.config.variant:
                ids = getattr(self._variants.resolve(name), kind)
            reasons: dict[str, str] = {}
            for id in ids:
                try:
                    reasons[id] = self._driver(kind, id).probe() or error.cause
                except Error as own:
                    reasons[id] = str(own)
            return "", reasons
        return choice.id, dict(choice.passed_over)

    def _info(self, entry: Any) -> PluginInfo:
        process, lost = False, self._contributions.lost.get(entry.key, 0)
        state: Any = "available"
        reason = entry.problem
        if reason:
            state = "failed"
        elif entry.family in REGISTERED:
            driver = self._driver(entry.family, entry.id)
            state, reason = driver.state()
            process, lost = driver.process, driver.health.lost_threads
        elif entry.family in FAMILY_HOOK:
            try:
                process = in_process(self.loaded, entry.family, entry.id)
                self._contributions.load(entry.family, entry.id)
                self._plugins.table(self.loaded, entry.family, entry.id)
            except Error as error:
                state, reason = "failed", str(error)
        return PluginInfo(entry.family, entry.id, entry.distribution, entry.version, state, reason, process, lost)
