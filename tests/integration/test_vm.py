"""A short look at a machine with cgroup v2 and systemd, emulated; all of it by ``contrib/vm``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SHORT = ("tests/vm/test_cgroup2.py::test_limits_counters_and_freezer", "tests/vm/test_execs.py::test_roots[unfiltered]")


@pytest.mark.timeout(500)
def test_short() -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86 is not installed")
    built = subprocess.run(
        [TOP / "contrib/vm", "--is-built"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if built.returncode != 0:
        pytest.skip("there is no disk: contrib/vm --build makes it")
    done = subprocess.run(
        [TOP / "contrib/vm", "--timeout", "400", *SHORT],
        capture_output=True, text=True, errors="replace", timeout=480, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode == 125:
        pytest.skip(f"the virtual machine gave no result within its time: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SHORT)} passed" in done.stdout
