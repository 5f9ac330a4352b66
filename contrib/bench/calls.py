"""The system calls of one life, of ours and of the floor, by strace(1)."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

LIVES = 10


def counted(pids: Sequence[int], work: Callable[[], object], output: Path) -> Counter[str]:
    """System calls that the processes and their children make during work, by name."""
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(output), *[f"-p{pid}" for pid in pids]]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert tracer.stderr
    attached = 0
    while attached < len(pids):
        line = tracer.stderr.readline()
        if not line:
            raise RuntimeError("strace ended at once")
        attached += b"attached" in line
    time.sleep(0.2)
    for _ in range(LIVES):
        work()
    time.sleep(0.2)
    tracer.send_signal(signal.SIGINT)
    tracer.communicate()
    found: Counter[str] = Counter()
    for line in output.read_text().splitlines():
        match = re.fullmatch(r"\s*(\d+)\s+([a-z0-9_]+)\s*", line)
        if match and match[2] != "total":
            found[match[2]] += int(match[1])
    return found


def table(ours: Counter[str], floor: Counter[str]) -> str:
    """Markdown: calls of one life, those of ours and of the floor side by side."""
    lines = ["| system call | wherry | floor |", "|---|---:|---:|"]
    names = sorted({*ours, *floor}, key=lambda name: (-max(ours[name], floor[name]), name))
    for name in names:
        mine, theirs = ours[name] / LIVES, floor[name] / LIVES
        if max(mine, theirs) >= 0.5:
            lines.append(f"| {name} | {mine:.1f} | {theirs:.1f} |")
    lines.append(f"| all | {ours.total() / LIVES:.0f} | {floor.total() / LIVES:.0f} |")
    return "\n".join(lines)
