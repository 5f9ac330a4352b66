"""The answering side of the wire: requests of one connection run at the same time, each on a thread.

The thread that reads a request carries it out itself while another takes over reading: no hop between threads lies on a call's path.
"""

from __future__ import annotations

import collections.abc
import os
import socket
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import count, takewhile
from typing import Any, BinaryIO, cast, get_args, get_origin

from wherry.errors import Error, Invalid, PluginFault, Unavailable, encode_error
from wherry.kernel.checks import attributes_of, hints_of, methods_of, owner_of
from wherry.kernel.policy import NORMAL, POLICIES
from wherry.kit import threads
from wherry.linux.framing import FrameError, Reader, send
from wherry.rpc.client import CREDIT, positional
from wherry.rpc.codec import FD_ANSWERS, decode, encode, is_object

MOST_THREADS = 512
"""Requests of one connection at the same time; further ones wait in the socket."""
SPARE_THREADS = 4
BATCH_SECONDS = 0.001
"""Items of a listing wait so long for others to go along with."""

Around = Callable[[Any], AbstractContextManager["Extra"]]
Extra = Callable[[], Any] | None
Fault = Callable[[str, BaseException], Error]


def serve(
    protocol: Any,
    target: Any,
    sock: socket.socket,
    *,
    reader: Reader | None = None,
    others: Mapping[str, tuple[Any, Any]] | None = None,
    around: Around | None = None,
    fault: Fault | None = None,
) -> None:
    """Answers calls of protocol's methods on target until the other side is gone; streams are then closed.

    reader: one that has taken frames off the socket already. others: further objects by name, (Protocol, object); the mapping
    may grow. around: makes of what came along with a request a context manager that the call runs in; it yields a function
    whose answer goes along with the reply, or None. fault: makes an error of an exception that is neither Error nor OSError.
    The socket is the caller's to close.
    """
    objects: MutableMapping[int | str, tuple[Any, Any]] = ChainMap(
        {"": (protocol, target)}, cast(Any, {} if others is None else others)
    )
    _Server(sock, reader or Reader(sock), objects, around or (lambda _: nullcontext()), fault or _fault).run()


def _fault(what: str, error: BaseException) -> Error:
    return PluginFault(what, f"raised {type(error).__name__}: {error}")


#: Names of the positional parameters, annotations, that of the answer, whether the answer is a descriptor.
_Known = tuple[tuple[str, ...], dict[str, Any], Any, bool]


class _Stream:
    """An iterator under way: how much may be sent, and whether anybody still listens."""

    def __init__(self) -> None:
        self.credit = CREDIT
        self.cancelled = False
        self.change = threading.Condition()

    def add(self, credit: int) -> None:
        with self.change:
            self.credit += credit
            self.change.notify()

    def cancel(self) -> None:
        with self.change:
            self.cancelled = True
            self.change.notify()

    def take(self) -> bool:
        """Waits for credit; False when cancelled."""
        with self.change:
            while not self.cancelled and self.credit <= 0:
                self.change.wait()
            self.credit -= 1
            return not self.cancelled


class _Server:
    def __init__(
        self,
        sock: socket.socket,
        reader: Reader,
        objects: MutableMapping[int | str, tuple[Any, Any]],
        around: Around,
        fault: Fault,
    ) -> None:
        self._socket = sock
        self._reader = reader
        self._objects = objects
        self._around = around
        self._fault = fault
        self._handles = count(1)
        self._streams: dict[int, _Stream] = {}
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._threads = 1
        self._over = threading.Event()
        self._methods: dict[tuple[Any, str], _Known | None] = {}

    def run(self) -> None:
        try:
            # Not on this thread: it must notice the end even while the reader is stuck in a socket that was closed under it.
            threads.start(self._work, "wherry-serve")
            self._over.wait()
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody is there any more: whoever notices ends the streams, whose threads would wait for credit for ever."""
        self._over.set()
        for stream in list(self._streams.values()):
            stream.cancel()

    # threads

    def _work(self) -> None:
        while not self._over.is_set():
            with self._counting:
                if self._waiting >= SPARE_THREADS:
                    self._threads -= 1
                    return
                self._waiting += 1
            with self._reading:
                frame = None if self._over.is_set() else self._next()
            with self._counting:
                self._waiting -= 1
                short = self._waiting == 0 and self._threads < MOST_THREADS and frame is not None
                self._threads += short
            if frame is None:
                self._end()
                return
            if short:
                try:
                    threads.start(self._work, "wherry-serve")
                except Unavailable:  # this one reads the next request when it has answered its own
                    with self._counting:
                        self._threads -= 1
            self._answer(*frame)

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next request, None at the end of the connection or of its sense."""
        while True:
            try:
                frame = self._reader.next()
                if frame is None or self._is_request(*frame):
                    return frame
            except (FrameError, OSError, TypeError, ValueError):
                return None

    def _is_request(self, message: dict[str, Any], fds: list[int]) -> bool:
        """Deals with what only steers objects and streams."""
        for handle in message.pop("f", ()):
            self._objects.pop(handle, None)
        for id in message.pop("c", ()):
            self._cancel(id)
        if "m" in message:
            return True
        for fd in fds:
            os.close(fd)
        if "z" in message:
            self._cancel(message.get("i", 0))
        elif (stream := self._streams.get(message.get("i", 0))) is not None:
            stream.add(int(message.get("n", 0)))
        return False

    def _cancel(self, id: int) -> None:
        stream = self._streams.get(id)
        if stream is not None:
            stream.cancel()

    # one request

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        id = message.get("i", 0)
        opened: list[Any] = []
        try:
            with self._around(message.get("x")) as extra:
                try:
                    self._carry_out(id, message, fds, opened, extra)
                except _CallerGone:
                    raise
                except BaseException as error:  # nothing that a call raises ends the server
                    known = error if isinstance(error, Error | OSError) else self._fault(str(message.get("m")), error)
                    self._reply({"i": id, "e": encode_error(known)}, extra)
        except _CallerGone:
            pass
        finally:
            for stream in opened:
                with suppress(OSError):
                    stream.close()
            for fd in fds:
                if fd >= 0:
                    with suppress(OSError):
                        os.close(fd)

    def _carry_out(self, id: int, message: dict[str, Any], fds: list[int], opened: list[Any], extra: Extra) -> None:
        handle, name = message.get("o", ""), message["m"]
        try:
            protocol, target = self._objects[handle]
        except (KeyError, TypeError):
            raise Invalid(f'call "{name}"', f"there is no object {handle!r}") from None
        known = self._method(protocol, name)
        if known is None:
            raise Invalid(f'call "{name}"', f"{protocol.__name__} has no such method")
        annotations, answer, answers_fd = known[1:]
        if name.startswith("@"):
            value: Any = getattr(target, name[1:])
        else:
            arguments = message.get("a", {})
            unknown = arguments.keys() - annotations.keys()
            if unknown:
                raise Invalid(f'call "{name}"', f'no argument "{min(unknown)}"')
            values, streams = decode(arguments, annotations, fds)
            opened += streams
            leading = list(takewhile(values.__contains__, known[0]))  # by position: some are positional-only
            value = getattr(target, name)(*[values.pop(each) for each in leading], **values)
            for stream in streams:
                if stream.writable() and not stream.closed:
                    stream.flush()
        self._send_value(id, protocol, name, value, answer, answers_fd, extra)

    def _send_value(
        self, id: int, protocol: Any, name: str, value: Any, answer: Any, answers_fd: bool, extra: Extra
    ) -> None:
        if answers_fd:
            try:
                self._reply({"i": id, "r": 0 if value >= 0 else -1}, extra, [value] if value >= 0 else [])
            finally:
                if value >= 0:
                    os.close(value)  # the caller has a duplicate
        elif is_object(answer):
            handle = next(self._handles)
            self._objects[handle] = (answer, value)
            self._reply({"i": id, "h": handle}, extra)
        elif get_origin(answer) is collections.abc.Iterator:
            policy = POLICIES.get((owner_of(protocol, name), name), NORMAL)
            self._stream(id, value, answer, policy.batch, extra)
        else:
            parcel = encode({"answer": value}, {"answer": answer})
            try:
                self._reply({"i": id, "r": parcel.data["answer"]}, extra, parcel.fds)
            finally:
                parcel.sent()
                if answer is BinaryIO:  # the caller has a duplicate of its descriptor, or reads what a pump writes
                    for pump in parcel.pumps:
                        pump.own()
                    if not parcel.pumps:
                        value.close()

    def _stream(self, id: int, items: Iterator[Any], answer: Any, batch: bool, extra: Extra) -> None:
        annotation = (get_args(answer) or (Any,))[0]
        stream = self._streams[id] = _Stream()
        ready: list[Any] = []
        until = 0.0
        try:
            self._send({"i": id, "s": 1})
            if self._over.is_set():
                stream.cancel()
            while stream.take():
                try:
                    item = next(items)
                except StopIteration:
                    self._reply({"i": id, "v": ready, "q": 1}, extra)
                    return
                parcel = encode({"item": item}, {"item": annotation})
                if not batch:
                    self._send({"i": id, "v": [parcel.data["item"]]}, parcel.fds)
                    parcel.sent()
                    continue
                ready.append(parcel.data["item"])
                if len(ready) >= CREDIT // 2 or time.monotonic() > until:
                    self._send({"i": id, "v": ready})
                    ready, until = [], time.monotonic() + BATCH_SECONDS
        finally:
            self._streams.pop(id, None)
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _method(self, protocol: Any, name: str) -> _Known | None:
        key = (protocol, name)
        try:
            return self._methods[key]
        except KeyError:
            pass
        found: _Known | None = None
        if name.startswith("@"):
            annotation = attributes_of(protocol).get(name[1:])
            found = None if annotation is None else ((), {}, annotation, False)
        elif (function := methods_of(protocol).get(name)) is not None:
            hints = dict(hints_of(function))
            answer = hints.pop("return", Any)
            found = (positional(function), hints, answer, (owner_of(protocol, name), name) in FD_ANSWERS)
        self._methods[key] = found
        return found

    # out

    def _reply(self, message: dict[str, Any], extra: Extra, fds: list[int] | None = None) -> None:
        if extra is not None and (along := extra()) is not None:
            message["x"] = along
        try:
            self._send(message, fds or [])
        except (TypeError, ValueError) as error:  # what came back is no JSON, or too much of it
            self._send({"i": message["i"], "e": encode_error(self._fault("answer", error))})

    def _send(self, message: dict[str, Any], fds: list[int] | tuple[int, ...] = ()) -> None:
        try:
            with self._sending:
                send(self._socket, message, fds)
        except (FrameError, TypeError, ValueError):
            raise
        except OSError:
            self._end()
            raise _CallerGone from None


class _CallerGone(BaseException):
    """Nobody is there to answer."""
