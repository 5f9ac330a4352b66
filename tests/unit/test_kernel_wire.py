"""The wire: what goes in comes out, many calls on one socket, streams with backpressure and an end, descriptors, errors."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, get_type_hints

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.distributions import eventually
from wherry import api
from wherry.api import Error, Invalid, NotFound, PluginFault
from wherry.errors import decode_error, encode_error
from wherry.kernel.checks import hints_of, methods_of
from wherry.linux.framing import Reader, send
from wherry.linux.framing import encode as frame
from wherry.rpc.codec import decode, encode
from wherry.rpc.wire import ConnectionLost, Proxy, RpcChannel, make_proxy, serve


@attrs.frozen
class Record:
    text: str = ""
    number: float = 0.0
    nested: tuple[api.Mount, ...] = ()
    maybe: int | None = None
    blob: bytes = b""
    where: Path = Path()
    flags: frozenset[str] = frozenset()
    table: Mapping[str, Any] = attrs.field(factory=dict)


class Things(Protocol):
    label: str

    def echo(self, record: Record, /) -> Record: ...
    def add(self, first: int, second: int = 5, *, third: int = 0) -> int: ...
    def fail(self, kind: str) -> None: ...
    def count(self, to: int) -> Iterator[int]: ...
    def slow(self, seconds: float) -> str: ...
    def read(self, stream: BinaryIO) -> bytes: ...
    def fill(self, sink: BinaryIO, data: bytes) -> int: ...
    def open(self) -> BinaryIO: ...
    def child(self, name: str) -> Child: ...
    def stdio(self, stdio: api.Stdio) -> tuple[bool, ...]: ...
    def wrong(self) -> int: ...


class Child(Protocol):
    name: str

    def hello(self) -> str: ...


class ChildObject:
    def __init__(self, name: str) -> None:
        self.name = name

    def hello(self) -> str:
        return f"hello from {self.name}"


class ThingsObject:
    label = "things"

    def __init__(self) -> None:
        self.counted = 0
        self.closed = threading.Event()
        self.children: list[ChildObject] = []
        self.waiting = threading.Semaphore(0)
        self.go = threading.Event()

    def echo(self, record: Record, /) -> Record:
        return record

    def add(self, first: int, second: int = 5, *, third: int = 0) -> int:
        return first + second + third

    def fail(self, kind: str) -> None:
        if kind == "error":
            raise api.CommandNotFound("exec", "no such file", "look", plugin="a.b")
        if kind == "os":
            raise PermissionError(13, "denied", b"/x\xff")
        if kind == "bare":
            raise OSError("just text")
        raise SystemExit(kind)

    def count(self, to: int) -> Iterator[int]:
        try:
            for number in range(to):
                self.counted += 1
                yield number
            if to < 0:
                raise NotFound("the end", "lost")
        finally:
            self.closed.set()

    def slow(self, seconds: float) -> str:
        self.waiting.release()
        self.go.wait(seconds)
        return threading.current_thread().name

    def read(self, stream: BinaryIO) -> bytes:
        return stream.read()

    def fill(self, sink: BinaryIO, data: bytes) -> int:
        return sink.write(data)

    def open(self) -> BinaryIO:
        self.opened = io.BytesIO(b"opened" * 200_000)
        return self.opened

    def child(self, name: str) -> ChildObject:
        self.children.append(ChildObject(name))
        return self.children[-1]

    def stdio(self, stdio: api.Stdio) -> tuple[bool, ...]:
        return tuple(fd >= 0 and os.fstat(fd) is not None for fd in (stdio.stdin, stdio.stdout, stdio.stderr))

    def wrong(self) -> int:
        return object()  # type: ignore[return-value]


class Pair:
    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.object = ThingsObject()
        self.thread = threading.Thread(target=serve, args=(Things, self.object, self.far), daemon=True)
        self.thread.start()
        self.channel = RpcChannel(self.near)
        self.things: Any = make_proxy(Things, self.channel, "")

    def close(self) -> None:
        self.channel.close()
        self.thread.join(5)
        self.far.close()
        assert not self.thread.is_alive()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


# -- values ----------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MOUNTS = st.builds(
    api.Mount,
    type=st.text(),
    source=st.text(),
    target=st.text(),
    options=st.lists(st.text(), max_size=3).map(tuple),
    idmap=st.builds(
        api.IdMap, uids=st.lists(st.tuples(st.integers(), st.integers(), st.integers()), max_size=2).map(tuple)
    ),
)
RECORDS = st.builds(
    Record,
    text=st.text(alphabet=st.characters(codec="utf-16", exclude_categories=())),
    number=st.floats(allow_nan=False),
    nested=st.lists(MOUNTS, max_size=3).map(tuple),
    maybe=st.none() | st.integers(),
    blob=st.binary(max_size=100),
    where=st.text(alphabet=st.characters(exclude_characters="\x00"), max_size=20).map(Path),
    flags=st.frozensets(st.text(), max_size=4),
    table=st.dictionaries(st.text(), JSON, max_size=3),
)


def through(value: Any, annotation: Any) -> Any:
    import json

    parcel = encode({"v": value}, {"v": annotation})
    data = json.loads(json.dumps(parcel.data))
    return decode(data, {"v": annotation}, list(parcel.fds))[0]["v"]


@given(RECORDS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_records_come_back_as_they_were(record: Record) -> None:
    assert through(record, Record) == record


def build(cls: Any) -> st.SearchStrategy[Any]:
    """A strategy for a record of the contract, by its annotations; descriptors stay -1."""
    from wherry.rpc.codec import FD_FIELDS

    hints = get_type_hints(cls)
    skipped = {*FD_FIELDS.get(cls, ()), "steps", "socket"}
    fields = {each.name: value_of(hints[each.name]) for each in attrs.fields(cls) if each.name not in skipped}
    return st.builds(cls, **fields)


def value_of(annotation: Any) -> st.SearchStrategy[Any]:
    from types import UnionType
    from typing import Literal, NewType, Union, get_args, get_origin

    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, NewType):
        return value_of(annotation.__supertype__)
    if annotation is Any:
        return JSON
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {Union, UnionType}:
        return st.one_of([value_of(argument) for argument in arguments])
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return st.lists(value_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(value_of, arguments))
    if origin is frozenset:
        return st.frozensets(value_of(arguments[0]), max_size=3)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(st.text(), value_of(arguments[1]), max_size=2)
    if annotation is float:
        return st.floats(allow_nan=False)
    if isinstance(annotation, type) and attrs.has(annotation):
        return build(annotation)
    simple = {str: st.text(), int: st.integers(), bool: st.booleans(), bytes: st.binary(), type(None): st.none()}
    return simple[annotation] if annotation in simple else st.just(Path("/x"))


CONTRACT = [
    cls
    for name in api.__all__
    if isinstance(cls := getattr(api, name), type) and attrs.has(cls) and name not in {"Registration", "Connection"}
]


@pytest.mark.parametrize("cls", CONTRACT, ids=lambda cls: cls.__name__)
def test_every_record_of_the_contract(cls: Any) -> None:
    @given(build(cls))
    @settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
    def check(record: Any) -> None:
        assert through(record, cls) == record

    check()


PROTOCOLS = [api.Store, api.LayerSnapshotter, api.Isolation, api.Checkpointer, api.Network, api.Transport, api.LogDriver,
             api.VolumeDriver, api.Engine, api.ShimControl, api.Workers, api.Ingest]  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: each.__name__)
def test_every_method_of_the_contract_has_a_codec(protocol: Any) -> None:
    from wherry.rpc.codec import decoder, encoder, is_object

    for name, function in methods_of(protocol).items():
        for argument, annotation in hints_of(function).items():
            if not is_object(annotation):
                assert callable(encoder(annotation)), (name, argument)
                assert callable(decoder(annotation)), (name, argument)


@pytest.mark.parametrize(
    "error",
    [
        NotFound("a", "b", "c", plugin="x.y"),
        PluginFault("a", "b"),
        api.CommandNotExecutable("a", "b"),
        OSError(28, "no space", "/f"),
        OSError(5, "io"),
        OSError("text"),
    ],
)
def test_errors(error: Any) -> None:
    again = decode_error(encode_error(error))
    assert type(again) is type(error)
    assert getattr(again, "plugin", "") == getattr(error, "plugin", "")
    if isinstance(error, Error):
        assert again.args == error.args
    else:
        assert isinstance(again, OSError)
        assert (again.errno, again.filename) == (error.errno, error.filename)


def test_a_subclass_of_a_plugin_travels_as_ours() -> None:
    class Special(NotFound):
        pass

    assert type(decode_error(encode_error(Special("a", "b")))) is NotFound
    assert type(decode_error({"class": "Nonsense", "what": "a", "cause": "b"})) is Error


# -- calls -----------------------------------------------------------------------------------------------------------------


def test_arguments(pair: Pair) -> None:
    things = pair.things
    assert things.echo(Record("x")) == Record("x"), "positional-only"
    assert things.add(1) == 6
    assert things.add(1, 2) == 3
    assert things.add(1, second=2, third=3) == 6
    with pytest.raises(TypeError, match="takes 2 arguments, 3 were given"):
        things.add(1, 2, 3)
    with pytest.raises(Invalid, match='no argument "fourth"'):
        things.add(1, fourth=2)
    with pytest.raises(Invalid, match='argument "first": "1" is a string, expected an integer'):
        things.add("1")
    with pytest.raises(Invalid, match='argument "first": true is a boolean, expected an integer'):
        things.add(True)
    with pytest.raises(Invalid, match="arguments of echo: one is not of the type it has to be: 'str' object has no"):
        things.echo("x")
    with pytest.raises(PluginFault, match="add: raised TypeError: "):
        things.add()
    assert things.label == "things"
    assert things.add(1) == 6, "the connection survived all of that"


def test_errors_over_the_socket(pair: Pair) -> None:
    with pytest.raises(api.CommandNotFound) as caught:
        pair.things.fail("error")
    assert (str(caught.value), caught.value.plugin, caught.value.exit_code) == ("exec: no such file; look", "a.b", 127)
    with pytest.raises(PermissionError) as denied:
        pair.things.fail("os")
    assert (denied.value.errno, denied.value.filename) == (13, "/x\udcff")
    with pytest.raises(OSError, match=r"^just text$"):
        pair.things.fail("bare")
    with pytest.raises(PluginFault, match="fail: raised SystemExit: x"):
        pair.things.fail("x")
    with pytest.raises(PluginFault, match="answer: raised TypeError: "):
        pair.things.wrong()


def test_calls_run_side_by_side(pair: Pair) -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(pair.things.slow(20.0))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert pair.object.waiting.acquire(timeout=10), "all ten run at once"
    assert pair.things.add(1) == 6, "a quick one does not wait for them"
    pair.object.go.set()
    for thread in threads:
        thread.join(10)
    assert len(names) == 10


def test_many_threads(pair: Pair) -> None:
    wrong: list[Any] = []

    def work(start: int) -> None:
        wrong.extend(number for number in range(start, start + 200) if pair.things.add(number, 1) != number + 1)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 2000, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert wrong == []


def test_streams(pair: Pair) -> None:
    assert list(pair.things.count(1000)) == list(range(1000))
    assert list(pair.things.count(0)) == []
    with pytest.raises(NotFound, match="the end: lost"):
        list(pair.things.count(-1))
    both = zip(pair.things.count(300), pair.things.count(300), strict=True)
    assert all(first == second for first, second in both)


def test_a_stream_does_not_run_ahead(pair: Pair) -> None:
    stream = pair.things.count(10**9)
    assert next(stream) == 0
    eventually(lambda: pair.object.counted >= 64)
    time.sleep(0.05)
    assert pair.object.counted <= 64
    assert [next(stream) for _ in range(100)] == list(range(1, 101))
    time.sleep(0.05)
    assert pair.object.counted <= 200
    stream.close()
    assert pair.object.closed.wait(5)


def test_a_forgotten_stream_ends(pair: Pair) -> None:
    stream = pair.things.count(10**9)
    next(stream)
    del stream
    pair.things.add(1)
    assert pair.object.closed.wait(5)


def test_a_stream_ends_with_the_connection() -> None:
    pair = Pair()
    stream = pair.things.count(10**9)
    next(stream)
    pair.close()
    assert pair.object.closed.wait(5)
    with pytest.raises(ConnectionLost):
        for _ in stream:
            pass


def test_binary_streams(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with (tmp_path / "f").open("rb") as stream:
        stream.read(4)
        assert pair.things.read(stream) == b"456789", "what Python read ahead is not lost"
    assert pair.things.read(io.BytesIO(b"x" * 3_000_000)) == b"x" * 3_000_000
    with (tmp_path / "g").open("wb") as sink:
        sink.write(b"head ")
        assert pair.things.fill(sink, b"body") == 4
    assert (tmp_path / "g").read_bytes() == b"head body"
    memory = io.BytesIO()
    pair.things.fill(memory, b"y" * 2_000_000)
    assert memory.getvalue() == b"y" * 2_000_000
    with pair.things.open() as opened:
        assert opened.read() == b"opened" * 200_000
    eventually(lambda: pair.object.opened.closed)


def test_descriptors_arrive_and_are_closed(pair: Pair) -> None:
    reading, writing = os.pipe()
    assert pair.things.stdio(api.Stdio(stdin=reading, stdout=writing)) == (True, True, False)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        pair.things.stdio(api.Stdio(stdin=reading, stdout=writing))
        pair.things.read(io.BytesIO(b"z"))
        pair.things.open().close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    os.close(reading)
    os.close(writing)


def test_objects(pair: Pair) -> None:
    first, second = pair.things.child("a"), pair.things.child("b")
    assert (first.hello(), second.hello(), first.name) == ("hello from a", "hello from b", "a")
    handle = first._handle
    del first
    pair.things.add(1)
    with pytest.raises(Invalid, match=f"there is no object {handle}"):
        make_proxy(Child, pair.channel, handle).hello()


def test_a_deadline(pair: Pair) -> None:
    limited = make_proxy(Things, RpcChannel(pair.near, timeout=lambda: 0.1), "")
    with pytest.raises(api.DeadlineExceeded, match=r"the other end: slow: did not return within 0.1 s"):
        limited.slow(0.5)
    time.sleep(0.6)
    assert limited.add(1) == 6, "the late answer is dropped, the connection still good"


def test_the_other_end_is_gone() -> None:
    pair = Pair()
    waiting: list[Exception] = []

    def wait() -> None:
        try:
            pair.things.slow(1)
        except Exception as error:
            waiting.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    pair.far.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in waiting] == [ConnectionLost] * 3
    with pytest.raises(ConnectionLost, match="the other end: "):
        pair.things.add(1)
    pair.close()


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff" * 8,
        b"\x00\x00\x00\x05hello",
        frame({"i": 1, "m": "nothing"}),
        frame({"i": 1, "m": "add", "a": {"first": []}}),
        frame({"i": 1, "m": "add", "o": [1]}),
        frame({"i": 1, "m": "__init__"}),
        frame({"i": 1, "m": "@__class__"}),
        frame({"i": "x", "z": 1}),
        frame({"n": 5}),
        frame({"i": 1, "m": ["add"]}),
        frame({"i": 1, "m": "add", "a": 5}),
        frame({"i": 1, "m": "stdio", "a": {"stdio": {"stdin": 7}}}),
        frame({"i": 1, "m": "read", "a": {"stream": [0, "r"]}}),
        frame({"f": 5}),
    ],
)
def test_rubbish_hurts_nobody_else(rubbish: bytes) -> None:
    pair = Pair()
    pair.near.sendall(rubbish)
    pair.near.settimeout(0.3)
    try:
        answer = Reader(pair.near).next()
        assert answer is None or "e" in answer[0]
    except TimeoutError:
        pass
    pair.close()
    other = Pair()
    assert other.things.add(1) == 6
    other.close()


def test_a_reader_that_took_frames_already() -> None:
    """As after a hello: the first call may have come in the same packet."""
    near, far = socket.socketpair()
    send(near, {"hello": 1})
    near.sendall(frame({"i": 1, "m": "add", "a": {"first": 1}}))
    reader = Reader(far)
    hello = reader.next()
    assert hello is not None
    thread = threading.Thread(target=serve, args=(Things, ThingsObject(), far), kwargs={"reader": reader}, daemon=True)
    thread.start()
    answer = Reader(near).next()
    assert answer == ({"i": 1, "r": 6}, [])
    near.close()
    thread.join(5)
    far.close()


def test_proxy_closes_the_connection() -> None:
    near, far = socket.socketpair()

    class Closing(Protocol):
        def close(self) -> None: ...
        def hello(self) -> str: ...

    class Object(ChildObject):
        def close(self) -> None:
            pytest.fail("the object itself is not closed")

    thread = threading.Thread(target=serve, args=(Closing, Object("x"), far), daemon=True)
    thread.start()
    proxy = Proxy(Closing, near)
    assert proxy.hello() == "hello from x"
    proxy.close()
    thread.join(5)
    far.close()
    with pytest.raises(ConnectionLost):
        proxy.hello()
