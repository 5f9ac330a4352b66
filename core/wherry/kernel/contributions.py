"""Contributions: hooks that any number of plugins answer. One that fails is named and passed over, or refuses; none hides another."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wherry.errors import DeadlineExceeded, Denied, Error, PluginFault
from wherry.interfaces.common import Descriptor, Event
from wherry.interfaces.engine import RunRequest
from wherry.interfaces.tracing import span
from wherry.kernel.calls import CURRENT, Call, CallTimeout, Pool
from wherry.kernel.config import LoadedConfig
from wherry.kernel.log import logger
from wherry.kernel.merge_patch import fold
from wherry.kernel.plugins import Plugins, said

QUEUE = 1024
"""Events that wait for one listener; older ones stay, newer ones are dropped and counted."""


class Contributions:
    """The hooks that the engine asks for an answer."""

    def __init__(self, loaded: LoadedConfig, plugins: Plugins, pool: Pool) -> None:
        self._loaded = loaded
        self._plugins = plugins
        self._pool = pool
        self._deadline = loaded.config.engine.deadline
        self.lost: dict[str, int] = {}

    def adjust(self, spec: Mapping[str, Any], request: RunRequest) -> tuple[dict[str, Any], dict[str, str]]:
        """The spec with each adjuster's merge patch folded in, and who set each JSON pointer that one changed.

        Order: [engine] adjusters, then the others by id. An adjuster that fails refuses the container (PluginFault and such):
        leaving it out could start it with less confinement than its administrator wants.
        """
        result: dict[str, Any] = copy.deepcopy(dict(spec)) if self._plugins.ids("adjust") else dict(spec)
        owners: dict[str, str] = {}
        for id in self._order():
            key = f"adjust.{id}"
            patch = self.ask("adjust", id, spec=copy.deepcopy(result), request=request)
            if patch is None:
                continue
            if not isinstance(patch, Mapping):
                raise self._wrong(key, patch, "a mapping or None")
            try:
                result = fold(result, patch, key, owners)
            except (TypeError, ValueError, RecursionError) as error:
                raise PluginFault(f"plugin {key}", f"its patch is not JSON: {error}", plugin=key) from None
        return result, owners

    def validate(self, spec: Mapping[str, Any], owners: Mapping[str, str]) -> None:
        """Denied with the reason of the first validator that refuses; PluginFault for one that fails, which refuses too."""
        for id in self._plugins.ids("validate"):
            reason = self.ask("validate", id, spec=copy.deepcopy(dict(spec)), owners=dict(owners))
            if reason is not None and not isinstance(reason, str):
                raise self._wrong(f"validate.{id}", reason, "a string or None")
            if reason:
                raise Denied("container", reason, f"refused by the plugin validate.{id}", plugin=f"validate.{id}")

    def credentials(self, host: str) -> tuple[str, str] | None:
        """The first answer, by id; one that fails is logged and passed over."""
        for id, answer in self._each("credentials", host=host):
            if answer is None:
                continue
            if isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, str) for part in answer):
                return answer[0], answer[1]
            logger.error("plugin credentials.{} returned {}, not (user, secret) or None", id, type(answer).__name__)
        return None

    def gc_roots(self) -> frozenset[str]:
        """What any plugin wants kept. A failing one raises: collecting what it meant to keep can't be undone."""
        roots: set[str] = set()
        for id in self._plugins.ids("gcroots"):
            answer = self.ask("gcroots", id)
            if isinstance(answer, str) or not isinstance(answer, list | tuple | set | frozenset):
                raise self._wrong(f"gcroots.{id}", answer, "a collection of strings")
            for root in answer:
                if not isinstance(root, str):
                    raise self._wrong(f"gcroots.{id}", root, "a string")
                roots.add(root)
        return frozenset(roots)

    def verify(self, name: str, target: Descriptor) -> None:
        """Denied with the reason of the first verifier that refuses; one that fails refuses too."""
        for id in self._plugins.ids("verify"):
            reason = self.ask("verify", id, name=name, target=target)
            if reason is not None and not isinstance(reason, str):
                raise self._wrong(f"verify.{id}", reason, "a string or None")
            if reason:
                raise Denied(f'image "{name}"', reason, f"refused by the plugin verify.{id}", plugin=f"verify.{id}")

    def load(self, family: str, id: str) -> None:
        """Imports the plugin. Raises what is wrong with it."""
        self._bounded(f"{family}.{id}", family, lambda: self._plugins.hook(family, id))

    def ask(self, family: str, id: str, **arguments: Any) -> Any:
        """One plugin's answer, on a pool thread. Raises its Error or OSError, PluginFault, DeadlineExceeded."""
        key = f"{family}.{id}"
        with span(key, key):
            return self._bounded(key, family, lambda: self._plugins.hook(family, id)(**arguments))

    def _bounded(self, key: str, what: str, function: Callable[[], Any]) -> Any:
        def step() -> Any:
            CURRENT.set(Call(key, what, "", None))
            return function()

        try:
            return self._pool.run(step, timeout=self._deadline)
        except CallTimeout:
            self.lost[key] = self.lost.get(key, 0) + 1
            cause = f"did not return within {self._deadline:g} s"
            raise DeadlineExceeded(f"plugin {key}", cause, plugin=key) from None
        except (Error, OSError) as error:
            if not getattr(error, "plugin", ""):
                error.plugin = key  # type: ignore[union-attr]
            raise
        except BaseException as error:
            raise PluginFault(f"plugin {key}", f"raised {said(error)}", plugin=key) from error

    def _each(self, family: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        for id in self._plugins.ids(family):
            try:
                yield id, self.ask(family, id, **arguments)
            except (Error, OSError) as error:
                logger.error("plugin {}.{}: {}", family, id, error)

    def _order(self) -> list[str]:
        stated = list(dict.fromkeys(self._loaded.config.engine.adjusters))
        return stated + [id for id in self._plugins.ids("adjust") if id not in stated]

    @staticmethod
    def _wrong(key: str, value: Any, wanted: str) -> PluginFault:
        return PluginFault(f"plugin {key}", f"returned {type(value).__name__}, not {wanted}", plugin=key)


class Listeners:
    """Event listeners, each on a thread of its own behind a bounded queue: a slow one delays nobody."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._listeners: list[_Listener] | None = None
        self._lock = threading.Lock()

    def notify(self, event: Event) -> None:
        """Queues the event for every listener; returns at once."""
        listeners = self._listeners
        if listeners is None:
            listeners = self._start()
        for listener in listeners:
            listener.put(event)

    def dropped(self) -> dict[str, int]:
        """Events that a listener missed because its queue was full, by plugin."""
        return {each.key: each.dropped for each in self._listeners or () if each.dropped}

    def close(self, timeout: float = 1.0) -> None:
        """Lets each listener finish what is queued, for timeout seconds at most."""
        for listener in self._listeners or ():
            listener.stop()
        for listener in self._listeners or ():
            listener.thread.join(timeout)

    def _start(self) -> list[_Listener]:
        with self._lock:
            if self._listeners is None:
                self._listeners = [
                    _Listener(f"listen.{id}", lambda id=id: self._plugins.hook("listen", id))  # type: ignore[misc]
                    for id in self._plugins.ids("listen")
                ]
            return self._listeners


class _Listener:
    def __init__(self, key: str, load: Callable[[], Callable[..., Any]]) -> None:
        self.key = key
        self.dropped = 0
        self._load = load
        self._queue: queue.Queue[Event | None] = queue.Queue(QUEUE)
        self.thread = threading.Thread(target=self._run, name=f"wherry-{key}", daemon=True)
        self.thread.start()

    def put(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.dropped += 1
            if self.dropped.bit_count() == 1:  # 1, 2, 4, 8 ...: the log must not grow with the loss
                logger.warning("plugin {} is slow: {} events dropped so far", self.key, self.dropped)

    def stop(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._load = None  # type: ignore[assignment]

    def _run(self) -> None:
        try:
            hook = self._load()
        except Error as error:
            logger.error("{}", error)
            return
        while (event := self._queue.get()) is not None and self._load is not None:
            try:
                hook(event=event)
            except BaseException as error:
                logger.error("plugin {} raised {} for {}", self.key, said(error), event.topic)
