"""Mounts that a program serves (fuse(4)): a driver's mount of the type ``PREFIX`` + the program's name is served by that program.

The kernel and ``wherry.kit.isolation`` do the rest: who mounts it, and when the program ends.
"""

from __future__ import annotations

from wherry.linux.fuse import DEVICE, PREFIX

__all__ = ["DEVICE", "PREFIX"]
