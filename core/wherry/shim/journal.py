"""What a new shim must know of the tasks and sandboxes of a killed one: lines in shared memory that the logger holds too.

The file begins with the offset of the first valid line, 8 bytes; a line is a JSON object: {"task": state}, {"forget": [id, exec id]},
{"sandbox": record}, {"unbox": id}. It is written by pwrite(2) to memory only, so it costs a few microseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_HEAD = struct.Struct("=Q")
_COMPACT = 1 << 19
_PAGE = 4096
_PUNCH_HOLE = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Journal:
    """fd -1 makes a new one."""

    def __init__(self, fd: int = -1) -> None:
        if fd < 0:
            fd = os.memfd_create("wherry-ledger", os.MFD_CLOEXEC)
            os.pwrite(fd, _HEAD.pack(_PAGE), 0)
        self.fd = fd
        self._start: int
        self._end: int
        (self._start,) = _HEAD.unpack(os.pread(fd, _HEAD.size, 0))
        self._end = max(self._start, os.fstat(fd).st_size)

    def note(self, **line: Any) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._end += os.pwrite(self.fd, data, self._end)

    def heavy(self) -> bool:
        """Whether it is time for ``rewrite``."""
        return self._end - self._start > _COMPACT

    def rewrite(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replaces everything; a kill in the middle leaves the old lines valid."""
        start = (self._end + _PAGE - 1) // _PAGE * _PAGE
        self._end = start
        for line in lines:
            self.note(**line)
        old, self._start = self._start, start
        os.pwrite(self.fd, _HEAD.pack(start), 0)
        _fallocate(self.fd, _PUNCH_HOLE, old, start - old)

    def read(self) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, dict[str, Any]]]:
        """(task states by (id, exec id), sandboxes by id); a torn last line is passed over."""
        tasks: dict[tuple[str, str], dict[str, Any]] = {}
        sandboxes: dict[str, dict[str, Any]] = {}
        data = os.pread(self.fd, self._end - self._start, self._start)
        for text in data.split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if task := line.get("task"):
                tasks[task["id"], task["exec_id"]] = task
            elif forget := line.get("forget"):
                tasks.pop((forget[0], forget[1]), None)
            elif sandbox := line.get("sandbox"):
                sandboxes[sandbox["id"]] = sandbox
            elif gone := line.get("unbox"):
                sandboxes.pop(gone, None)
        return tasks, sandboxes
