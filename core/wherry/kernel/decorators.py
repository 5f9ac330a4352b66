"""Decorators: plugins that wrap any driver. The first named is the outermost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wherry.errors import DeadlineExceeded, Error, PluginFault
from wherry.kernel.calls import CURRENT, Call, CallTimeout, Pool
from wherry.kernel.config import LoadedConfig
from wherry.kernel.drivers import Driver
from wherry.kernel.guard import missing
from wherry.kernel.plugins import Plugins, said
from wherry.kernel.protocols import PROTOCOLS

Blame = Callable[[BaseException], str]


class Decorators:
    """Finds, judges and applies them."""

    def __init__(self, loaded: LoadedConfig, plugins: Plugins, pool: Pool) -> None:
        self._loaded = loaded
        self._plugins = plugins
        self._pool = pool

    def need(self, id: str) -> None:
        """Raises what is wrong with a decorator: NotFound, PluginFault, Invalid for its table."""
        self._bounded(id, "import", lambda: self._plugins.hook("decorate", id))
        self._bounded(id, "config", lambda: self._plugins.table(self._loaded, "decorate", id))

    def wrap(self, driver: Driver, inner: Any, ids: Sequence[str]) -> tuple[Any, Blame | None]:
        """The driver inside its decorators, and who is to blame for an exception that comes out of them."""
        modules: dict[str, str] = {}
        wrapped = inner
        for id in reversed(ids):
            wrapped = self._wrap_one(driver, wrapped, id)
            modules[self._plugins.entry("decorate", id).value.partition(":")[0]] = f"decorate.{id}"
        if not modules:
            return inner, None
        own = type(inner).__module__
        return wrapped, lambda error: _blame(error, modules, own, driver.key)

    def _wrap_one(self, driver: Driver, inner: Any, id: str) -> Any:
        hook = self._plugins.hook("decorate", id)
        table = self._plugins.table(self._loaded, "decorate", id)
        wrapped = self._bounded(id, "hook", lambda: hook(kind=driver.family, id=driver.id, driver=inner, config=table))
        lacking = [
            name
            for name in missing(wrapped, PROTOCOLS[driver.family])
            if name not in missing(inner, PROTOCOLS[driver.family])
        ]
        if wrapped is None or lacking:
            what = "None" if wrapped is None else f"{type(wrapped).__name__} without {', '.join(lacking)}"
            hint = f"it must answer a {PROTOCOLS[driver.family].__name__}, or the driver it was given"
            raise PluginFault(
                f"plugin decorate.{id}",
                f"wherry_decorate returned {what} for {driver.key}",
                hint,
                plugin=f"decorate.{id}",
            )
        return wrapped

    def _bounded(self, id: str, what: str, function: Callable[[], Any]) -> Any:
        key, deadline = f"decorate.{id}", self._loaded.config.engine.deadline

        def step() -> Any:
            CURRENT.set(Call(key, what, "", None))
            return function()

        try:
            return self._pool.run(step, timeout=deadline)
        except CallTimeout:
            raise DeadlineExceeded(
                f"plugin {key}", f"its {what} did not return within {deadline:g} s", plugin=key
            ) from None
        except Error:
            raise
        except BaseException as error:
            raise PluginFault(f"plugin {key}", f"its {what} raised {said(error)}", plugin=key) from error


def _blame(error: BaseException, modules: dict[str, str], own: str, driver: str) -> str:
    """The plugin of the innermost frame of the traceback that belongs to one of them."""
    guilty, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if name == own or name.startswith(own + "."):
            guilty = driver
        else:
            guilty = next(
                (key for module, key in modules.items() if name == module or name.startswith(module + ".")), guilty
            )
        trace = trace.tb_next
    return guilty
