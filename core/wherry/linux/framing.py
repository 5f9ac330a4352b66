"""Length-framed JSON over a stream socket, with file descriptors (unix(7), SCM_RIGHTS). Stdlib only: the shim uses it too.

A frame is a 4-byte big-endian length and that many bytes of JSON text, an object. When descriptors travel with it, its key
"fds" counts them; they are sent with the first byte of the frame.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_FRAME = 64 << 20
MAX_FDS = 200  # below the kernel's SCM_MAX_FD of 253


class FrameError(ValueError):
    """The peer sent something that is not a frame."""


def encode(message: dict[str, Any], fds: Sequence[int] = ()) -> bytes:
    """One frame as bytes; "fds" is set when there are any."""
    if fds:
        message = {**message, "fds": len(fds)}
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise FrameError(f"frame of {len(body)} bytes: more than {MAX_FRAME}")
    return struct.pack("!I", len(body)) + body


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Sends one frame, blocking until all of it is out. Raises OSError; not safe for two threads at once."""
    data = encode(message, fds)
    if not fds:
        sock.sendall(data)
        return
    sent = sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


class Reader:
    """Takes frames out of a socket. Descriptors received are close-on-exec and belong to the caller of ``next``."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self) -> bool:
        """One recvmsg(2); False at end of stream. BlockingIOError where the socket is non-blocking and has nothing; FrameError where
        descriptors were lost, as at RLIMIT_NOFILE: those of a later frame would be taken for them."""
        data, ancillary, flags, _address = self.socket.recvmsg(
            1 << 16, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._fds.extend(received)
        if flags & socket.MSG_CTRUNC:
            raise FrameError("descriptors were lost: this process has no room for more")
        self._buffer += data
        return bool(data)

    def pop(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next whole frame that has arrived, or None. FrameError when it is none."""
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from("!I", self._buffer)
        if length > MAX_FRAME:
            raise FrameError(f"frame of {length} bytes: more than {MAX_FRAME}")
        if len(self._buffer) < 4 + length:
            return None
        body = bytes(memoryview(self._buffer)[4 : 4 + length])
        del self._buffer[: 4 + length]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"not JSON: {error}") from None
        if not isinstance(message, dict):
            raise FrameError("not a JSON object")
        count = message.pop("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise FrameError(f"frame says {count!r} descriptors, {len(self._fds)} came")
        fds, self._fds = self._fds[:count], self._fds[count:]
        return message, fds

    def next(self) -> tuple[dict[str, Any], list[int]] | None:
        """Blocks for the next frame; None at end of stream. FrameError when the stream ends inside a frame."""
        while (frame := self.pop()) is None:
            if not self.feed():
                if self._buffer:
                    raise FrameError("the stream ended inside a frame")
                return None
        return frame

    def close(self) -> None:
        """Closes descriptors that no frame claimed. The socket is the caller's."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
