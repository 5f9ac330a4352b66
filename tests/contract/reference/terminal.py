"""A pty whose bytes threads carry to and from the streams of a Stdio."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading

from wherry.api import Stdio


def carry(source: int, target: int) -> None:
    """Copies until either side is gone, and closes both."""
    try:
        while chunk := os.read(source, 4096):
            os.write(target, chunk)
    except OSError:
        pass
    os.close(source)
    os.close(target)


class Terminal:
    def __init__(self, stdio: Stdio) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(stdio.rows, stdio.columns)
        for source, target in ((stdio.stdin, self.master), (self.master, stdio.stdout)):
            if source >= 0 and target >= 0:
                threading.Thread(target=carry, args=(os.dup(source), os.dup(target)), daemon=True).start()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        os.close(self.master)
