"""``local``: volumes as directories below the driver's own.

``<root>/volume/local/NAME/_data`` is what containers see, ``volume.json`` beside it what was said when it was made. A volume is made
and removed under a name that no volume has, ".new-..." or ".gone-...", and renamed, so that there is all of it or nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress

from attrs import frozen

from wherry.api import Context, Labels, Mount, NotFound, Registration, Volume, VolumeDriver, hookimpl
from wherry.kit.files import fsync_directory, remove
from wherry.kit.names import check_name, is_name
from wherry.kit.options import read_options

_LONGEST = 255  # as a name of a file


@frozen
class LocalConfig:
    """[plugin.volume.local] has no keys."""


class LocalVolumes:
    """wherry.api.VolumeDriver. Thread-safe: the file system keeps all the state."""

    def __init__(self, _config: LocalConfig, context: Context) -> None:
        self._root = str(context.root)
        for name in os.listdir(self._root):
            if name.startswith((".new-", ".gone-")):  # of an engine that was killed
                with suppress(OSError):
                    self._erase(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name, 'volume name', _LONGEST)}"

    def create(self, name: str, options: Labels, labels: Labels) -> Volume:
        path = self._path(name)
        read_options(options, {}, 'the volume driver "local"')
        temporary = f".new-{secrets.token_hex(8)}"
        new = f"{self._root}/{temporary}"
        os.mkdir(new, 0o700)
        try:
            os.mkdir(f"{new}/_data")
            os.chmod(f"{new}/_data", 0o755)  # noqa: S103 - whatever the umask is: users of the container look into it
            with open(f"{new}/volume.json", "w", encoding="utf-8") as file:
                json.dump({"created": time.time_ns(), "labels": dict(labels)}, file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.rename(new, path)
            except OSError:  # not empty: it exists
                if not os.path.exists(f"{path}/volume.json"):
                    raise
            else:
                fsync_directory(self._root)
        finally:
            self._erase(temporary)  # unless it has become the volume
        return self.get(name)

    def get(self, name: str) -> Volume:
        path = self._path(name)
        try:
            with open(f"{path}/volume.json", encoding="utf-8") as file:
                said = json.load(file)
        except FileNotFoundError:
            raise NotFound(f'volume "{name}"', "no such volume") from None
        return Volume(name, "local", f"{path}/_data", said["created"], said["labels"])

    def mounts(self, name: str, container_id: str) -> tuple[Mount, ...]:
        return (Mount("bind", self.get(name).mountpoint, "", ("rbind",)),)

    def unmount(self, name: str, container_id: str) -> None:
        """Nothing is mounted but in the container."""

    def remove(self, name: str) -> None:
        gone = f".gone-{secrets.token_hex(8)}"
        try:
            os.rename(self._path(name), f"{self._root}/{gone}")
        except FileNotFoundError:
            return
        fsync_directory(self._root)
        self._erase(gone)

    def _erase(self, name: str) -> None:
        """With all below it, which containers made: however deep that is, it takes two descriptors and no recursion."""
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove(fd, os.fsencode(name))
        finally:
            os.close(fd)

    def list(self) -> Iterator[Volume]:
        for name in sorted(os.listdir(self._root)):
            if is_name(name, _LONGEST):
                try:
                    yield self.get(name)
                except NotFound:  # removed just now
                    continue


@hookimpl
def wherry_volume() -> Registration[LocalConfig, VolumeDriver]:
    return Registration(id="local", config=LocalConfig, init=LocalVolumes)
