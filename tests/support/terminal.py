"""A program on a terminal of its own, driven as a person would: wait for a text, type another."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """Forks argv onto a new terminal. ``expect`` reads until a text came, ``type`` writes, ``wait`` answers the exit code.

    ids: uid and gid of whoever it is to be; the terminal is theirs too.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        rows: int = 30,
        columns: int = 100,
        ids: tuple[int, int] | None = None,
    ) -> None:
        self.output = ""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(0, (rows, columns))
            if ids is not None:
                os.fchown(0, *ids)
                os.chdir(env["HOME"])
                os.setgroups([])
                os.setresgid(ids[1], ids[1], ids[1])
                os.setresuid(ids[0], ids[0], ids[0])
            os.execve(argv[0], list(argv), dict(env))

    def expect(self, text: str, seconds: float = 20) -> str:
        """What came up to and including text; it is taken."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} did not come; this did: {self.output!r}")
        before, _, self.output = self.output.partition(text)
        return before + text

    def _read(self, deadline: float) -> bool:
        if not select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # nobody has the other side any more
            return False
        self.output += data.decode(errors="replace")
        return bool(data)

    def type(self, text: str) -> None:
        """Raw characters: "\\r" is the return key, "\\x03" Ctrl-C."""
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def wait(self, seconds: float = 20) -> int:
        """The exit code; what is still written goes to output."""
        deadline = time.monotonic() + seconds
        while True:
            while select.select([self.master], [], [], 0)[0] and self._read(deadline):
                pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                raise AssertionError(f"it does not end; it wrote {self.output!r}")
            time.sleep(0.01)

    def close(self) -> None:
        """Ends what still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        os.close(self.master)
