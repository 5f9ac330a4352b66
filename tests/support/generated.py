"""Layers made by chance: every kind of change that a layer can bring, one layer after the other, the same for the same seed."""

from __future__ import annotations

import random
import struct
import tarfile
from typing import Any

from support.layers import directory, hard, link, member

Member = tuple[tarfile.TarInfo, bytes]
_NAMES = ("a", "b", "c", "d", "e", "späße", "with space", ".hidden", "-rf", "n" * 120, "wh.", "x.wh.y")
_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o6711)
#: struct vfs_cap_data of revision 2 (capabilities(7)): cap_net_raw, effective.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


class Generator:
    """what a path is in the tree of all layers so far: "dir", "file" or "other"."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds: dict[str, str] = {}

    def layers(self, count: int) -> list[list[Member]]:
        """The first one lists its root; later ones mostly list the directories that they write into, as most writers do."""
        return [self._layer(first=not number, listed=self.random.random() < 0.7) for number in range(count)]

    def _layer(self, *, first: bool, listed: bool) -> list[Member]:
        self.before = dict(self.kinds)
        self.touched: set[str] = set()
        self.members: list[Member] = []
        self.listed = listed
        if first or self.random.random() < 0.3:
            self.members.append(directory("./", **self._attributes()))
        if not first:
            for _ in range(self.random.randrange(4)):
                self.random.choice((self._whiteout, self._whiteout, self._opaque))()
        adders = (
            self._file,
            self._file,
            self._file,
            self._directory,
            self._directory,
            self._link,
            self._hard,
            self._node,
        )
        for _ in range(self.random.randrange(1, 14)):
            self.random.choice((*adders, self._again) if self.members else adders)()
        return self.members

    # one change each

    def _whiteout(self) -> None:
        path = self._known()
        if path is None or self._taken(path) or any(info.name.rstrip("/") == path for info, _ in self.members):
            return  # what a layer lists and hides as well is another matter: not all agree on its times
        above, _, name = path.rpartition("/")
        self._list(above)
        self.members.append(member(f"{above}/.wh.{name}".lstrip("/")))
        self._forget(path)
        if self.random.random() < 0.5:
            self.touched.add(path)

    def _opaque(self) -> None:
        path = self._known("dir")
        if path is None or self._taken(path):
            return
        self._list(path)
        self.members.append(member(f"{path}/.wh..wh..opq"))
        for below in [known for known in self.kinds if known.startswith(f"{path}/")]:
            del self.kinds[below]
        self.touched.add(path)

    def _file(self) -> None:
        if path := self._place("file"):
            data = self.random.randbytes(self.random.choice((0, 1, 511, 512, 513, 5000)))
            more = self._attributes()
            headers = {}
            if self.random.random() < 0.2:
                headers["SCHILY.xattr.user.note"] = "kept"
            if self.random.random() < 0.1:
                headers["SCHILY.xattr.security.capability"] = CAPABILITY.decode("utf-8", "surrogateescape")
            self.members.append(member(path, data=data, pax_headers=headers, **more))

    def _directory(self) -> None:
        if path := self._place("dir"):
            self.members.append(directory(path, **self._attributes()))

    def _link(self) -> None:
        if path := self._place("other"):
            target = self.random.choice(("a", "../b", "/c/d", "nowhere", "/", "..", "späße"))
            self.members.append(link(path, target, **self._attributes()))

    def _hard(self) -> None:
        target = self._known("file")
        if target is not None and (path := self._place("file", target)):
            self.members.append(hard(path, target))

    def _node(self) -> None:
        if path := self._place("other"):
            kind = self.random.choice((tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE))
            self.members.append(
                member(path, kind, devmajor=1, devminor=self.random.randrange(3, 9), **self._attributes())
            )

    def _again(self) -> None:
        """A name given twice."""
        info, _ = self.random.choice(self.members)
        if info.isreg() and not info.name.rpartition("/")[2].startswith(".wh.") and self.kinds.get(info.name) == "file":
            self.members.append(member(info.name, data=b"again", **self._attributes()))

    # where and what

    def _known(self, kind: str = "") -> str | None:
        found = sorted(path for path, what in self.kinds.items() if kind in ("", what))
        return self.random.choice(found) if found else None

    def _taken(self, path: str) -> bool:
        """Whether this layer did something there already, or above or below it."""
        return any(
            path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in self.touched
        )

    def _place(self, kind: str, spared: str = "") -> str | None:
        above = self.random.choice(["", "", *sorted(path for path, what in self.kinds.items() if what == "dir")])
        if above.count("/") > 3:
            return None
        path = f"{above}/{self.random.choice(_NAMES)}".lstrip("/")
        known = self.kinds.get(path)
        if path in self.touched or path == spared:
            return None
        if known is not None and (known == "dir") != (kind == "dir") and self._taken(path):
            return None
        if spared.startswith(f"{path}/"):
            return None
        if known == "dir" and kind != "dir":
            self._forget(path)
        self._list(above)
        self.kinds[path] = kind
        self.touched.add(path)
        return path

    def _list(self, path: str) -> None:
        """The directories down to path, as a writer that lists them does."""
        parts = path.split("/") if path else []
        for length in range(1, len(parts) + 1):
            above = "/".join(parts[:length])
            if self.listed and above not in {info.name.rstrip("/") for info, _ in self.members}:
                self.members.append(directory(above, **self._attributes()))

    def _forget(self, path: str) -> None:
        for below in [known for known in self.kinds if known == path or known.startswith(f"{path}/")]:
            del self.kinds[below]

    def _attributes(self) -> dict[str, Any]:
        chance = self.random
        mtime = chance.choice((0, 1, 1_000_000_000, 1_234_567_890.5, 2**33))
        return {
            "mode": chance.choice(_MODES),
            "uid": chance.choice((0, 1000, 2**21 + 5)),
            "gid": chance.choice((0, 5)),
            "mtime": mtime,
        }
