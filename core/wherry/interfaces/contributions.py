"""Contributions that have drivers of their own, chosen by id: transport, log, volume, frontend."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

from attrs import field, frozen

from wherry.interfaces.common import Descriptor, Labels, Mount
from wherry.interfaces.process import LogSink


@frozen
class NamedImage:
    """One image that a transport found: its name ("" when the source names none) and its manifest or index."""

    name: str
    target: Descriptor


class Transport(Protocol):
    """Where images come from. Its id is the prefix of a reference, "archive:"; without one, [engine] transport is asked.

    References arrive without the prefix. Errors: NotFound, Invalid, Denied, Unavailable.
    """

    def resolve(self, reference: str, platform: str) -> tuple[NamedImage, ...]:
        """The images that the reference stands for (an archive may hold several). platform is "os/arch[/variant]"."""
        ...

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        """A stream of the content from offset on; it need not be seekable."""
        ...

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        """Called only with the flag "push"."""
        ...


@frozen
class LogLine:
    """One recorded chunk: time in ns since the epoch, stream "stdout" or "stderr", and the bytes, newline included."""

    time: int
    stream: str
    data: bytes


class LogDriver(Protocol):
    """sink says what the logger shall write; read reads it back. An unknown option is Invalid and named."""

    def sink(self, id: str, options: Labels) -> LogSink: ...
    def read(
        self, id: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1
    ) -> Iterator[LogLine]:
        """since and until are ns since the epoch (0: no bound); tail counts lines, -1 is all. With follow the iterator
        yields an empty LogLine (data b"") at least twice a second while nothing comes, so that the caller can stop it."""
        ...

    def remove(self, id: str) -> None:
        """Deletes what was recorded; nothing happens when it is gone."""
        ...


@frozen
class Volume:
    """A volume as its driver knows it. mountpoint: where it is on the host, "" when nowhere; created: ns since the epoch."""

    name: str
    driver: str
    mountpoint: str = ""
    created: int = 0
    labels: Labels = field(factory=dict)
    options: Labels = field(factory=dict)


class VolumeDriver(Protocol):
    """Trees that outlive containers, by name (letters, digits, "_", "." and "-", the first a letter or digit).

    create is idempotent: for a volume that exists it answers that, with the labels it has. mounts and unmount surround each run of
    a container; mounts are data, the first has the target "". remove of what is gone does nothing. Which containers use a volume
    the engine knows. Errors: NotFound, Invalid (a name or option that it does not take), Unavailable.
    """

    def create(self, name: str, options: Labels, labels: Labels) -> Volume: ...
    def get(self, name: str) -> Volume: ...
    def mounts(self, name: str, container_id: str) -> tuple[Mount, ...]: ...
    def unmount(self, name: str, container_id: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def list(self) -> Iterator[Volume]: ...


@frozen
class Connection:
    """A client of engine.sock, handed to the front end that its first frame named. hello is that frame, fds came with it.

    The front end owns the socket and the fds and closes both. Frames: ``wherry.linux.framing``.
    """

    socket: socket.socket
    hello: Mapping[str, Any]
    fds: tuple[int, ...] = ()
    uid: int = 0
    gid: int = 0
    pid: int = 0


class Frontend(Protocol):
    """Started with the engine when listed in [engine] frontends. engine is a ``wherry.api.Engine``."""

    def serve(self, engine: Any) -> None:
        """Runs on a thread of its own and returns after stop()."""
        ...

    def handle(self, connection: Connection) -> None:
        """Serves one client of engine.sock whose first frame says ``"frontend": "<id>"``, on a thread of its own."""
        ...

    def stop(self) -> None: ...


__all__ = ["Connection", "Frontend", "LogDriver", "LogLine", "NamedImage", "Transport", "Volume", "VolumeDriver"]
