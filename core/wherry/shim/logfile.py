"""Log files as the logger writes them: framing, rotation, and a size that a killed writer can be rolled back to.

"json-file" is Docker's format (moby daemon/logger/jsonfilelog): one object {"log", "stream", "time"} a line, "log" with its
newline, time as RFC 3339 with nanoseconds. Bytes that are no UTF-8 become lone surrogates (U+DC80 to U+DCFF) as JSON escapes,
so nothing is lost: Python's surrogateescape gives them back, other readers see U+FFFD. "local" is ours: records of a
13-byte head (length of the data, ns since the epoch, stream 0 or 1; big-endian) and the data.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from _json import encode_basestring, encode_basestring_ascii

HEAD = struct.Struct("!IQB")
_NAMES = ("stdout", "stderr")
_second = 0
_second_text = ""


def timestamp(ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC."""
    global _second, _second_text
    second, fraction = divmod(ns, 1_000_000_000)
    if second != _second:
        _second, _second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_second_text}.{fraction:09d}Z"


def encode_json(data: bytes, stream: int, ns: int) -> bytes:
    """One object for each line of data; the last may lack its newline."""
    tail = f',"stream":"{_NAMES[stream]}","time":"{timestamp(ns)}"}}\n'
    try:
        text, quote = data.decode(), encode_basestring
    except UnicodeDecodeError:
        text, quote = data.decode("utf-8", "surrogateescape"), encode_basestring_ascii
    if "\\" not in text:  # then every \n in the quoted text is a line's end, and one pass quotes all lines
        body = quote(text).replace("\\n", f'\\n"{tail}{{"log":"')
        if text.endswith("\n"):
            body = body[: -len('{"log":""')]
            return ('{"log":' + body).encode()
        return ('{"log":' + body + tail).encode()
    lines = text.split("\n")
    last = lines.pop()
    parts = [f'{{"log":{quote(line)[:-1]}\\n"{tail}' for line in lines]
    if last:
        parts.append(f'{{"log":{quote(last)}{tail}')
    return "".join(parts).encode()


def encode_local(data: bytes, stream: int, ns: int) -> bytes:
    return HEAD.pack(len(data), ns, stream) + data


ENCODERS = {"json-file": encode_json, "local": encode_local}


class LogFile:
    """One log on a file system, opened at the first write. All writes go to the offset ``size``: what lies behind it is a
    broken batch and is cut off."""

    def __init__(self, path: str, format: str, max_size: int, max_file: int, size: int | None) -> None:
        """size: as far as the file is valid; None: all of it, however long it is. A size beyond the file's end means that
        the file was rotated away before that could be noted: nothing of the new one is valid."""
        self.path = path
        self.max_size = max_size
        self.max_file = max(1, max_file)
        self._encode = ENCODERS[format]
        self._fd = -1
        self._valid = size
        self.size = size or 0

    def open(self) -> bool:
        """True when it had to be opened, and ``size`` is news. OSError when it can't be."""
        if self._fd >= 0:
            return False
        self._fd = self._open()
        length = os.fstat(self._fd).st_size
        self.size = length if self._valid is None else self._valid if self._valid <= length else 0
        if length > self.size:
            os.ftruncate(self._fd, self.size)
        return True

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

    def batch(self) -> int:
        """How many raw bytes one write should take, so that a file does not outgrow max_size by much."""
        return max(512, self.max_size // 4) if self.max_size else 1 << 20

    def full(self) -> bool:
        return bool(self.max_size) and self.size >= self.max_size

    def rotate(self) -> None:
        """path becomes path.1, path.1 path.2, up to max_file files. Doing it again after a kill in the middle moves nothing twice."""
        gap = 1
        while gap < self.max_file - 1 and os.path.lexists(f"{self.path}.{gap}"):
            gap += 1
        if self.max_file == 1:  # a new file, so that whoever reads the old one can tell
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        else:
            for index in range(gap, 0, -1):
                source = f"{self.path}.{index - 1}" if index > 1 else self.path
                if os.path.lexists(source):
                    os.rename(source, f"{self.path}.{index}")
        fd = self._open()
        os.close(self._fd)
        self._fd = fd
        self.size = 0

    def write(self, data: bytes, stream: int) -> None:
        """Appends whole or not at all: OSError leaves the file as it was."""
        record = self._encode(data, stream, time.time_ns())
        view, offset = memoryview(record), self.size
        try:
            while view:
                count = os.pwrite(self._fd, view, offset)
                offset += count
                view = view[count:]
        except OSError:
            with contextlib.suppress(OSError):  # the next write goes to the same offset in any case
                os.ftruncate(self._fd, self.size)
            raise
        self.size = offset

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
