"""These run where the unified hierarchy has the controllers: a machine of its own, or one that contrib/vm starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vm.user import NAME
from vm.user import refused as refused_to_a_user


def refused() -> str:
    """Why they can't run here, or ""."""
    try:
        controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    except OSError:
        return "no unified cgroup hierarchy at /sys/fs/cgroup: contrib/vm runs these in a virtual machine"
    if missing := {"cpu", "memory", "pids"} - set(controllers):
        return f"the unified hierarchy lacks {', '.join(sorted(missing))}: contrib/vm runs these in a virtual machine"
    return "" if os.geteuid() == 0 else "needs root"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := refused():
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def user() -> str:
    """The machine's ordinary user, by name."""
    if reason := refused_to_a_user():
        pytest.skip(reason)
    return NAME
