"""How a shim's interpreter begins: the options travel in a memfd, since anyone may read a command line."""

from __future__ import annotations

import json
import os

from wherry.linux import exe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What the interpreter runs: a stand-in for the package's __init__, which a shim has no use for, then ``main``.
BOOT = (
    "import sys; core = sys.argv[1]; sys.path.append(core); "
    "package = type(sys)('wherry'); package.__path__ = [core + '/wherry']; package.__version__ = sys.argv[2]; "
    "sys.modules['wherry'] = package; "
    "from wherry.shim.compact import install; install(); "
    "from wherry.shim.main import main; main(int(sys.argv[3]))"
)


class ShimOptions:
    """run, root, config: directories and file, as given. python: the engine's interpreter, "" when no engine is to be started.
    exe: the shim's own. core: the directory that holds the package, of that version. env: the engine's. lock: a descriptor that
    holds <run>'s lock. listener, ready, state: descriptors, -1 for none; state is of a shim that replaces itself."""

    __slots__ = (
        "config", "core", "env", "exe", "listener", "lock", "python", "ready", "root", "run", "state", "version",
    )  # fmt: skip

    def __init__(self, record: dict[str, Any]) -> None:
        self.run: str = record["run"]
        self.root: str = record["root"]
        self.config: str = record["config"]
        self.python: str = record["python"]
        self.exe: str = record["exe"]
        self.core: str = record["core"]
        self.version: str = record["version"]
        self.env: dict[str, str] = record["env"]
        self.lock: int = record["lock"]
        self.listener: int = record["listener"]
        self.ready: int = record["ready"]
        self.state: int = record["state"]

    def descriptors(self) -> list[int]:
        return [fd for fd in (self.lock, self.listener, self.ready, self.state) if fd >= 0]

    @classmethod
    def read(cls, fd: int) -> ShimOptions:
        """From the memfd, which is closed."""
        with os.fdopen(fd, "rb") as file:
            return cls(json.load(file))

    def execute(self) -> None:
        """Becomes the shim that these options describe; their descriptors go along. Returns only by OSError."""
        memory = os.memfd_create("wherry-options", 0)
        os.write(memory, json.dumps({name: getattr(self, name) for name in self.__slots__}).encode())
        os.lseek(memory, 0, os.SEEK_SET)
        try:
            for fd in self.descriptors():
                os.set_inheritable(fd, True)
            argv = [self.exe, "-I", "-S", "-c", BOOT, self.core, self.version, str(memory), "--run", self.run]
            exe.reexec(argv, {"LC_ALL": "C"}, self.exe)  # UTF-8 mode follows (PEP 540), without a table of characters
        finally:
            os.close(memory)
            for fd in self.descriptors():
                os.set_inheritable(fd, False)
