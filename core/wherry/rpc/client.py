"""The calling side of the wire: a Channel carries calls of many threads over one socket; a Proxy looks like the object behind it.

No thread of its own: of the threads that wait for an answer one reads the socket, for itself and the others, and passes that
duty on when it leaves. A lone call so costs one send and one receive.
"""

from __future__ import annotations

import _thread
import itertools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from inspect import signature
from typing import Any, ClassVar, get_args, get_origin

from wherry.errors import DeadlineExceeded, Invalid, Unavailable, decode_error
from wherry.kernel.checks import attributes_of, hints_of, methods_of, owner_of
from wherry.linux.framing import FrameError, Reader, send
from wherry.rpc.codec import FD_ANSWERS, decode, encode, is_object

CREDIT = 64
"""Items of a stream that the other side may send ahead."""

Frame = tuple[dict[str, Any], list[int]]


class ConnectionLost(Unavailable):
    """The other end is gone. The call may or may not have been carried out."""

    lost_process = True


class TimedOut(DeadlineExceeded):
    """The other end did not answer in time, as opposed to a DeadlineExceeded that it answered."""

    lost_process = True


class _Waiter:
    __slots__ = ("blocked", "frames", "wake")

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.blocked = False
        self.wake = _thread.allocate_lock()
        self.wake.acquire()

    def rouse(self) -> None:
        with suppress(RuntimeError):  # roused already
            self.wake.release()


class RpcChannel:
    """One end of a connection. Thread-safe.

    name: what errors call the other end. context: what goes along with each call (JSON), None for nothing; answered: gets what
    came back the same way. timeout: seconds that a call may take, None for no end.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str = "the other end",
        reader: Reader | None = None,
        context: Callable[[], Any] | None = None,
        answered: Callable[[Any], None] | None = None,
        timeout: Callable[[], float | None] | None = None,
    ) -> None:
        self.name = name
        self._socket = sock
        self._reader = reader or Reader(sock)
        self._context = context
        self._answered = answered
        self._timeout = timeout
        self._ids = itertools.count(1)
        self._waiters: dict[int, _Waiter] = {}
        self._sending = threading.Lock()
        self._reading = _thread.allocate_lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._freed: deque[int] = deque()
        self._cancelled: deque[int] = deque()
        self._dead = ""

    # calls

    def call(self, handle: int | str, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carries out one call. Raises what the other side raised, Lost, DeadlineExceeded, Invalid for a bad argument."""
        values = dict(zip(method.parameters, args, strict=False))
        if len(args) > len(method.parameters):
            raise TypeError(f"{method.name}() takes {len(method.parameters)} arguments, {len(args)} were given")
        values |= kwargs
        try:
            parcel = encode(values, method.annotations)
        except (AttributeError, TypeError) as error:
            raise Invalid(f"arguments of {method.name}", f"one is not of the type it has to be: {error}") from error
        request: dict[str, Any] = {"m": method.name, "a": parcel.data}
        if handle:
            request["o"] = handle
        if self._context is not None and (context := self._context()) is not None:
            request["x"] = context
        limit = self._timeout() if self._timeout is not None else None
        id, waiter = self._open()
        keep = False
        try:
            try:
                self._send({"i": id, **request}, parcel.fds)
            finally:
                parcel.sent()
            message, fds = self._wait(waiter, method.name, limit)
            if "s" in message:
                keep = True
                return RemoteIterator(self, id, waiter, method, limit)
            parcel.finish()
            return self._result(message, fds, method)
        except TimedOut:
            self._send_quietly({"i": id, "z": 1})
            raise
        finally:
            if not keep:
                self.forget(id)

    def _open(self) -> tuple[int, _Waiter]:
        id, waiter = next(self._ids), _Waiter()
        self._waiters[id] = waiter
        return id, waiter

    def forget(self, id: int) -> None:
        """No more frames of this call are wanted."""
        self._waiters.pop(id, None)

    def free(self, handle: int) -> None:
        """The object behind the handle is no longer used here. Called by the garbage collector, so nothing is sent now."""
        self._freed.append(handle)

    def cancel_later(self, id: int) -> None:
        """The stream is no longer read. Called by the garbage collector, so it goes along with the next frame."""
        self._cancelled.append(id)

    def _result(self, message: dict[str, Any], fds: list[int], method: RemoteMethod) -> Any:
        if "x" in message and self._answered is not None:
            self._answered(message["x"])
        if "e" in message:
            raise decode_error(message["e"])
        if "h" in message:
            return make_proxy(method.answer, self, message["h"])
        data = message.get("r")
        if method.answers_fd:
            return fds[data] if isinstance(data, int) and 0 <= data < len(fds) else -1
        return decode({"answer": data}, {"answer": method.answer}, fds)[0]["answer"]

    # the socket

    def _send(self, message: dict[str, Any], fds: list[int] | tuple[int, ...] = ()) -> None:
        if self._dead:
            raise self._lost()
        if self._freed:
            message["f"] = [self._freed.popleft() for _ in range(len(self._freed))]
        if self._cancelled:
            message["c"] = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
        try:
            with self._sending:
                send(self._socket, message, fds)
        except FrameError as error:
            raise Invalid(f"{self.name}: {message.get('m', 'call')}", str(error)) from None
        except OSError as error:
            self._die(error.strerror or str(error))
            raise self._lost() from None

    def _send_quietly(self, message: dict[str, Any]) -> None:
        with suppress(ConnectionLost):
            self._send(message)

    def _wait(self, waiter: _Waiter, name: str, limit: float | None) -> Frame:
        """The next frame of one call."""
        until = None if limit is None else time.monotonic() + limit
        while not waiter.frames:
            if self._dead:
                raise self._lost()
            rest = None if until is None else until - time.monotonic()
            if rest is not None and rest <= 0:
                raise TimedOut(f"{self.name}: {name}", f"did not return within {limit:g} s")
            waiter.blocked = True
            if self._reading.acquire(blocking=False):
                try:
                    waiter.blocked = False
                    self._read(waiter, rest)
                finally:
                    self._reading.release()
                    self._pass_on()
            else:
                waiter.wake.acquire(timeout=-1 if rest is None else rest)
                waiter.blocked = False
        return waiter.frames.popleft()

    def _read(self, own: _Waiter, rest: float | None) -> None:
        """Reads for everyone until the own frame is there or rest seconds are over."""
        until = None if rest is None else time.monotonic() + rest
        try:
            while not own.frames:
                frame = self._reader.pop()
                if frame is None:
                    if until is not None:
                        left = until - time.monotonic()
                        if left <= 0 or not self._poll.poll(left * 1000):
                            return
                    if not self._reader.feed():
                        self._die("it closed the connection")
                        return
                    continue
                self._dispatch(*frame)
        except (FrameError, OSError) as error:
            self._die(str(error))

    def _dispatch(self, message: dict[str, Any], fds: list[int]) -> None:
        waiter = self._waiters.get(message.get("i", 0))
        if waiter is None:
            for fd in fds:
                os.close(fd)
            return
        waiter.frames.append((message, fds))
        waiter.rouse()

    def _pass_on(self) -> None:
        """Somebody who waits must read now."""
        for waiter in list(self._waiters.values()):
            if waiter.blocked and not waiter.frames:
                waiter.rouse()
                return

    def _die(self, reason: str) -> None:
        self._dead = self._dead or reason
        for waiter in list(self._waiters.values()):
            waiter.rouse()

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(self.name, self._dead)

    @property
    def dead(self) -> str:
        """Why the connection is over, "" while it is not known to be."""
        return self._dead

    def over(self) -> bool:
        """Whether the other end is gone, as far as the socket knows (poll(2), POLLHUP)."""
        if self._dead:
            return True
        try:
            poll = select.poll()  # one of its own: a poll object serves one thread at a time
            poll.register(self._socket, 0)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def close(self) -> None:
        """Ends the connection; calls under way raise Lost."""
        self._die("the connection was closed")
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class RemoteMethod:
    """A method of a Protocol as the wire needs it."""

    __slots__ = ("annotations", "answer", "answers_fd", "name", "parameters")

    def __init__(self, protocol: Any, name: str, function: Any) -> None:
        hints = hints_of(function)
        self.name = name
        self.annotations = hints
        self.answer = hints.get("return", Any)
        self.answers_fd = (owner_of(protocol, name), name) in FD_ANSWERS
        self.parameters = positional(function)


def positional(function: Any) -> tuple[str, ...]:
    """Names of the parameters that may be given by position."""
    return tuple(
        parameter.name
        for parameter in signature(function).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.name != "self"
    )


class RemoteIterator:
    """A stream of items. Closing it, or letting it go, ends the work behind it."""

    def __init__(
        self, channel: RpcChannel, id: int, waiter: _Waiter, method: RemoteMethod, limit: float | None
    ) -> None:
        self._channel = channel
        self._id = id
        self._waiter = waiter
        self._method = method
        self._item = get_args(method.answer)[0] if get_origin(method.answer) else Any
        self._limit = limit
        self._ready: deque[Any] = deque()
        self._used = 0
        self._ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._ready:
            if self._ended:
                raise StopIteration
            self._receive()
        self._used += 1
        if self._used >= CREDIT // 2 and not self._ended:
            self._channel._send_quietly({"i": self._id, "n": self._used})
            self._used = 0
        return self._ready.popleft()

    def _receive(self) -> None:
        try:
            message, fds = self._channel._wait(self._waiter, self._method.name, self._limit)
        except BaseException:
            self._finish()
            raise
        if "v" in message:
            values = {str(index): item for index, item in enumerate(message["v"])}
            self._ready.extend(decode(values, dict.fromkeys(values, self._item), fds)[0].values())
        if "q" in message or "e" in message:
            self._ended = True
            self._channel.forget(self._id)
            self._channel._result({"r": None, **message}, fds, _END)

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._channel.forget(self._id)
            self._channel._send_quietly({"i": self._id, "z": 1})

    def close(self) -> None:
        """Ends the stream; items that came already are dropped."""
        self._ready.clear()
        self._finish()

    def __del__(self) -> None:
        with suppress(Exception):
            if not self._ended and not self._channel.dead:
                self._ended = True
                self._channel.forget(self._id)
                self._channel.cancel_later(self._id)


class _Arity:
    name = "end"
    answer = type(None)
    answers_fd = False
    parameters: tuple[str, ...] = ()
    annotations: ClassVar[dict[str, Any]] = {}


_END: Any = _Arity()


class Proxy:
    """``Proxy(protocol, sock)``: an object with the Protocol's methods that calls the one behind the socket.

    sock is connected; reader: one that has taken frames off it already. close() ends the connection.
    """

    def __new__(cls, protocol: Any, sock: socket.socket, **options: Any) -> Any:
        return make_proxy(protocol, RpcChannel(sock, **options), "", owner=True)


class ProxyBase:
    """Base of the generated classes."""

    def __init__(self, channel: RpcChannel, handle: int | str, owner: bool) -> None:
        self._channel = channel
        self._handle = handle
        self._owner = owner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._channel.name}>"

    def __del__(self) -> None:
        if isinstance(self._handle, int):
            with suppress(Exception):
                self._channel.free(self._handle)


def make_proxy(protocol: Any, channel: RpcChannel, handle: int | str, owner: bool = False) -> Any:
    """A proxy of the object behind handle; with owner its close() closes the channel."""
    return proxy_class(protocol)(channel, handle, owner)


@cache
def proxy_class(protocol: Any) -> type[ProxyBase]:
    """The proxy's class for a Protocol, made once."""
    namespace: dict[str, Any] = {"__module__": __name__}
    for name, function in methods_of(protocol).items():
        namespace[name] = _method(protocol, name, function)
    for name, annotation in attributes_of(protocol).items():
        namespace[name] = _attribute(name, annotation)
    return type(f"Remote{protocol.__name__}", (ProxyBase,), namespace)


def _method(protocol: Any, name: str, function: Any) -> Any:
    made: list[RemoteMethod] = []

    def call(self: ProxyBase, *args: Any, **kwargs: Any) -> Any:
        if not made:  # annotations are resolved at the first call
            made.append(RemoteMethod(protocol, name, function))
        if name == "close" and self._owner and not args:
            self._channel.close()
            return None
        return self._channel.call(self._handle, made[0], args, kwargs)

    call.__name__ = name
    call.__doc__ = function.__doc__
    return call


def _attribute(name: str, annotation: Any) -> Any:
    method = RemoteMethod.__new__(RemoteMethod)
    method.name, method.annotations, method.answer = f"@{name}", {}, annotation
    method.answers_fd, method.parameters = False, ()

    def get(self: ProxyBase) -> Any:
        if is_object(annotation):
            return make_proxy(annotation, self._channel, f"{self._handle}.{name}".lstrip("."))
        return self._channel.call(self._handle, method, (), {})

    return property(get)
