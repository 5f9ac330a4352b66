"""What all runtimes under test share: directories, one image, one rootfs, one spec, one way to start a command."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IMAGE = "localhost/wherry-bench:latest"
APPLETS = ("true", "sh", "sleep", "cat")
ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class AbsentError(Exception):
    """A runtime that cannot take part, and why."""


class Spawner:
    """The process of spawner.py. prefix: a command that starts it elsewhere, such as unshare(1)."""

    def __init__(self, output: Path, prefix: Sequence[str] = ()) -> None:
        self.output = output
        command = [*prefix, "/usr/bin/python3", "-I", "-S", str(HERE / "spawner.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def many(self, argvs: Sequence[Sequence[str]], environ: Mapping[str, str] = ENVIRON) -> dict[str, Any]:
        """Starts all at once. RuntimeError when one of them fails, with what it printed."""
        assert self.process.stdin
        assert self.process.stdout
        self.output.unlink(missing_ok=True)
        request = {"argvs": argvs, "environ": dict(environ), "output": str(self.output)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if any(answer["codes"]):
            raise RuntimeError(f"{' '.join(argvs[0])}: exit {answer['codes']}: {self.text()[-600:]}")
        return answer

    def one(self, argv: Sequence[str], environ: Mapping[str, str] = ENVIRON) -> float:
        """Seconds from spawn to reaped."""
        return float(self.many([argv], environ)["elapsed"][0]) / 1e9

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def make_rootfs(directory: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise AbsentError("busybox is not installed")
    for name in ("bin", "etc", "proc", "sys", "dev", "root", "tmp"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\n")
    for name in ("hosts", "hostname", "resolv.conf"):
        (directory / "etc" / name).touch()


def make_archive(rootfs: Path, target: Path) -> None:
    """The rootfs as one layer in the form of ``docker save``, which every runtime here loads."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, arcname=".")
    data = layer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Env": [f"PATH={ENVIRON['PATH']}"], "Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created": "2026-01-01T00:00:00Z"}],
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [IMAGE], "Layers": [f"{digest}/layer.tar"]}]).encode()
    with tarfile.open(target, "w") as tar:
        for path, content in ((name, config), (f"{digest}/layer.tar", data), ("manifest.json", manifest)):
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class World:
    """base is on a disk, run on a tmpfs, as a runtime's state and run directories are."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="wherry-bench-", dir="/var/tmp"))
        self.run = Path(tempfile.mkdtemp(prefix="wherry-bench-", dir="/dev/shm"))
        for directory in (self.base, self.run):
            directory.chmod(0o711)
        self.rootfs = self.base / "rootfs"
        make_rootfs(self.rootfs)
        self.archive = self.base / "image.tar"
        make_archive(self.rootfs, self.archive)
        self.spawner = Spawner(self.run / "output")
        self._legacy: Spawner | None = None

    @property
    def legacy(self) -> Spawner:
        """In a mount namespace without the nearly empty cgroup2 of a hybrid host, at which crun stumbles."""
        if self._legacy is None:
            if Path("/sys/fs/cgroup/cgroup.controllers").exists():
                return self.spawner
            script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
            prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
            self._legacy = Spawner(self.run / "output-legacy", prefix)
        return self._legacy

    def close(self) -> None:
        self.spawner.close()
        if self._legacy is not None:
            self._legacy.close()
        kill_users_of(self.run)
        for directory in (self.base, self.run):
            shutil.rmtree(directory, ignore_errors=True)


def need(program: str) -> str:
    """The path of a program. AbsentError when it is not installed."""
    found = shutil.which(program, path=ENVIRON["PATH"])
    if found is None:
        raise AbsentError(f"{program} is not installed")
    return found


def remove_cgroups(name: str) -> None:
    """Removes the empty cgroups named name in every hierarchy, deepest first."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind not in {"cgroup", "cgroup2"}:
            continue
        for directory, _, _ in os.walk(Path(target) / name, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                break


def kill_users_of(directory: Path) -> None:
    """Kills what still names the directory on its command line: daemons of a runtime that failed half-way."""
    for pid in processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def memory_of(pids: Sequence[int]) -> int:
    """Proportional set size of the processes, in bytes (proc_pid_smaps(5))."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, name) of every process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text.rpartition(")")[2].split()
            found[int(entry)] = (int(rest[1]), name)
    return found
