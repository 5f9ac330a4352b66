"""The cgroups of containers, versions 1 and 2 (cgroups(7)), and what processes used where there are none."""

from __future__ import annotations

from wherry.linux.cgroup import Group, Layout, detect, read
from wherry.linux.cgroup1 import Group1
from wherry.linux.cgroup2 import Group2
from wherry.linux.counters import of_processes

__all__ = ["Group", "Group1", "Group2", "Layout", "detect", "of_processes", "read"]
