"""The benchmark runs from end to end; times are not judged here."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "contrib/bench/run"


def cells(text: str) -> list[list[str]]:
    """The table's."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.timeout(300)
def test_short_form_prints_every_row() -> None:
    """Peers that are not installed are reported by name; ours must run in each row."""
    done = subprocess.run(
        [RUN, "--short", "--calls", "--without", "user"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = cells(done.stdout)
    with_ours = {int(row[0]) for row in rows if row[0].isdigit() and row[3].startswith("wherry")}
    assert with_ours == {1, 2, 3, 4, 5, 7, 8, 10, 11, *([9] if shutil.which("iperf3") else [])}
    assert any(row[0] == "clone3" for row in rows), "the system calls were not counted"


@pytest.mark.timeout(200)
def test_rows_of_an_ordinary_user() -> None:
    others = "docker,podman,runc,crun,floor,wherry in process,podman rootless fuse-overlayfs"
    argv = [RUN, "--short", "--rows", "1,9", "--without", others]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    absent = [line for line in done.stdout.splitlines() if line.startswith("not run: user: ")]
    if absent:
        pytest.skip(absent[0])
    found = {(row[0], row[1], row[3]) for row in cells(done.stdout)}
    for subject in ("wherry rootless", "wherry rootless api"):
        assert ("1", "rootless run true", subject) in found, done.stdout
    if shutil.which("fuse-overlayfs"):
        assert ("1", "rootless run true, fuse-overlayfs", "wherry rootless fuse-overlayfs") in found, done.stdout
    if shutil.which("iperf3") and shutil.which("pasta"):
        for what in ("rootless, between two containers", "rootless, to a published port"):
            assert ("9", what, "wherry rootless") in found, done.stdout


def test_unknown_row_is_refused() -> None:
    done = subprocess.run([RUN, "--rows", "1,99"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no row [99]" in done.stderr


def test_ended_by_a_signal_that_comes_twice() -> None:
    """As timeout(1) sends it. That nothing is left is looked at after each test."""
    bench = subprocess.Popen([RUN, "--rows", "11", "--without", "docker,podman"], stdout=subprocess.PIPE, text=True)
    try:
        assert bench.stdout is not None
        assert bench.stdout.readline()  # all peers run
        bench.send_signal(signal.SIGTERM)
        time.sleep(0.05)  # two at once are one (signal(7))
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) == 143
    finally:
        bench.kill()
        bench.communicate(timeout=60)
