"""A span inside each driver call, with its arguments and its result.

The kernel opens a span around every driver call anyway: it tells which plugin took how long. This decorator adds what the call was
about (arguments and result, shortened), the time without the hop to a pool thread, the calls on objects that a driver hands out
(an Ingest) and, for iterators, how many items came and how long the driver took for them. Where it stands among other
decorators shows in the nesting: ``decorate = ["trace", "inject"]`` times what inject adds, ``["inject", "trace"]`` does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from wherry.api import Kind, hookimpl, span


@frozen
class TraceConfig:
    """limit: characters kept of each argument and result; results: whether results are recorded."""

    limit: int = 120
    results: bool = True


#: Judged by the kernel when the config is read.
wherry_config = TraceConfig


class Traced:
    """Stands for a driver, or for an object that a driver handed out."""

    def __init__(self, driver: Any, name: str, plugin: str, config: TraceConfig) -> None:
        self._driver = driver
        self._name = name
        self._plugin = plugin
        self._config = config
        self._methods: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        methods = self.__dict__.get("_methods", {})
        if name in methods:
            return methods[name]
        value = getattr(self._driver, name)
        if not callable(value) or name.startswith("_"):
            return value
        methods[name] = made = self._traced(name, value)
        return made

    def _traced(self, name: str, function: Any) -> Any:
        label = f"{self._name}.{name}"

        def call(*args: Any, **kwargs: Any) -> Any:
            limit = self._config.limit
            arguments = {str(index): short(value, limit) for index, value in enumerate(args)}
            arguments |= {key: short(value, limit) for key, value in kwargs.items()}
            with span(label, self._plugin, layer="decorate.trace", arguments=arguments) as attributes:
                result = function(*args, **kwargs)
                if self._config.results:
                    attributes["result"] = short(result, limit)
            if hasattr(result, "__next__") and not hasattr(result, "read"):
                return self._items(result, label)
            if hasattr(result, "commit") and hasattr(result, "offset"):
                return Traced(result, label, self._plugin, self._config)
            return result

        return call

    def _items(self, items: Iterator[Any], label: str) -> Iterator[Any]:
        count, took = 0, 0
        try:
            while True:
                began = time.perf_counter_ns()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    took += time.perf_counter_ns() - began
                count += 1
                yield item
        finally:
            with span(f"{label} items", self._plugin, layer="decorate.trace", items=count, inside_ns=took):
                close = getattr(items, "close", None)
                if close is not None:
                    close()


def short(value: Any, limit: int) -> str:
    """The repr, cut in the middle of nowhere but never longer than limit characters. Bytes are only counted."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: repr raised {type(error).__name__}>"
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."


@hookimpl
def wherry_decorate(kind: Kind, id: str, driver: object, config: Mapping[str, Any]) -> object:
    return Traced(driver, id, f"{kind}.{id}", TraceConfig(**config))
