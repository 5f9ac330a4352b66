"""Small file systems of a test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.tools import need


@contextmanager
def small_disk(directory: Path, size: int, *options: str) -> Iterator[Path]:
    """ext4 of so many bytes on a loop device, mounted at directory/disk; options: of mkfs.ext4. Skips where there are none."""
    need("mkfs.ext4")
    image, at = directory / "disk.img", directory / "disk"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", *options, image]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    done = subprocess.run(["mount", "-o", "loop", image, at], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True, timeout=60)
