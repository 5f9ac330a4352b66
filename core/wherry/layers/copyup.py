"""Fills an empty volume with what an image has at its place, as docker does: all of it, or nothing that anybody takes for it.

It is unpacked below a name of ours, which is renamed once everything is on the disk; only then its entries move up. Whatever ends this
in between, the next one finds by that name what to take away, or what is still to be moved.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import BinaryIO

from wherry.layers.apply import apply
from wherry.layers.copying import copy_attributes
from wherry.layers.diff import diff
from wherry.layers.paths import COPIED, COPYING, remove
from wherry.linux.path import open_in, syncfs

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_up(image: int, path: str, volume: int, empty: int, stream: BinaryIO, *, devices: bool) -> int:
    """Copies what the tree image has at path onto the directory volume, unless that holds something of its own; what an earlier one
    left is finished or taken away first. path: "" copies nothing. empty is an empty directory, stream an empty file for the time of
    it. The umask is 0. The number of entries; 0 when there was nothing to do. Raises OSError and what ``apply`` does."""
    if COPIED in os.listdir(volume):
        _move_up(volume)
        return 0
    remove(volume, os.fsencode(COPYING))
    if not path or os.listdir(volume):
        return 0
    try:
        source = open_in(image, path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    diff(empty, source, stream.write)
    stream.flush()
    stream.seek(0)
    os.mkdir(COPYING, 0o777, dir_fd=volume)  # like empty, from which the layer tells the difference
    staging = os.open(COPYING, _DIRECTORY, dir_fd=volume)
    try:
        done = apply(staging, stream, devices=devices)
    finally:
        os.close(staging)
    syncfs(volume)
    os.rename(COPYING, COPIED, src_dir_fd=volume, dst_dir_fd=volume)
    _move_up(volume)
    return done.entries


def _move_up(volume: int) -> None:
    staging = os.open(COPIED, _DIRECTORY, dir_fd=volume)
    try:
        found = os.fstat(staging)
        for name in os.listdir(staging):
            # What a container wrote there meanwhile is newer than the image.
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=volume, follow_symlinks=False)
                continue
            os.rename(name, name, src_dir_fd=staging, dst_dir_fd=volume)
        copy_attributes(staging, volume, found, found.st_uid, found.st_gid)
    finally:
        os.close(staging)
    syncfs(volume)
    remove(volume, os.fsencode(COPIED))
    os.utime(volume, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.fsync(volume)  # else a power cut brings the name back, and the next one overrides what a container did since
