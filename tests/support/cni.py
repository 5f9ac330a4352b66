"""Debian's CNI plugins, and what they leave in iptables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.isolation import isolated

BIN = "/usr/lib/cni"


def need_plugins() -> None:
    """Skips where they, or the iptables that they run, are not installed, and where the rules would be the host's."""
    if not Path(BIN, "bridge").exists():
        pytest.skip("containernetworking-plugins is not installed")
    if shutil.which("iptables") is None:
        pytest.skip("iptables is not installed")
    if not isolated():
        pytest.skip("the rules would be the host's")


def no_rules() -> None:
    """The plugins take their rules away and leave their chains; iptables leaves its tables."""
    for line in subprocess.run(
        ["nft", "list", "tables"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines():
        subprocess.run(["nft", "delete", *line.split()], timeout=60, check=True)
