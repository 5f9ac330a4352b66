"""What processes have read, written and sent, as the kernel counts it outside the files of a control group."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

TRANSFERRED = ("io.rbytes", "io.wbytes")
"""Bytes read from and written to storage, by the names of cgroup v2's io.stat."""


def of_processes(pids: Iterable[int]) -> dict[str, int]:
    """TRANSFERRED of processes that are alive, each with its children that have ended (proc_pid_io(5)): what a container's
    control group would say without one for block devices."""
    found = dict.fromkeys(TRANSFERRED, 0)
    for pid in pids:
        try:
            with open(f"/proc/{pid}/io", "rb") as file:
                said = dict(line.split(b": ") for line in file.read().splitlines())
        except OSError:  # it has ended, or is nobody's that we may look at
            continue
        found["io.rbytes"] += int(said.get(b"read_bytes", 0))
        found["io.wbytes"] += max(0, int(said.get(b"write_bytes", 0)) - int(said.get(b"cancelled_write_bytes", 0)))
    return found


def of_blkio(text: str) -> dict[str, int]:
    """The same of blkio.throttle.io_service_bytes_recursive (cgroup v1, blkio-controller.rst): "8:0 Read 4096"."""
    sums = dict.fromkeys(("Read", "Write"), 0)
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in sums:
            sums[words[1]] += int(words[2])
    return dict(zip(TRANSFERRED, sums.values(), strict=True))


def of_io_stat(text: str) -> dict[str, int]:
    """The same of io.stat (cgroup-v2.rst): "8:0 rbytes=4096 wbytes=0 rios=1 ..."."""
    found = dict.fromkeys(TRANSFERRED, 0)
    for line in text.splitlines():
        for word in line.split()[1:]:
            name, _, value = word.partition("=")
            if f"io.{name}" in found:
                found[f"io.{name}"] += int(value)
    return found


def of_network(pid: int) -> Mapping[str, int]:
    """Bytes and packets through the interfaces of a process's network namespace but lo, by /proc/PID/net/dev: nobody has to enter it.
    Nothing for a process that shares ours, whose traffic is not its own, or has ended."""
    try:
        if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            return {}
        with open(f"/proc/{pid}/net/dev", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return {}
    names = {"rx_bytes": 0, "rx_packets": 1, "tx_bytes": 8, "tx_packets": 9}
    found = {f"network.{name}": 0 for name in names}
    for line in lines:
        interface, _, columns = line.partition(":")
        if interface.strip() == "lo":
            continue
        values = columns.split()
        for name, at in names.items():
            found[f"network.{name}"] += int(values[at])
    return found
