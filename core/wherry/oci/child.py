"""The state of a child between clone3 and execve, and how it speaks to the shim.

Everything a step needs is prepared before the clone: strings as bytes, arrays for execve, the filter as a kernel structure.
After the child has entered the container nothing may be imported, decoded by a codec that is not built in, or looked up by
name other than through descriptors, since the container's own files would answer.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import socket
from collections.abc import Callable

from wherry.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Function = Callable[..., None]


class Failure(Exception):
    """An error that has a class of its own on the wire (wherry.errors by name); OSError needs no wrapping."""

    def __init__(self, name: str, what: str, cause: str, hint: str = "") -> None:
        super().__init__(name, what, cause, hint)
        self.message = {"class": name, "what": what, "cause": cause, "hint": hint, "errno": 0}


class Child:
    """One process on its way; the executors read and write its slots. Descriptors are -1 where there is none."""

    __slots__ = (
        "argv", "attributes", "candidates", "channel", "dev", "env", "env_count", "fds", "flags", "fresh", "gid", "groups",
        "has_peers", "home", "idmap", "inherited", "master", "namespaces", "path", "pidns", "proc", "program", "pts",
        "ready", "root", "search", "sockets", "source", "starts", "stdio", "sys", "target", "tasks", "uid", "unified", "wants_home",
    )  # fmt: skip

    def __init__(self) -> None:
        self.program: list[tuple[str, Function, tuple[Any, ...]]] = []
        self.channel = -1
        self.stdio: tuple[int, int, int] = (-1, -1, -1)
        self.fds: tuple[int, ...] = ()
        self.tasks: list[int] = []
        self.unified = -1  # the cgroup v2 directory that the process is still to be born in
        self.attributes: process.SpawnAttributes | None = None  # made ahead
        self.namespaces: dict[str, int] = {}
        self.target = -1
        self.pidns = -1  # the pid namespace that the second process of two is born in
        self.flags = 0
        self.idmap: dict[str, Any] = {}
        self.root = self.proc = self.sys = self.dev = self.pts = self.master = -1
        self.source: dict[int, int] = {}
        self.has_peers = False  # a source is a peer of the host's mount, as somebody asked for
        self.fresh: tuple[bytes, int] = (
            b"",
            -1,
        )  # the path and the root of a tmpfs that was placed last, nothing since
        self.ready: list[tuple[Any, int]] = []  # (type, options, attributes) and the detached mount of it, made ahead
        self.uid = self.gid = 0
        self.groups: list[int] = []
        self.home = b"/"
        self.argv: ctypes.Array[ctypes.c_char_p]
        self.env: ctypes.Array[ctypes.c_char_p]
        self.env_count = 0
        self.wants_home = False
        self.starts = False  # by itself, once it is ready
        self.candidates: tuple[bytes, ...] = ()
        self.search = False

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """One packet to the shim: JSON, with descriptors by SCM_RIGHTS."""
        data = json.dumps(message).encode()
        if not fds:
            os.write(self.channel, data)
            return
        with socket.socket(fileno=os.dup(self.channel)) as sock:
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def take_ready(self, wanted: Any) -> int:
        """A mount that was made ahead, as (type, options, attributes); -1 without one."""
        for index, (key, fd) in enumerate(self.ready):
            if key == wanted:
                del self.ready[index]
                return fd
        return -1

    def await_packet(self, expected: bytes) -> None:
        """Blocks for one packet of the shim; its end means that nobody will ever start this process: it goes."""
        while True:
            data = os.read(self.channel, 64)
            if data == expected:
                return
            if not data:
                os._exit(125)


def text(value: bytes | str) -> str:
    """Bytes as text for a message; the handler's look-up was made at import."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def describe(step: str, error: BaseException) -> dict[str, Any]:
    """The packet of an error: class, what, cause, hint, errno."""
    if isinstance(error, Failure):
        return error.message
    if isinstance(error, OSError):
        name = error.filename
        label = text(name) if isinstance(name, (bytes, str)) else ""
        what = f"{step} {label}" if label and label != step else step
        return {"class": "OSError", "what": what, "cause": error.strerror or "", "hint": "", "errno": error.errno or 0}
    return {"class": "Error", "what": step, "cause": f"{type(error).__name__}: {error}", "hint": "", "errno": 0}


def run(child: Child) -> None:
    """Runs the program and never returns: execve, or an error packet and exit status 125 (126, 127 as execve tells)."""
    step = "enter"
    try:
        for step, function, args in child.program:  # noqa: B007 (the name of the step that failed)
            function(child, *args)
        raise Failure("Invalid", "plan", "has no exec step")
    except BaseException as error:
        status = 125
        try:
            message = describe(step, error)
            status = {"CommandNotFound": 127, "CommandNotExecutable": 126}.get(message["class"], 125)
            child.send({"error": message})
        finally:
            os._exit(status)


# Codecs and error handlers are looked up once, here, on the host's side.
json.dumps({"warm": text(b"\xff\xc3\xa9"), "up": describe("x", OSError(2, os.strerror(2), b"y"))}).encode()
os.fsencode("\udcff")
os.fsdecode(b"\xff")
b"\xff".decode("utf-8", "replace")
json.loads(b'{"a": [1, "\\u00e9"]}')
