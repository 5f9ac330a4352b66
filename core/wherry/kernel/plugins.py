"""The typed face of the plugin manager: nobody else calls pluggy.

Only modules of the family in question are imported, each hook implementation is called on its own, and every way in which a
plugin can be wrong becomes one typed error that names it.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

from wherry.errors import Error, Invalid, NotFound, PluginFault, suggest
from wherry.hookspecs import FAMILY_HOOK, Hooks
from wherry.interfaces.config import Origin
from wherry.interfaces.kernel import API, Registration
from wherry.kernel import process_state
from wherry.kernel.discovery import PluginEntry, cache_directory, discover
from wherry.kernel.structure import StructureError, structure
from wherry.linux import userns

if TYPE_CHECKING:
    from wherry.kernel.config import LoadedConfig

REGISTERED = ("store", "snapshotter", "isolation", "network", "transport", "log", "volume", "frontend")
"""Families whose hook answers a Registration."""

Call = Callable[..., Any]


class Plugins:
    """What is installed. Thread-safe; an import happens once, its failure is remembered."""

    def __init__(self, entries: Collection[PluginEntry] | None = None) -> None:
        self.entries = tuple(discover(cache_directory(os.environ, userns.outer_uid())) if entries is None else entries)
        self._manager: pluggy.PluginManager | None = None
        self._lock = threading.RLock()
        self._locks: dict[str, threading.RLock] = {}
        self._objects: dict[str, object] = {}
        self._failed: dict[str, Error] = {}
        self._registrations: dict[str, Registration[Any, Any]] = {}
        self._ids: dict[str, tuple[str, ...]] = {}

    # what there is

    def ids(self, family: str) -> tuple[str, ...]:
        """Ids of the family, usable or not, in alphabetical order."""
        found = self._ids.get(family)
        if found is None:
            ids = (entry.id for entry in self.entries if entry.family == family)
            found = self._ids[family] = tuple(dict.fromkeys(ids))
        return found

    def entry(self, family: str, id: str) -> PluginEntry:
        """The entry point. NotFound offers the nearest names; PluginFault when its name is bad or claimed twice."""
        for entry in self.entries:
            if entry.family == family and entry.id == id:
                if entry.problem:
                    raise self._fault(
                        entry, entry.problem, "uninstall or rename one of them" if "claimed" in entry.problem else ""
                    )
                return entry
        known = self.ids(family)
        word = "driver" if family in REGISTERED else "plugin"
        raise NotFound(f'{family} {word} "{id}"', "not installed", suggest(id, known, count=3))

    # modules and hooks

    def hook(self, family: str, id: str) -> Call:
        """The plugin's implementation of its family's hook, imported on demand. Raises NotFound, PluginFault."""
        entry = self.entry(family, id)
        with self._own_lock(entry.key):
            if entry.key in self._failed:
                raise self._failed[entry.key]
            try:
                return self._hook(entry)
            except PluginFault as fault:
                self._failed[entry.key] = fault
                raise

    def _own_lock(self, key: str) -> threading.RLock:
        """A lock for each plugin: one whose import hangs holds up no other."""
        with self._lock:
            return self._locks.setdefault(key, threading.RLock())

    def _hook(self, entry: PluginEntry) -> Call:
        plugin = self._load(entry)
        name = FAMILY_HOOK[entry.family]
        implementations = [impl for impl in getattr(self._pluggy().hook, name).get_hookimpls() if impl.plugin is plugin]
        if not implementations:
            raise self._fault(
                entry, f"{entry.value} does not implement the hook {name}", "is it marked with @hookimpl?"
            )
        implementation = implementations[-1]
        if implementation.hookwrapper or implementation.wrapper:
            raise self._fault(
                entry, f"{name} is a hook wrapper", "every hook is called on its own: wrappers have no place"
            )
        function, wanted = implementation.function, implementation.argnames

        def call(**arguments: Any) -> Any:
            return function(*[arguments[argument] for argument in wanted])

        return call

    def module(self, family: str, id: str) -> object:
        """The module (or object) behind the entry point, imported and registered."""
        self.hook(family, id)
        return self._objects[self.entry(family, id).value]

    def _load(self, entry: PluginEntry) -> object:
        if entry.value in self._objects:
            return self._objects[entry.value]
        module, _, attributes = entry.value.partition(":")
        with process_state.kept(entry.key):
            try:
                plugin: object = importlib.import_module(module.strip())
                for attribute in filter(None, attributes.partition("[")[0].strip().split(".")):
                    plugin = getattr(plugin, attribute)
            except BaseException as error:  # SystemExit at import time is the plugin's fault as well
                raise self._fault(entry, f"importing {entry.value} raised {said(error)}") from error
        manager = self._pluggy()
        try:
            with self._lock:
                manager.register(plugin, name=entry.value)
                manager.check_pending()
        except (pluggy.PluginValidationError, ValueError, TypeError) as error:
            if manager.is_registered(plugin):
                manager.unregister(plugin)
            text = " ".join(str(error).split())
            raise self._fault(
                entry, f"bad hook in {entry.value}: {text}", "the hooks are in wherry.hookspecs"
            ) from None
        self._objects[entry.value] = plugin
        return plugin

    def _pluggy(self) -> pluggy.PluginManager:
        with self._lock:
            if self._manager is None:
                self._manager = pluggy.PluginManager("wherry")
                self._manager.add_hookspecs(Hooks)
            return self._manager

    # registrations

    def registration(self, family: str, id: str) -> Registration[Any, Any]:
        """What the plugin registers, checked. Raises NotFound, PluginFault."""
        key = f"{family}.{id}"
        with self._own_lock(key):
            if key in self._registrations:
                return self._registrations[key]
            hook = self.hook(family, id)
            try:
                registration = self._checked(self.entry(family, id), hook)
            except PluginFault as fault:
                self._failed[key] = fault
                raise
            self._registrations[key] = registration
            return registration

    def _checked(self, entry: PluginEntry, hook: Call) -> Registration[Any, Any]:
        name = FAMILY_HOOK[entry.family]
        registration: Any
        try:
            registration = hook()
        except BaseException as error:
            raise self._fault(entry, f"{name} raised {said(error)}") from error
        if not isinstance(registration, Registration):
            raise self._fault(entry, f"{name} returned {type(registration).__name__}, not Registration")
        if registration.api != API:
            hint = "install a release of it for this version"
            raise self._fault(entry, f"it was built for API version {registration.api!r}, this is version {API}", hint)
        if registration.id != entry.id:
            cause = f'it registers the id "{registration.id}", its entry point says "{entry.id}"'
            raise self._fault(entry, cause, "make the two equal")
        config: Any = registration.config
        if not isinstance(config, type) or not attrs.has(config):
            raise self._fault(entry, f"its config {config!r} is no attrs class")
        for part in ("init", "probe", "capabilities"):
            if not callable(getattr(registration, part)):
                raise self._fault(entry, f"its {part} {getattr(registration, part)!r} can't be called")
        return registration

    def options(self, loaded: LoadedConfig, family: str, id: str, cls: type[Any]) -> Any:
        """[plugin.<family>.<id>] as the plugin's own record. Raises Invalid with every problem."""
        return options(loaded, family, id, cls)

    def origins(self, loaded: LoadedConfig) -> tuple[Origin, ...]:
        """Every value that counts: those of loaded, then what the plugins' own tables leave to their defaults. A plugin that can't be
        asked has none; ``wherry plugins`` says why."""
        from wherry.kernel.config import DEFAULTS

        found = list(loaded.origins)
        given = {origin.key for origin in found}
        for family in FAMILY_HOOK:
            for id in self.ids(family):
                try:
                    cls = self._record(family, id)
                    record = None if cls is None else options(loaded, family, id, cls)
                except Error:
                    continue
                table = f"plugin.{family}.{id}"
                for key, value in (attrs.asdict(record) if record is not None else {}).items():
                    if not any(one == f"{table}.{key}" or one.startswith(f"{table}.{key}.") for one in given):
                        found.append(Origin(f"{table}.{key}", _plain(value), DEFAULTS))
        return tuple(found)

    # defaults

    def default_config(self) -> str:
        """The TOML text of the defaults hook. With several, the first by id; a broken one is passed over if another works."""
        fault: Error | None = None
        for id in self.ids("defaults"):
            try:
                text = self.hook("defaults", id)()
            except Error as error:
                fault = fault or error
                continue
            except BaseException as error:
                fault = fault or self._fault(self.entry("defaults", id), f"wherry_default_config raised {said(error)}")
                continue
            if isinstance(text, str):
                return text
            cause = f"wherry_default_config returned {type(text).__name__}, not str"
            fault = fault or self._fault(self.entry("defaults", id), cause)
        if fault:
            raise fault
        return ""

    # the judge of a config file

    def check(self, loaded: LoadedConfig) -> list[Error]:
        """Names of drivers that are not installed and plugin tables that do not fit, without initialising anything."""
        return list(self._names(loaded)) + list(self._tables(loaded))

    def _names(self, loaded: LoadedConfig) -> Iterator[Error]:
        config = loaded.config
        wanted: list[tuple[tuple[str, ...], str, str]] = []
        for name, variant in config.variant.items():
            for family in ("store", "snapshotter", "isolation", "network", "decorate"):
                wanted += [(("variant", name, family), family, id) for id in getattr(variant, family) or ()]
        wanted += [(("engine", "frontends"), "frontend", id) for id in config.engine.frontends]
        wanted += [(("engine", "adjusters"), "adjust", id) for id in config.engine.adjusters]
        keys = ("log", "transport", "volume")
        wanted += [(("engine", key), key, id) for key in keys if (id := getattr(config.engine, key))]
        for path, family, id in wanted:
            try:
                self.entry(family, id)
            except Error as error:
                word = "driver" if family in REGISTERED else "plugin"
                yield Invalid(loaded.place(*path), f'{family} {word} "{id}": {error.cause}', error.hint)

    def _tables(self, loaded: LoadedConfig) -> Iterator[Error]:
        from wherry.kernel.config import ConfigErrors

        for family, tables in loaded.config.plugin.items():
            if family not in FAMILY_HOOK:
                yield Invalid(
                    loaded.place("plugin", family), f'unknown family "{family}"', suggest(family, FAMILY_HOOK)
                )
                continue
            for id in tables:
                try:
                    self.entry(family, id)
                    self.table(loaded, family, id)
                except NotFound as error:
                    yield Invalid(
                        loaded.place("plugin", family, id), f'no {family} plugin "{id}" is installed', error.hint
                    )
                except ConfigErrors as error:
                    yield from error.problems
                except Error as error:
                    yield error

    def table(self, loaded: LoadedConfig, family: str, id: str) -> Mapping[str, Any]:
        """The plugin's own table, judged by its config class: that of its registration, or ``wherry_config`` in a module of a
        family without one. Raises Invalid."""
        cls = self._record(family, id)
        if cls is not None:
            options(loaded, family, id, cls)
        table = dict(loaded.config.plugin.get(family, {}).get(id, {}))
        table.pop("process", None)
        return table

    def _record(self, family: str, id: str) -> type[Any] | None:
        """The class of its table, None where any table will do."""
        if family in REGISTERED:
            return self.registration(family, id).config
        cls = getattr(self.module(family, id), "wherry_config", None)
        return cls if isinstance(cls, type) and attrs.has(cls) else None

    def _fault(self, entry: PluginEntry, cause: str, hint: str = "") -> PluginFault:
        what = f"plugin {entry.key} ({entry.distribution} {entry.version})"
        if "claimed by" in cause:
            what = f"plugin {entry.key}"
        return PluginFault(what, cause, hint, plugin=entry.key)


def options(loaded: LoadedConfig, family: str, id: str, cls: type[Any]) -> Any:
    """[plugin.<family>.<id>], less the kernel's own key ``process``, as cls. Raises Invalid naming file, table and key."""
    from wherry.kernel.config import combined

    table = dict(loaded.config.plugin.get(family, {}).get(id, {}))
    table.pop("process", None)
    try:
        return structure(table, cls)
    except StructureError as error:
        problems: list[Error] = [
            Invalid(loaded.place("plugin", family, id, *issue.path), issue.cause, issue.hint, plugin=f"{family}.{id}")
            for issue in error.problems
        ]
        raise combined(problems, loaded.file) from None


def _plain(value: Any) -> Any:
    """As TOML would have it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def in_process(loaded: LoadedConfig, family: str, id: str) -> bool:
    """Whether the driver has a process of its own. Raises Invalid when the key is no boolean."""
    value = loaded.config.plugin.get(family, {}).get(id, {}).get("process", False)
    if not isinstance(value, bool):
        raise Invalid(loaded.place("plugin", family, id, "process"), f"{value!r} is not true or false")
    return value


def said(error: BaseException) -> str:
    """An exception in a message: class and text, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@cache
def installed() -> Plugins:
    """The plugins of this interpreter, found once."""
    return Plugins()
