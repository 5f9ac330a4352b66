"""A machine outside: a network namespace with a cable to the test's own, which stands for the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.running import until

HOST, OUTSIDE = "198.51.100.1", "198.51.100.2"
HOST6, OUTSIDE6 = "2001:db8:1::1", "2001:db8:1::2"


class Outside:
    """Its address is OUTSIDE, the host's HOST; it knows no route to what is behind the host."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *argv: str, timeout: float = 30, **more: object) -> subprocess.CompletedProcess[str]:
        """A program of the host in there."""
        command = ["nsenter", "-t", str(self.pid), "-n", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, **more)  # type: ignore[call-overload, no-any-return]

    @contextmanager
    def running(self, *argv: str) -> Iterator[None]:
        """A program of the host in there, meanwhile."""
        server = subprocess.Popen(["nsenter", "-t", str(self.pid), "-n", *argv])
        try:
            yield
        finally:
            server.kill()
            server.wait(30)


@contextmanager
def outside() -> Iterator[Outside]:
    holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
    try:
        own = Path("/proc/self/ns/net").stat().st_ino
        until(lambda: Path(f"/proc/{holder.pid}/ns/net").stat().st_ino != own, 30)
        until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", 30)
        machine = Outside(holder.pid)
        for line in (
            f"link add wan0 type veth peer name wan0 netns {holder.pid}",
            f"address add {HOST}/24 dev wan0",
            f"-6 address add {HOST6}/64 dev wan0 nodad",
            "link set wan0 up",
        ):
            subprocess.run(["ip", *line.split()], check=True, timeout=30)
        for line in (
            f"address add {OUTSIDE}/24 dev wan0",
            f"-6 address add {OUTSIDE6}/64 dev wan0 nodad",
            "link set wan0 up",
            "link set lo up",
        ):
            assert machine.run("ip", *line.split()).returncode == 0
        yield machine
    finally:
        holder.kill()
        holder.wait(30)
        subprocess.run(["ip", "link", "delete", "wan0"], check=False, capture_output=True, timeout=30)
