"""What an isolation driver under test needs beside a Context: a root file system, a spec, sandboxes, streams."""

from __future__ import annotations

import copy
import os
import select
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from wherry.errors import FailedPrecondition, InUse
from wherry.interfaces.common import Mount
from wherry.interfaces.isolation import CreateRequest, Isolation
from wherry.interfaces.process import Exit, Sandbox, Stdio, TaskState
from wherry.testing.harness import Harness

#: Seconds until a thing that must happen counts as not happening. Generous: machines may be busy.
PATIENCE = 20.0
APPLETS = "sh true false cat echo sleep id env pwd stty tty kill ls test touch hostname ps mkfifo"
MARKER = "inside the root of the container\n"

_CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
_PROCESS: Mapping[str, Any] = {
    "terminal": False,
    "user": {"uid": 0, "gid": 0},
    "args": ["true"],
    "env": ["PATH=/bin", "HOME=/"],
    "cwd": "/",
    "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
    "noNewPrivileges": False,
}
_MOUNTS = (
    ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
)


def make_rootfs(directory: Path) -> Path:
    """A root file system of static busybox with /marker, an /etc/passwd and a file that is not executable."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox: not in PATH; the isolation suite makes its root file system of a static one")
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "root"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, directory / "bin/busybox")
    for applet in APPLETS.split():
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "marker").write_text(MARKER)
    (directory / "bin/plain").write_text("#!/bin/sh\n")
    (directory / "bin/plain").chmod(0o644)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nworker:x:1234:4321::/tmp:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nworkers:x:4321:\nextra:x:77:worker\n")
    (directory / "tmp").chmod(0o1777)
    return directory


def process_of(*args: str, **changes: Any) -> dict[str, Any]:
    """An OCI ``process`` object (runtime-spec, config.md, "Process")."""
    return {**copy.deepcopy(dict(_PROCESS)), "args": list(args), **changes}


class HarnessTask:
    """A container or exec made for a test, with the ends of its streams that the test holds."""

    def __init__(self, driver: Isolation, id: str, exec_id: str, state: TaskState, stdin: int, stdout: int) -> None:
        self.driver = driver
        self.id = id
        self.exec_id = exec_id
        self.created = state
        self._stdin = stdin
        self._stdout = stdout
        self._seen = b""

    @property
    def pid(self) -> int:
        return self.driver.state(self.id, self.exec_id).pid

    def start(self) -> HarnessTask:
        self.driver.start(self.id, self.exec_id)
        return self

    def wait(self) -> Exit:
        ended = self.driver.wait(self.id, self.exec_id, PATIENCE)
        assert ended is not None, f"{self.id}: still running after {PATIENCE} s, wrote {self.peek()!r}"
        return ended

    def code(self) -> int | None:
        return self.wait().code

    def status(self) -> str:
        return self.driver.state(self.id, self.exec_id).status

    def write(self, data: bytes) -> None:
        os.write(self._stdin, data)

    def end_input(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def peek(self, seconds: float = 0.0) -> bytes:
        """What has been written so far; looks for this long."""
        deadline = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._stdout, 65536) if ready else b""
            if not chunk:
                return self._seen
            self._seen += chunk

    def expect(self, text: bytes) -> bytes:
        """Reads until text was written, and answers everything; AssertionError when it does not come."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.peek(0.05):
            assert time.monotonic() < deadline, f"{self.id}: {text!r} did not come, only {self._seen!r}"
        return self._seen

    def close(self) -> None:
        self.end_input()
        os.close(self._stdout)


class IsolationHarness(Harness[Isolation]):
    """Makes containers for the clauses; whatever a clause leaves behind is deleted by ``close``."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._tasks: list[HarnessTask] = []
        self._sandboxes: list[str] = []
        self._rootfs: Path | None = None

    @property
    def rootfs(self) -> Path:
        if self._rootfs is None:
            self._rootfs = make_rootfs(self.directory / "rootfs")
        return self._rootfs

    def spec(self, id: str, process: Mapping[str, Any]) -> dict[str, Any]:
        """A spec like that of ``runc spec``, with a cgroup below one directory for each harness."""
        namespaces = ("pid", "ipc", "uts", "mount", "cgroup", "network")
        return {
            "ociVersion": "1.2.0",
            "process": dict(process),
            "root": {"path": "rootfs", "readonly": False},
            "hostname": id[:63],
            "mounts": [
                {"destination": target, "type": kind, "source": source, "options": options}
                for target, kind, source, options in _MOUNTS
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in namespaces],
                "cgroupsPath": f"/wherry-test-{os.getpid()}/{id}",
                "resources": {},
            },
        }

    def request(self, id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False) -> CreateRequest:
        """The request for a container on ``rootfs``, its sandbox made."""
        if self.with_shim:
            self.shim.create_sandbox(Sandbox(id, cgroup_parent=f"/wherry-test-{os.getpid()}"))
            self._sandboxes.append(id)
        bundle = self.directory / "bundles" / id
        bundle.mkdir(parents=True, exist_ok=True)
        for name, text in (("hosts", "127.0.0.1 localhost\n"), ("hostname", f"{id}\n"), ("resolv.conf", "")):
            (bundle / name).write_text(text)
        root = Mount("bind", str(self.rootfs), "", ("rbind", "rw"))
        return CreateRequest(id, id, bundle, self.spec(id, process), (root,), stdio, start)

    def create(
        self, *args: str, id: str = "", terminal: bool = False, hold: bool = False, start: bool = False, **process: Any
    ) -> HarnessTask:
        """A container that is held before its execve. hold: stdin is kept open by the shim, not given by the test. start: it may go
        on by itself."""
        id = id or f"t-{uuid4().hex[:12]}"
        process = process_of(*args, terminal=terminal, **process)
        return self._made(id, "", process, terminal, hold, start)

    def launch(self, *args: str, **keywords: Any) -> HarnessTask:
        return self.create(*args, **keywords).start()

    def exec(
        self, task: HarnessTask, *args: str, terminal: bool = False, start: bool = False, **process: Any
    ) -> HarnessTask:
        """One more process in a running container, held before its execve, unless it is to start at once."""
        described = process_of(*args, terminal=terminal, **process)
        return self._made(task.id, f"x-{uuid4().hex[:8]}", described, terminal, False, start)

    def _made(
        self, id: str, exec_id: str, process: Mapping[str, Any], terminal: bool, hold: bool, start: bool = False
    ) -> HarnessTask:
        driver = self.open()
        stdin, writer = (-1, -1) if hold else os.pipe()
        reader, stdout = os.pipe()
        streams = Stdio(
            stdin, stdout, -1 if terminal else stdout, terminal=terminal, hold_stdin=hold, rows=24, columns=80
        )
        try:
            if exec_id:
                state = driver.exec(id, exec_id, process, streams, **({"start": True} if start else {}))
            else:
                state = driver.create(self.request(id, process, streams, start=start))
        except BaseException:
            for fd in (writer, reader):
                if fd >= 0:
                    os.close(fd)
            raise
        finally:
            for fd in (stdin, stdout):
                if fd >= 0:
                    os.close(fd)
        task = HarnessTask(driver, id, exec_id, state, writer, reader)
        self._tasks.append(task)
        return task

    def reopen(self) -> Isolation:
        driver = super().reopen()
        for task in self._tasks:
            task.driver = driver
        return driver

    def delete(self, task: HarnessTask, *, force: bool = False) -> Exit | None:
        """As the engine deletes: by the driver, then the shim forgets the process too."""
        ended = self.open().delete(task.id, task.exec_id, force=force)
        if self.with_shim:
            self._insist(lambda: self.shim.forget(task.id, task.exec_id))
        return ended

    def _insist(self, call: Callable[[], None]) -> None:
        """The shim may not have reaped yet what the driver saw end."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except (InUse, FailedPrecondition):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def close(self) -> None:
        try:
            for task in self._tasks[::-1]:
                task.close()
                self.delete(task, force=True)
            for id in self._sandboxes:
                self._insist(lambda id=id: self.shim.remove_sandbox(id))  # type: ignore[misc]
        finally:
            super().close()
            remove_cgroups(f"wherry-test-{os.getpid()}")


def remove_cgroups(name: str) -> None:
    """Removes what is left of the cgroup name in every hierarchy; one with processes in it stays."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        top = Path(target) / name
        if kind in {"cgroup", "cgroup2"} and top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    Path(directory).rmdir()
                except OSError:
                    break
