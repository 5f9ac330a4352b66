"""wherry.linux.counters: sums over devices, processes and interfaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.linux import counters

NOTHING = {"io.rbytes": 0, "io.wbytes": 0}


def test_io_stat_is_summed_over_devices() -> None:
    text = "8:0 rbytes=4096 wbytes=10 rios=1 wios=1 dbytes=7 dios=1\n253:1 rbytes=1 wbytes=2\n259:0\n"
    assert counters.of_io_stat(text) == {"io.rbytes": 4097, "io.wbytes": 12}
    assert counters.of_io_stat("") == NOTHING


def test_blkio_is_summed_over_devices() -> None:
    text = "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 4106\n8:0 Total 4106\n8:16 Read 4\nTotal 4110\n"
    assert counters.of_blkio(text) == {"io.rbytes": 4100, "io.wbytes": 10}
    assert counters.of_blkio("") == NOTHING


def test_processes_bring_their_ended_children(tmp_path: Path) -> None:
    """Measured where a file can be written to a disk: on tmpfs nothing counts."""
    script = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', \"open('file', 'wb').write(bytes(1 << 20))\"], check=True)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as child:
        assert child.stdout
        child.stdout.readline()
        found = counters.of_processes([child.pid, 0])
    if not found["io.wbytes"]:
        pytest.skip("the temporary directory is on no disk, or there is no /proc/PID/io")
    assert found["io.wbytes"] >= 1 << 20
    assert counters.of_processes([child.pid]) == NOTHING


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_traffic_of_another_namespace_is_read_from_outside() -> None:
    assert counters.of_network(os.getpid()) == {}
    script = "ip link set lo up; ip link add a0 type dummy; ip link set a0 up; echo; read x"
    with subprocess.Popen(
        ["unshare", "-n", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        child.stdout.readline()
        found = counters.of_network(child.pid)
        child.stdin.close()  # type: ignore[union-attr]
    assert set(found) == {"network.rx_bytes", "network.tx_bytes", "network.rx_packets", "network.tx_packets"}
    assert counters.of_network(child.pid) == {}
