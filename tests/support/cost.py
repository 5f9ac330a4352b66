"""What a piece of work costs this process: seconds, and bytes of memory beyond what it had before."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define

MEMORY = 64 << 20
SECONDS = 30.0


@define
class Cost:
    seconds: float = 0.0
    memory: int = 0


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


@contextmanager
def measured() -> Iterator[Cost]:
    """The peak of resident memory (proc_pid_status(5), VmHWM) against what was resident before. Both are right when the block ended."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak begins anew
    cost, before, begun = Cost(), _status("VmRSS"), time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - begun
        cost.memory = max(0, _status("VmHWM") - before)


@contextmanager
def bounded() -> Iterator[None]:
    """The block has to do with 64 MiB and 30 seconds."""
    with measured() as cost:
        yield
    assert cost.memory <= MEMORY, f"{cost.memory >> 20} MiB more memory"
    assert cost.seconds <= SECONDS, f"{cost.seconds:.1f} s"
