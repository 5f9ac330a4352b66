"""Values to JSON and back, by the annotations of the Protocols (cattrs does the records).

bytes travel as base64, paths as text, tuples and sets as arrays. File descriptors (of Stdio, LogSink, Plan and Shim's answers)
and streams travel beside the frame by SCM_RIGHTS; in the JSON stands their index. A stream without a descriptor of its own
is pumped through a pipe.
"""

from __future__ import annotations

import base64
import fcntl
import io
import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, get_origin

from wherry.errors import Error, Invalid
from wherry.interfaces.process import LogSink, Plan, Stdio, Step
from wherry.kernel.checks import is_protocol
from wherry.kernel.structure import configure, said_of

FD_FIELDS: dict[type, tuple[str, ...]] = {Stdio: ("stdin", "stdout", "stderr"), LogSink: ("fd",), Plan: ("fds",)}
FD_ANSWERS = {("Shim", "namespace"), ("Shim", "socket")}
CHUNK = 1 << 18


class Transfer(threading.local):
    """What goes along with the value that this thread encodes or decodes."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.opened: list[Any] = []
        self.pumps: list[Pump] = []
        self.sink = False


_transfer = Transfer()


class EncodedValue:
    """An encoded value with its descriptors. opened: descriptors of ours to close once it is sent; pumps: to join at the end."""

    __slots__ = ("data", "fds", "opened", "pumps")

    def __init__(self, data: Any, transfer: Transfer) -> None:
        self.data = data
        self.fds, self.opened, self.pumps = transfer.fds, transfer.opened, transfer.pumps

    def sent(self) -> None:
        """Closes what was only opened for sending."""
        for descriptor in self.opened:
            with suppress(OSError):
                os.close(descriptor)
        self.opened = []

    def finish(self) -> None:
        """Waits for the pumps; raises what one of them ran into."""
        for pump in self.pumps:
            pump.join()


def encode(values: dict[str, Any], annotations: dict[str, Any]) -> EncodedValue:
    """Each value by its annotation. What does not fit raises what its attributes raise, an AttributeError or TypeError."""
    _transfer.fds, _transfer.opened, _transfer.pumps = [], [], []
    data = {}
    for name, value in values.items():
        _transfer.sink = name == "sink"  # the contract's word for a stream that is written to
        data[name] = encoder(annotations.get(name, Any))(value)
    return EncodedValue(data, _transfer)


def decode(data: dict[str, Any], annotations: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[Any]]:
    """The values, and the streams that were opened for them. Raises Invalid."""
    _transfer.fds, _transfer.opened = fds, []
    values = {}
    for name, value in data.items():
        try:
            values[name] = decoder(annotations.get(name, Any))(value)
        except Error:
            raise
        except Exception as error:
            raise Invalid(f'argument "{name}"', said_of(error)) from None
    return values, _transfer.opened


_PLAIN = {str, int, bool, type(None), None, Any}


@cache
def encoder(annotation: Any) -> Callable[[Any], Any]:
    """The function that makes JSON data of a value."""
    if annotation in _PLAIN:
        return _same
    converter = wire_converter()
    return lambda value: converter.unstructure(value, unstructure_as=annotation)


@cache
def decoder(annotation: Any) -> Callable[[Any], Any]:
    """The function that makes a value of JSON data."""
    if annotation is Any:
        return _same
    if annotation is None:
        annotation = type(None)
    converter = wire_converter()
    return lambda data: converter.structure(data, annotation)


def _same(value: Any) -> Any:
    return value


@cache
def wire_converter() -> Any:
    """The converter of the wire: strict like that of the config, with bytes, paths, descriptors and streams on top."""
    from attrs import has
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

    converter = Converter(detailed_validation=False, omit_if_default=True)
    configure(converter)
    converter.register_unstructure_hook(bytes, lambda value: base64.b64encode(value).decode())
    converter.register_unstructure_hook(memoryview, lambda value: base64.b64encode(value).decode())
    converter.register_structure_hook(bytes, lambda value, _: base64.b64decode(value, validate=True))
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook(type(None), lambda value, _: _nothing(value))
    converter.register_unstructure_hook_func(lambda cls: cls is BinaryIO, _send_stream)
    converter.register_structure_hook_func(lambda cls: cls is BinaryIO, lambda value, _: _take_stream(value))
    converter.register_unstructure_hook_func(lambda cls: cls is Step, _send_step)
    converter.register_structure_hook_func(lambda cls: cls is Step, lambda value, _: SentStep(value[0], value[1]))
    converter.register_unstructure_hook_func(_is_frozenset, sorted)
    converter.register_structure_hook_func(_is_frozenset, lambda value, cls: frozenset(value))
    converter.register_unstructure_hook_func(_is_collection, list)
    converter.register_structure_hook_func(_is_collection, _take_collection)

    def records(make: Callable[..., Any], wrap: Callable[..., Any]) -> Callable[[Any], Any]:
        def factory(cls: Any) -> Any:
            plain = make(cls, converter, **({"_cattrs_omit_if_default": True} if wrap is _sending else {}))
            return wrap(plain, FD_FIELDS[cls]) if cls in FD_FIELDS else plain

        return factory

    converter.register_unstructure_hook_factory(has, records(make_dict_unstructure_fn, _sending))
    converter.register_structure_hook_factory(has, records(make_dict_structure_fn, _taking))
    return converter


def _is_frozenset(cls: Any) -> bool:
    origin: Any = get_origin(cls)
    return origin is frozenset


def _is_collection(cls: Any) -> bool:
    origin: Any = get_origin(cls)
    return origin is Collection


def _take_collection(value: Any, _cls: Any) -> tuple[Any, ...]:
    """A collection of texts, which is all that the contract has of them."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{type(value).__name__}, expected a list of texts")
    return tuple(value)


def _nothing(value: Any) -> None:
    if value is not None:
        raise ValueError(f"{type(value).__name__}, expected nothing")


# descriptors


def _sending(plain: Callable[[Any], dict[str, Any]], names: tuple[str, ...]) -> Callable[[Any], dict[str, Any]]:
    def send(value: Any) -> dict[str, Any]:
        data = plain(value)
        for name in names:
            if name in data:
                field = data[name]
                data[name] = [send_fd(fd) for fd in field] if isinstance(field, list | tuple) else send_fd(field)
        return data

    return send


def _taking(plain: Callable[[Any, Any], Any], names: tuple[str, ...]) -> Callable[[Any, Any], Any]:
    def take(data: Any, cls: Any) -> Any:
        data = dict(data)
        for name in names:
            if name in data:
                field = data[name]
                data[name] = [take_fd(index) for index in field] if isinstance(field, list) else take_fd(field)
        return plain(data, cls)

    return take


def send_fd(fd: int) -> int:
    """Puts a descriptor into the parcel; its index, -1 for none."""
    if fd < 0:
        return -1
    _transfer.fds.append(fd)
    return len(_transfer.fds) - 1


def take_fd(index: int) -> int:
    """The descriptor that came with the frame under this index."""
    if type(index) is not int or index >= len(_transfer.fds):
        raise ValueError(f"no descriptor {index!r} came along")
    return _transfer.fds[index] if index >= 0 else -1


# streams


class Pump:
    """Copies between a stream without a descriptor and a pipe, on a thread."""

    def __init__(self, source: Any, sink: Any) -> None:
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._owned = self._over = False
        self._source, self._sink = source, sink
        self._thread = threading.Thread(target=self._run, name="wherry-pump", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := self._source.read(CHUNK):
                self._sink.write(data)
        except BrokenPipeError:
            pass  # the other side has seen enough
        except BaseException as error:  # raised in join
            self._error = error
        finally:
            for stream in (self._source, self._sink):
                if isinstance(stream, io.FileIO):
                    with suppress(OSError):
                        stream.close()
            with self._lock:
                self._over = True
                owned = self._owned
            if owned:
                self._close_source()

    def own(self) -> None:
        """The source is nobody else's: it is closed at the end."""
        with self._lock:
            self._owned = True
            over = self._over
        if over:
            self._close_source()

    def _close_source(self) -> None:
        with suppress(Exception):
            self._source.close()

    def join(self) -> None:
        """Waits for the end of a copy to a sink; a copy from a source may be abandoned by its reader."""
        if isinstance(self._source, io.FileIO):
            self._thread.join()
            if self._error is not None:
                raise self._error


def _send_stream(stream: Any) -> list[Any]:
    """[index, mode]: the stream's own descriptor, or one end of a pipe."""
    writable = _transfer.sink
    try:
        fd = stream.fileno()
    except (AttributeError, OSError):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        if writable:
            _transfer.pumps.append(Pump(io.FileIO(reading, "r"), stream))
            fd = writing
        else:
            _transfer.pumps.append(Pump(stream, io.FileIO(writing, "w")))
            fd = reading
        _transfer.opened.append(fd)
    else:
        _settle(stream, writable)
    return [send_fd(fd), "w" if writable else "r"]


def _settle(stream: Any, writable: bool) -> None:
    """What Python has buffered is not in the descriptor: written out, or unread where the file can be positioned."""
    if writable:
        stream.flush()
    elif isinstance(stream, io.BufferedReader | io.BufferedRandom) and stream.seekable():
        os.lseek(stream.fileno(), stream.tell(), os.SEEK_SET)


def _take_stream(data: Any) -> BinaryIO:
    index, mode = data
    fd = take_fd(index)
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == "w":
        stream: Any = open(fd, "wb")  # noqa: SIM115 closed by whoever gets it
    elif access == os.O_WRONLY:
        raise ValueError("a stream to read from came with a descriptor to write to")
    else:
        stream = open(fd, "rb")  # noqa: SIM115
    _transfer.fds[index] = -1  # the stream closes it
    _transfer.opened.append(stream)
    return stream  # type: ignore[no-any-return]


# steps


class SentStep:
    """A step of a plan that came over the wire: it is only described and sent on."""

    def __init__(self, description: str, encoded: list[Any]) -> None:
        self._description = description
        self._encoded = encoded

    def describe(self) -> str:
        """The line that the step had where it was made."""
        return self._description

    def encode(self) -> tuple[object, ...]:
        """What the step was for JSON."""
        return tuple(self._encoded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentStep) and other._encoded == self._encoded

    def __hash__(self) -> int:
        return hash(self._description)


def _send_step(step: Any) -> list[Any]:
    return [step.describe(), list(step.encode())]


def is_object(annotation: Any) -> bool:
    """Whether an annotation stands for an object that stays where it is and is called from afar, e.g. an Ingest."""
    return is_protocol(annotation) and annotation is not Step
