"""Keys that let go of a container without ending it: Ctrl-P Ctrl-Q, or what --detach-keys says.

The terminal's input then goes to the container through a pipe and this module's thread, which looks for the sequence. Keys of
an incomplete sequence wait for the next one, as docker's do.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import evolve

from wherry.api import Stdio, Unavailable
from wherry.kit import threads
from wherry_plugins.frontend.cli.command import option

DEFAULT = b"\x10\x11"
_CHUNK = 1 << 16


def sequence(text: str) -> bytes:
    """The bytes of "ctrl-p,ctrl-q" or "x,ctrl-]"; none for "". ValueError for a key that is no single character."""
    keys = b""
    for name in text.split(",") if text else ():
        key = name.removeprefix("ctrl-")
        if len(key) != 1 or not key.isascii() or (name != key and not ("a" <= key.lower() <= "z" or key in "@[\\]^_")):
            raise ValueError(f'"{name}" is neither a character nor "ctrl-" and a letter or one of @[\\]^_')
        keys += bytes([ord(key.upper()) & 0x1F if name != key else ord(key)])
    return keys


#: The decorator of every command with a terminal.
keys_option = option(
    "--detach-keys", type=sequence, default=DEFAULT, metavar="KEYS", help="Keys that let go of it: ctrl-p,ctrl-q"
)


def scan(data: bytes, keys: bytes, matched: int) -> tuple[bytes, int]:
    """(what to pass on, how many keys are matched now); len(keys) of them: the sequence is complete and the rest is dropped."""
    passed = bytearray()
    for at in range(len(data)):
        byte = data[at : at + 1]
        if byte == keys[matched : matched + 1]:
            matched += 1
            if matched == len(keys):
                break
            continue
        passed += keys[:matched]
        matched = 1 if byte == keys[:1] else 0
        if not matched:
            passed += byte
    return bytes(passed), matched


@contextmanager
def watched(streams: Stdio, keys: bytes, leave: Callable[[], None]) -> Iterator[Stdio]:
    """Streams whose stdin comes through this process; leave is called on a thread of its own once the keys were typed."""
    if not keys or streams.stdin < 0:
        yield streams
        return
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    source = os.dup(streams.stdin)
    try:
        thread = threads.start(_pump, "cli-keys", (source, writer, stop, keys, leave))
    except Unavailable:
        for fd in (reader, writer, stop, source):
            os.close(fd)
        raise
    try:
        yield evolve(streams, stdin=reader)
    finally:
        os.eventfd_write(stop, 1)
        os.close(reader)
        thread.join()
        os.close(stop)


def _read(source: int) -> bytes | None:
    """None where nothing came after all (the terminal is non-blocking and another process was quicker), b"" at its end. A terminal
    that has hung up is no end of the container's input: the one who attaches next gives more."""
    try:
        return os.read(source, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _pump(source: int, sink: int, stop: int, keys: bytes, leave: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(stop, select.POLLIN)
    room = select.poll()
    room.register(sink, select.POLLOUT)
    room.register(stop, select.POLLIN)
    matched = 0
    try:
        while stop not in dict(poll.poll()):
            data = _read(source)
            if data is None:
                continue
            if not data:
                poll.unregister(source)
                continue
            passed, matched = scan(data, keys, matched)
            while passed and stop not in dict(room.poll()):
                passed = passed[os.write(sink, passed[: select.PIPE_BUF]) :]
            if matched == len(keys):
                leave()
                break
    except OSError:  # the container reads no more
        pass
    finally:
        os.close(source)
        os.close(sink)
