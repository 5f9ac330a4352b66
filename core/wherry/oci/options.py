"""Mount options of the OCI runtime-spec (config.md, "Mounts") as flags of mount_setattr(2) and data of a file system."""

from __future__ import annotations

from collections.abc import Iterable

from wherry.linux.mount import (
    ATTR_ATIME,
    ATTR_NOATIME,
    ATTR_NODEV,
    ATTR_NODIRATIME,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_NOSYMFOLLOW,
    ATTR_RDONLY,
    ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)

#: option: (attributes to set, to clear)
_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (ATTR_RDONLY, 0),
    "rw": (0, ATTR_RDONLY),
    "nosuid": (ATTR_NOSUID, 0),
    "suid": (0, ATTR_NOSUID),
    "nodev": (ATTR_NODEV, 0),
    "dev": (0, ATTR_NODEV),
    "noexec": (ATTR_NOEXEC, 0),
    "exec": (0, ATTR_NOEXEC),
    "noatime": (ATTR_NOATIME, ATTR_ATIME),
    "atime": (0, ATTR_ATIME),
    "relatime": (0, ATTR_ATIME),
    "norelatime": (0, ATTR_ATIME),
    "strictatime": (ATTR_STRICTATIME, ATTR_ATIME),
    "nostrictatime": (0, ATTR_ATIME),
    "nodiratime": (ATTR_NODIRATIME, 0),
    "diratime": (0, ATTR_NODIRATIME),
    "nosymfollow": (ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, ATTR_NOSYMFOLLOW),
}
_PROPAGATION: dict[str, int] = {
    "private": MS_PRIVATE,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
_IGNORED = frozenset(
    {"defaults", "bind", "rbind", "nofail", "auto", "noauto", "user", "nouser", "z", "Z", "idmap", "ridmap", "silent"}
)


class MountOptions:
    """A parsed list: attributes to set and clear, the same for all mounts below ("rro"), propagation, data, bind or rbind."""

    __slots__ = ("bind", "clear", "data", "propagation", "recursive", "recursive_clear", "recursive_set", "set")

    def __init__(self, options: Iterable[str]) -> None:
        self.set = self.clear = self.recursive_set = self.recursive_clear = self.propagation = 0
        self.bind = self.recursive = False
        self.data: list[tuple[str, str | None]] = []
        for option in options:
            if option in _ATTRIBUTES:
                wanted, unwanted = _ATTRIBUTES[option]
                self.set = self.set & ~unwanted | wanted
                self.clear = self.clear & ~wanted | unwanted
            elif option in _PROPAGATION:
                self.propagation = _PROPAGATION[option]
            elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
                wanted, unwanted = _ATTRIBUTES[option[1:]]
                self.recursive_set = self.recursive_set & ~unwanted | wanted
                self.recursive_clear = self.recursive_clear & ~wanted | unwanted
            elif option in ("bind", "rbind"):
                self.bind = True
                self.recursive = option == "rbind"
            elif option and option not in _IGNORED:
                key, equals, value = option.partition("=")
                self.data.append((key, value if equals else None))

    @property
    def attributes(self) -> int:
        """For fsmount(2), where nothing is there to clear."""
        return self.set


def propagation(name: str) -> int:
    """MS_* of a rootfsPropagation. KeyError for an unknown one."""
    return _PROPAGATION[name]
