"""The bytes of one blob, over as many connections as it takes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from wherry_plugins.transport.registry import RegistryConfig
from wherry_plugins.transport.registry.connection import Response, TransferError
from wherry_plugins.transport.registry.retry import RetryPolicy

_CHUNK = 1 << 20
_SOON = 0.25
_PROGRESS = 1 << 18


class BlobStream(io.RawIOBase):
    """A blob from an offset on; size is that of the whole blob in bytes. What breaks off is gone on with where it broke.

    answer is the one to begin with; connect gives one whose body is the blob from an offset on. Unavailable when it has no end
    of breaking.
    """

    def __init__(
        self, answer: Response, connect: Callable[[int], Response], offset: int, size: int, config: RegistryConfig,
        patience: RetryPolicy, checkpoint: Callable[[], None],
    ) -> None:  # fmt: skip
        self._connect = connect
        self._at = offset
        self._size = size
        self._config = config
        self._patience = patience
        self._checkpoint = checkpoint
        self._answer: Response | None = answer
        self._broken: TransferError | None = None
        self._marked = offset
        self._window = (time.monotonic(), offset)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to size bytes: what comes within a quarter of a second, and at least one unless the blob is at its end."""
        want = min(size if size > 0 else _CHUNK, self._size - self._at)
        if size == 0 or want <= 0:
            return b""
        soon = time.monotonic() + _SOON
        pieces: list[bytes] = []
        got = 0
        while got < want and (not pieces or time.monotonic() < soon):
            self._checkpoint()
            try:
                piece = self._piece(want - got)
            except TransferError as broken:
                if self._answer is not None:
                    self._answer.close()
                    self._answer = None
                if pieces:
                    self._broken = broken
                    break
                self._patience.after(broken)
                self._answer = self._connect(self._at)
                self._window = (time.monotonic(), self._at)
                continue
            pieces.append(piece)
            got += len(piece)
        if self._at == self._size and self._answer is not None:
            self._answer.discard()
            self._answer = None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed names it __buffer
        view = memoryview(buffer)
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        super().close()

    def _piece(self, size: int) -> bytes:
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken
        if self._answer is None:
            raise TransferError("the connection was closed")
        piece = self._answer.read(min(size, _CHUNK))
        if not piece:
            raise TransferError(f"{self._answer.url.netloc} ended after {self._at} of {self._size} bytes")
        self._at += len(piece)
        if self._at - self._marked >= _PROGRESS or self._at == self._size:
            self._marked = self._at
            self._patience.progress()
        began, at = self._window
        passed = time.monotonic() - began
        if passed >= self._config.timeout:
            if self._at - at < self._config.min_speed * passed and self._at < self._size:
                raise TransferError(f"{self._answer.url.netloc} sent {self._at - at} bytes in {passed:.0f} s")
            self._window = (time.monotonic(), self._at)
        return piece
