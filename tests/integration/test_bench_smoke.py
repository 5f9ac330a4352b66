"""The benchmark runs from end to end; times are not judged here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "contrib/bench/run"


@pytest.mark.timeout(300)
def test_short_form_prints_every_row() -> None:
    """Peers that are not installed are reported by name; ours must run in each row."""
    done = subprocess.run([RUN, "--short", "--calls"], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")
    ]
    with_ours = {int(row[0]) for row in rows if row[0].isdigit() and row[3].startswith("wherry")}
    assert with_ours == {1, 2, 3, 4, 5, 7, 8, 11, *([9] if shutil.which("iperf3") else [])}
    assert any(row[0] == "clone3" for row in rows), "the system calls were not counted"


def test_unknown_row_is_refused() -> None:
    done = subprocess.run([RUN, "--rows", "1,99"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no row [99]" in done.stderr
