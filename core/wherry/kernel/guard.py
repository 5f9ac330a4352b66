"""What stands between the engine and a driver: every object that the kernel hands out is one of these.

For each Protocol a class is made with one method per method of the Protocol. It takes a place in the driver's Health, opens a
span, calls on a pool thread with a deadline, lets ``Error`` and ``OSError`` pass with ``.plugin`` set, turns everything else into
PluginFault, and checks the answer against the Protocol's annotation.
"""

from __future__ import annotations

import collections.abc
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, BinaryIO, get_args, get_origin

from wherry.errors import DeadlineExceeded, Error, PluginFault
from wherry.interfaces.engine import Span
from wherry.interfaces.tracing import CURRENT as SPANS
from wherry.interfaces.tracing import describe, new_id
from wherry.kernel.breaker import CircuitBreaker
from wherry.kernel.calls import CURRENT, Call, CallerGone, CallThread, CallTimeout, Interrupted, Pool, carrier
from wherry.kernel.checks import attributes_of, check_for, hints_of, is_protocol, methods_of, owner_of
from wherry.kernel.plugins import said
from wherry.kernel.policy import NORMAL, POLICIES, Policy

MAX_BATCH = 64
BATCH_SECONDS = 0.001


class GuardTarget:
    """Whom a guard calls, and under which rules. blame names the plugin behind an exception when drivers are wrapped.

    isolated: the driver lives in a process of its own and the calls below keep the deadline themselves: no hop is needed.
    """

    __slots__ = ("blame", "deadline", "health", "isolated", "on_hang", "plugin", "pool", "variant")

    def __init__(
        self,
        plugin: str,
        pool: Pool,
        health: CircuitBreaker,
        *,
        deadline: float,
        variant: str = "",
        isolated: bool = False,
        on_hang: Callable[[], None] | None = None,
        blame: Callable[[BaseException], str] | None = None,
    ) -> None:
        self.plugin = plugin
        self.pool = pool
        self.health = health
        self.deadline = deadline
        self.variant = variant
        self.isolated = isolated
        self.on_hang = on_hang
        self.blame = blame


class GuardedMethod:
    """What the guard knows of one method of a Protocol."""

    __slots__ = ("check", "fetch", "item", "name", "policy", "span", "stream", "wrap")

    def __init__(self, name: str, family: str, annotation: Any, policy: Policy) -> None:
        self.name = name
        self.span = f"{family}.{name}"
        self.policy = policy
        self.check = check_for(annotation)
        self.wrap = annotation if is_protocol(annotation) else None
        self.stream = annotation is BinaryIO
        self.item: GuardedMethod | None = None
        self.fetch: GuardedMethod = self
        if get_origin(annotation) is collections.abc.Iterator:
            self.item = GuardedMethod(name, family, get_args(annotation)[0], policy)
            self.item.fetch = GuardedMethod(name, family, Any, policy)


class Guarded:
    """Base of the generated classes. The driver itself is deliberately not reachable by a public name."""

    __slots__ = ("_driver", "_target")

    def __init__(self, driver: Any, target: GuardTarget) -> None:
        self._driver = driver
        self._target = target

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._target.plugin}>"


def guard(driver: Any, target: GuardTarget, family: str, *protocols: Any) -> Any:
    """The driver behind a guard with every method of the Protocols."""
    return guard_class(family, *protocols)(driver, target)


def missing(driver: Any, protocol: Any) -> list[str]:
    """Methods of the Protocol that the object lacks; __getattr__ proxies answer too."""
    absent = []
    for name in methods_of(protocol):
        try:
            if not callable(getattr(driver, name, None)):
                absent.append(name)
        except Exception:
            absent.append(name)
    return absent


@cache
def guard_class(family: str, *protocols: Any) -> type[Guarded]:
    """The guard's class for these Protocols, made once."""
    namespace: dict[str, Any] = {"__slots__": (), "__module__": __name__}
    for protocol in protocols:
        for name, function in methods_of(protocol).items():
            policy = POLICIES.get((owner_of(protocol, name), name), NORMAL)
            method = GuardedMethod(name, family, hints_of(function).get("return", Any), policy)
            namespace[name] = _method(method, function)
        for name, annotation in attributes_of(protocol).items():
            namespace[name] = _attribute(name, check_for(annotation))
    return type(f"Guarded{''.join(protocol.__name__ for protocol in protocols)}", (Guarded,), namespace)


def _method(method: GuardedMethod, function: Any) -> Any:
    name = method.name

    def call(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = getattr(self._driver, name)
        except AttributeError:
            target = self._target
            raise PluginFault(
                f"{target.plugin}: {name}", "the driver has no such method", plugin=target.plugin
            ) from None
        return invoke(self._target, method, bound, args, kwargs)

    call.__name__ = name
    call.__doc__ = function.__doc__
    return call


def _attribute(name: str, check: Callable[[Any], str]) -> Any:
    def get(self: Guarded) -> Any:
        target = self._target
        try:
            value = getattr(self._driver, name)
        except (Error, OSError) as error:
            raise passed(error, target) from None
        except BaseException as error:
            raise fault(target, name, error) from error
        if reason := check(value):
            raise PluginFault(f"{target.plugin}: {name}", f"is {reason}", plugin=target.plugin)
        return value

    return property(get)


def invoke(target: GuardTarget, method: GuardedMethod, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """One guarded call. See the module."""
    current = SPANS.get()
    if current is None:
        return _wrapped(target, method, _call(target, method, function, args, kwargs))
    collector, parent = current
    id = new_id()
    token = SPANS.set((collector, id))
    start, began, error = time.time_ns(), time.perf_counter_ns(), ""
    try:
        return _wrapped(target, method, _call(target, method, function, args, kwargs))
    except BaseException as problem:
        error = describe(problem)
        raise
    finally:
        SPANS.reset(token)
        took = time.perf_counter_ns() - began
        attributes = {"variant": target.variant} if target.variant else {}
        thread = threading.get_native_id()
        collector.add(Span(method.span, target.plugin, start, took, thread, id, parent, attributes, error))


def _call(target: GuardTarget, method: GuardedMethod, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    outer = CURRENT.get()
    if outer is not None:  # a driver calls a driver: same thread, same deadline
        try:
            return _judged(target, method, function, args, kwargs)
        except (Error, OSError) as error:
            raise passed(error, target)  # noqa: B904 the same object goes on
        except BaseException as error:
            raise fault(target, method.name, error) from error
    carried = carrier()
    if carried is not None and method.policy.mode not in ("wait", "caller") and not target.isolated:
        return _carried(carried, target, method, function, args, kwargs)
    policy, health = method.policy, target.health
    timeout = None if policy.factor is None else target.deadline * policy.factor
    if policy.mode == "wait":
        own = kwargs.get("timeout", args[2] if len(args) > 2 else None)
        timeout = None if own is None else own + target.deadline
    counted = policy.mode == "pool"  # the others live as long as their caller wants
    trial = health.enter(method.name, target.deadline, counted)
    call = Call(target.plugin, method.name, target.variant, None if timeout is None else time.monotonic() + timeout)
    token = CURRENT.set(call)
    ended = True
    try:
        if target.isolated or policy.mode == "caller":
            if policy.mode == "caller":
                CURRENT.set(None)  # it calls the engine, whose driver calls are guarded on their own
            return _judged(target, method, function, args, kwargs)
        arguments = (target, method, function, args, kwargs)
        return target.pool.run(_judged, arguments, timeout=timeout, back=health.back)
    except CallTimeout:
        ended = False
        health.lost(f'its call "{method.name}" did not return within {timeout:g} s', counted)
        if target.on_hang:
            target.on_hang()
        cause = f"did not return within {timeout:g} s"
        hint = "its thread is given up; [engine] deadline sets the limit"
        raise DeadlineExceeded(f"{target.plugin}: {method.name}", cause, hint, plugin=target.plugin) from None
    except (Error, OSError) as error:
        if getattr(error, "lost_process", False):
            ended = False
            health.crashed(error.cause if isinstance(error, Error) else str(error), counted)
        raise passed(error, target)  # noqa: B904 the same object goes on
    except BaseException as error:
        if isinstance(error, Interrupted):
            raise
        raise fault(target, method.name, error) from error
    finally:
        CURRENT.reset(token)
        if ended:
            health.leave(trial, counted)


def _carried(
    carried: CallThread,
    target: GuardTarget,
    method: GuardedMethod,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> Any:
    """A call within ``Pool.together``: this thread may be given up itself, so no hop is needed."""
    health, factor = target.health, method.policy.factor
    timeout = None if factor is None else target.deadline * factor
    call = Call(target.plugin, method.name, target.variant, None if timeout is None else time.monotonic() + timeout)

    def lost() -> BaseException:
        health.lost(f'its call "{method.name}" did not return within {timeout or 0:g} s')
        if target.on_hang:
            target.on_hang()
        cause = f"did not return within {timeout or 0:g} s"
        hint = "its thread is given up; [engine] deadline sets the limit"
        return DeadlineExceeded(f"{target.plugin}: {method.name}", cause, hint, plugin=target.plugin)

    trial = health.enter(method.name, target.deadline)
    token = CURRENT.set(call)
    crash = ""
    try:
        carried.enter(call, lost, health.back)
        return _judged(target, method, function, args, kwargs)
    except CallerGone:
        raise
    except (Error, OSError) as error:
        if getattr(error, "lost_process", False):
            crash = error.cause if isinstance(error, Error) else str(error)
        raise passed(error, target)  # noqa: B904 the same object goes on
    except BaseException as error:
        raise fault(target, method.name, error) from error
    finally:
        CURRENT.reset(token)
        if not carried.leave():
            raise CallerGone
        if crash:
            health.crashed(crash)
        else:
            health.leave(trial)


def _judged(target: GuardTarget, method: GuardedMethod, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """On the thread of the call: looking at an answer may run the plugin's code too."""
    value = function(*args, **kwargs)
    if reason := method.check(value):
        raise PluginFault(f"{target.plugin}: {method.name}", f"returned {reason}", plugin=target.plugin)
    return value


def _wrapped(target: GuardTarget, method: GuardedMethod, value: Any) -> Any:
    if method.item is not None:
        return GuardedIterator(value, target, method.item)
    if method.wrap is not None:
        return guard(value, target, method.span.partition(".")[0], method.wrap)
    if method.stream:
        return guarded_stream(value, target, method.name, method.policy)
    return value


def passed(error: Error | OSError, target: GuardTarget) -> Error | OSError:
    """The error with its plugin named; the innermost one that set it stays."""
    if not getattr(error, "plugin", ""):
        error.plugin = (target.blame(error) if target.blame else "") or target.plugin  # type: ignore[union-attr]
    return error


def fault(target: GuardTarget, name: str, error: BaseException) -> PluginFault:
    """An exception that the contract does not allow."""
    plugin = (target.blame(error) if target.blame else "") or target.plugin
    return PluginFault(f"{plugin}: {name}", f"raised {said(error)}", "the plugin is at fault", plugin=plugin)


class GuardedIterator:
    """An iterator of a driver; each item is a call of its own, listings are fetched some at a time."""

    def __init__(self, iterator: Iterator[Any], target: GuardTarget, item: GuardedMethod) -> None:
        self._iterator = iterator
        self._target = target
        self._item = item
        self._ready: collections.deque[Any] = collections.deque()
        self._ended = False
        self._error: BaseException | None = None

    def __iter__(self) -> GuardedIterator:
        return self

    def __next__(self) -> Any:
        if not self._ready:
            if self._error is not None:
                error, self._error, self._ended = self._error, None, True
                raise error
            if self._ended:
                raise StopIteration
            self._fetch()
            if not self._ready:
                return self.__next__()
        return self._ready.popleft()

    def _fetch(self) -> None:
        """At least one item, the end, or an error."""
        try:
            got = invoke(self._target, self._item.fetch, self._take, (), {})
        except BaseException:
            self._ended = True
            raise
        for value in got:
            if reason := self._item.check(value):
                plugin = self._target.plugin
                name = self._item.name
                self._error = PluginFault(f"{plugin}: {name}", f"yielded {reason}", plugin=plugin)
                return
            self._ready.append(value)

    def _take(self) -> list[Any]:
        """On the pool thread."""
        values: list[Any] = []
        until = time.monotonic() + BATCH_SECONDS
        try:
            while True:
                values.append(next(self._iterator))
                if not self._item.policy.batch or len(values) >= MAX_BATCH or time.monotonic() > until:
                    return values
        except StopIteration:
            self._ended = True
        except BaseException as error:
            if not values:
                raise
            self._error = self._converted(error)
        return values

    def _converted(self, error: BaseException) -> BaseException:
        if isinstance(error, Error | OSError):
            return passed(error, self._target)
        return fault(self._target, self._item.name, error)

    def close(self) -> None:
        """Ends the iteration; what the driver's iterator does in its own close is guarded too."""
        self._ended = True
        self._ready.clear()
        close = getattr(self._iterator, "close", None)
        if close is not None:
            invoke(self._target, _CLOSE, close, (), {})


_CLOSE = GuardedMethod("close", "iterator", Any, NORMAL)


def guarded_stream(stream: Any, target: GuardTarget, name: str, policy: Policy = NORMAL) -> Any:
    """A real file passes as it is, since only the kernel stands behind it; other streams run the plugin's code on each read.

    policy: of the method that gave the stream; a read may take as long as that, since it may be the one that reconnects."""
    import io

    if isinstance(stream, io.FileIO | io.BufferedReader | io.BufferedWriter | io.BufferedRandom | io.BytesIO):
        raw = getattr(stream, "raw", stream)
        if isinstance(raw, io.FileIO | io.BytesIO):
            return stream
    return GuardedStream(stream, target, name, policy)


class GuardedStream:
    """A stream made of a plugin's own code: read, write and the rest are guarded calls."""

    def __init__(self, stream: Any, target: GuardTarget, name: str, policy: Policy = NORMAL) -> None:
        self._stream = stream
        self._target = target
        self._name = name
        self._policy = policy
        self._methods: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._stream, name)
        if not callable(value):
            return value
        made = self._methods.get(name)
        if made is None:
            annotation = {"read": bytes, "read1": bytes, "fileno": int}.get(name, Any)
            method = GuardedMethod(name, self._name, annotation, self._policy)

            def made(*args: Any, **kwargs: Any) -> Any:
                return invoke(self._target, method, value, args, kwargs)

            self._methods[name] = made
        return made

    def __enter__(self) -> GuardedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> GuardedStream:
        return self

    def __next__(self) -> bytes:
        line: bytes = self.readline()
        if not line:
            raise StopIteration
        return line
