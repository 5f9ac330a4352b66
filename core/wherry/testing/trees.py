"""Reads and changes the trees behind mounts as a worker would: by a process in a mount namespace of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

from wherry.interfaces.common import Mount


@frozen
class TreeEntry:
    """One path of a tree. kind: "file", "dir", "link", "fifo", "node"; content: of a file, or a link's target; mtime in ns."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    links: int
    inode: int
    content: bytes
    xattrs: Mapping[str, str]

    def plain(self) -> TreeEntry:
        """Without what two equal trees may differ in: inode number, and link count and time of a directory."""
        if self.kind == "dir":
            return evolve(self, inode=0, links=0, mtime=0)
        return evolve(self, inode=0)


def change(mounts: Sequence[Mount], *operations: Sequence[object]) -> dict[str, TreeEntry]:
    """Mounts the tree, carries out the operations in order and answers the whole tree, "." being its root.

    Operations: ("write", path, text[, mode]), ("fill", path, size), ("mkdir", path[, mode]), ("remove", path),
    ("rmtree", path), ("symlink", path, target), ("fifo", path), ("whiteout", path), ("chmod", path, mode), ("chown", path, uid, gid),
    ("utime", path, ns), ("xattr", path, name, text), ("append", path, text), ("rename", path, other), ("move", path, other),
    ("link", path, other).
    Raises OSError with the errno of what failed.
    """
    request = {
        "mounts": [
            {"type": mount.type, "source": mount.source, "target": mount.target, "options": mount.options}
            for mount in mounts
        ],
        "operations": operations,
    }
    command = [sys.executable, "-I", "-m", "wherry.testing.mounted"]
    done = subprocess.run(command, input=json.dumps(request).encode(), stdout=subprocess.PIPE, check=True, timeout=120)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise OSError(answer["errno"], f"in {list(mounts)}: {answer['error']}")
    return {
        path: TreeEntry(**{**values, "content": base64.b64decode(values["content"])})
        for path, values in answer["tree"].items()
    }


def tree(mounts: Sequence[Mount]) -> dict[str, TreeEntry]:
    """The whole tree behind mounts. Raises OSError."""
    return change(mounts)
