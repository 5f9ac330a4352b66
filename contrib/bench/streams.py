"""Throughput between network namespaces, by iperf3: its client runs in one, its server in the other."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from world import need

SECONDS = 60.0  # for a command that hangs
#: Whether frames within a bridge pass the packet filter (Documentation/networking/ip-sysctl.rst), in this network namespace.
_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def inside(pid: int, *argv: str) -> list[str]:
    """A command in the network namespace of a process."""
    return ["nsenter", "--target", str(pid), "--net", *argv]


def address_of(pid: int) -> str:
    """The first address of a process's network namespace that is not loopback's."""
    argv = inside(pid, "ip", "-json", "-4", "address", "show", "scope", "global")
    listed = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=SECONDS).stdout)
    return str(next(info["local"] for link in listed for info in link.get("addr_info", ())))


def gigabits(client: int, server: int, address: str, port: int, inner: int, seconds: int) -> float:
    """Gbit/s from the namespace of one process to a server in that of the other, which is reached at address and port; inner is the
    port that it listens on. seconds: iperf3 takes whole ones, and 0 is for ever."""
    need("iperf3")
    command = inside(server, "iperf3", "--server", "--one-off", "--forceflush", "--port", str(inner))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as listening:
        try:
            assert listening.stdout
            for line in listening.stdout:
                if "listening" in line:
                    break
            argv = inside(client, "iperf3", "--client", address, "--port", str(port), "--time", str(seconds), "--json")
            done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=SECONDS + seconds)
            answer = json.loads(done.stdout)
            if "error" in answer:
                raise RuntimeError(f"iperf3 to {address}:{port}: {answer['error']}")
            return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
        finally:
            listening.kill()


def filtered() -> bool:
    """Whether the packet filter sees what containers of one bridge send each other."""
    return _FILTERED.exists() and _FILTERED.read_text().strip() == "1"


@contextlib.contextmanager
def unfiltered() -> Iterator[None]:
    """In the block it does not."""
    _FILTERED.write_text("0")
    try:
        yield
    finally:
        _FILTERED.write_text("1")


class Neighbours:
    """Namespaces made by hand: two ends of a veth pair, and a machine outside that reaches the benchmark's own by another pair."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self.left, self.right, self.outside = (self._namespace() for _number in range(3))
            self._pair(self.left, "10.254.1.1/24", self.right, "10.254.1.2/24")
            self._pair(0, "10.254.2.1/24", self.outside, "10.254.2.2/24")
        except BaseException:
            self.close()
            raise
        self.host = "10.254.2.1"

    def _namespace(self) -> int:
        process = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 100000"], stdout=subprocess.PIPE)
        self._processes.append(process)
        assert process.stdout
        process.stdout.readline()  # it is inside
        return process.pid

    def _pair(self, one: int, address: str, other: int, its: str) -> None:
        first, second = f"wb{other}a", f"wb{other}b"
        steps = [["ip", "link", "add", first, "type", "veth", "peer", "name", second]]
        for name, pid, text in ((first, one, address), (second, other, its)):
            enter = inside(pid) if pid else []
            if pid:
                steps.append(["ip", "link", "set", name, "netns", str(pid)])
            steps.append([*enter, "ip", "address", "add", text, "dev", name])
            steps.append([*enter, "ip", "link", "set", name, "up"])
        for argv in steps:
            subprocess.run(argv, check=True, capture_output=True, timeout=SECONDS)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def settled(measure: Callable[[], float], tries: int = 20) -> float:
    """The first measurement that works: rules and ports of a container may be there a moment after it is."""
    for _try in range(tries):
        try:
            return measure()
        except (RuntimeError, ValueError, KeyError):
            time.sleep(0.2)
    return measure()
