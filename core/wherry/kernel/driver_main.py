"""The process of one driver: ``python -I -m wherry.kernel.driver_main PATH...`` with the sockets at descriptors 3 and 4.

It ends when the engine closes the first of them. Started by ``wherry.kernel.supervisor`` alone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_TOKEN: ContextVar[int] = ContextVar("wherry_call_token", default=0)


class HostContext:
    """``wherry.api.Context`` in a driver's own process: what is not here is asked of the engine."""

    variant: str

    def __init__(self, order: Any, services: Any) -> None:
        self.id = f"{order.family}.{order.id}"
        self.uid = order.uid
        self.root = Path(order.root)
        self.run = Path(order.run)
        self.features = frozenset(order.features)
        self.shim = services.shim
        self.workers = services.workers
        self._services = services
        self._default_variant = order.variant

    def __getattr__(self, name: str) -> str:
        """``variant``: that of the current call."""
        from wherry.kernel.calls import CURRENT

        if name != "variant":
            raise AttributeError(name)
        call = CURRENT.get()
        return (call.variant if call is not None else "") or self._default_variant

    def publish(self, event: Any) -> None:
        """Hands an event to the kernel."""
        self._services.publish(event)

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[Any]:
        """A span below that of the current call; it travels back with the answer."""
        from wherry.interfaces.tracing import span

        return span(name, self.id, **attributes)

    def checkpoint(self) -> None:
        """Raises DeadlineExceeded once the current call's deadline has passed."""
        from wherry.kernel.calls import checkpoint

        checkpoint()

    def hold(self, resource: str) -> None:
        """Adds the resource to the lease of the current call."""
        self._services.hold(resource)

    def credentials(self, host: str) -> tuple[str, str] | None:
        """(user, secret) for a registry host, or None."""
        found: tuple[str, str] | None = self._services.credentials(host)
        return found


class Host:
    """See ``wherry.kernel.supervisor.DriverHost``."""

    def __init__(self, services: Any, objects: dict[str, tuple[Any, Any]]) -> None:
        self._services = services
        self._objects = objects
        self._order: Any = None
        self._registration: Any = None
        self._options: Any = None
        self._context: Any = None
        self._capabilities: Any = None

    def prepare(self, order: Any) -> Any:
        """Import, registration, options, probe, capabilities: the same judges as in the engine's process."""
        from wherry.errors import PluginFault
        from wherry.interfaces.common import Capabilities
        from wherry.kernel.checks import check_for
        from wherry.kernel.discovery import PluginEntry
        from wherry.kernel.plugins import Plugins, said
        from wherry.kernel.structure import StructureError, structure
        from wherry.kernel.supervisor import DriverSetupResult

        entry = PluginEntry(order.family, order.id, order.value, order.distribution, order.version)
        registration = Plugins([entry]).registration(order.family, order.id)
        try:
            self._options = structure(order.table, registration.config)
        except StructureError as error:
            return DriverSetupResult(problems=tuple((issue.path, issue.cause, issue.hint) for issue in error.problems))
        self._order, self._registration = order, registration
        self._context = HostContext(order, self._services)
        what = f"plugin {entry.key} ({entry.distribution} {entry.version})"

        def asked(name: str, annotation: Any) -> Any:
            try:
                value = getattr(registration, name)(self._options, self._context)
            except BaseException as error:
                raise PluginFault(what, f"its {name} raised {said(error)}", plugin=entry.key) from error
            if reason := check_for(annotation)(value):
                raise PluginFault(what, f"its {name} returned {reason}", plugin=entry.key)
            return value

        self._capabilities = asked("capabilities", Capabilities)
        return DriverSetupResult((), asked("probe", str | None), self._capabilities)

    def init(self) -> None:
        """Makes the driver and offers it as the object "driver"."""
        from wherry.errors import Error, PluginFault
        from wherry.kernel.drivers import unfit
        from wherry.kernel.plugins import said
        from wherry.kernel.protocols import protocols

        order = self._order
        key = f"{order.family}.{order.id}"
        what = f"plugin {key} ({order.distribution} {order.version})"
        try:
            driver = self._registration.init(self._options, self._context)
        except Error:
            raise
        except BaseException as error:
            raise PluginFault(what, f"its init raised {said(error)}", plugin=key) from error
        if reason := unfit(driver, order.family, self._capabilities):
            raise PluginFault(what, f"init returned {reason}", plugin=key)
        self._objects["driver"] = (protocols(order.family)[0], _CheckedDriver(driver, order.family, key))


class _CheckedDriver:
    """The driver, with what it returns and raises judged here: an answer of the wrong type may not even be JSON."""

    def __init__(self, driver: Any, family: str, key: str) -> None:
        from wherry.kernel.checks import hints_of, methods_of
        from wherry.kernel.guard import GuardedMethod
        from wherry.kernel.policy import NORMAL
        from wherry.kernel.protocols import protocols

        self._driver = driver
        self._key = key
        self._methods = {
            name: GuardedMethod(name, family, hints_of(function).get("return", Any), NORMAL)
            for name, function in methods_of(protocols(family)[0]).items()
        }

    def __getattr__(self, name: str) -> Any:
        from wherry.errors import PluginFault

        method = self._methods[name]
        try:
            bound = getattr(self._driver, name)
        except AttributeError:
            raise PluginFault(f"{self._key}: {name}", "the driver has no such method", plugin=self._key) from None

        def call(*args: Any, **kwargs: Any) -> Any:
            value = bound(*args, **kwargs)
            if reason := method.check(value):
                raise PluginFault(f"{self._key}: {name}", f"returned {reason}", plugin=self._key)
            if method.item is not None:
                return self._items(value, method.item, name)
            return value

        return call

    def _items(self, values: Iterator[Any], item: Any, name: str) -> Iterator[Any]:
        from wherry.errors import PluginFault

        try:
            for value in values:
                if reason := item.check(value):
                    raise PluginFault(f"{self._key}: {name}", f"yielded {reason}", plugin=self._key)
                yield value
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()


def main() -> None:
    """Serves until the engine closes the socket, then ends without waiting for threads of the plugin."""
    sys.path[:] = sys.argv[1:] or sys.path
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from wherry.errors import Error, PluginFault
    from wherry.interfaces.engine import Span
    from wherry.interfaces.tracing import CURRENT as SPANS
    from wherry.interfaces.tracing import SpanCollector
    from wherry.kernel import supervisor
    from wherry.kernel.calls import CURRENT, Call
    from wherry.kernel.plugins import said
    from wherry.rpc.client import RpcChannel, make_proxy
    from wherry.rpc.codec import encoder
    from wherry.rpc.server import serve

    for fd in (3, 4):
        os.set_inheritable(fd, False)
    name = ["driver"]

    @contextmanager
    def around(along: Any) -> Iterator[Callable[[], Any] | None]:
        along = along if isinstance(along, dict) else {}
        deadline = time.monotonic() + along["d"] if "d" in along else None
        collector = SpanCollector() if "s" in along else None
        resets: list[tuple[ContextVar[Any], Any]] = [
            (CURRENT, CURRENT.set(Call(name[0], "call", along.get("v", ""), deadline))),
            (_TOKEN, _TOKEN.set(along.get("t", 0))),
            (SPANS, SPANS.set((collector, along["s"]) if collector else None)),
        ]
        try:
            yield (lambda: _spans_of(collector, encoder(tuple[Span, ...]))) if collector else None
        finally:
            for variable, token in resets:
                variable.reset(token)

    def fault(what: str, error: BaseException) -> Error:
        return PluginFault(f"{name[0]}: {what}", f"raised {said(error)}", "the plugin is at fault", plugin=name[0])

    services = make_proxy(
        supervisor.EngineServices, RpcChannel(socket.socket(fileno=4), name="the engine", context=_TOKEN.get), ""
    )
    objects: dict[Any, tuple[Any, Any]] = {}
    host = Host(services, objects)

    class Named:
        """Learns the plugin's name from the order."""

        def prepare(self, order: Any) -> Any:
            name[0] = f"{order.family}.{order.id}"
            return host.prepare(order)

        def init(self) -> None:
            host.init()

    serve(supervisor.DriverHost, Named(), socket.socket(fileno=3), others=objects, around=around, fault=fault)
    os._exit(0)


def _spans_of(collector: Any, encode: Callable[[Any], Any]) -> Any:
    spans, collector.spans = tuple(collector.spans), []
    return {"spans": encode(spans)} if spans else None


if __name__ == "__main__":
    main()
