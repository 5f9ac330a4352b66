"""The runtimes beside ours. Each is set up from nothing, in directories of the benchmark, and taken down again.

A peer has what it can do of: ``once`` (create, start, exit and delete of ``true``), ``hold`` and ``execute``, ``idle`` and
``helpers`` (for the memory row), ``together`` (many starts at once), ``version`` and ``ps``. All answer seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

from bundle import make_bundle
from world import ENVIRON, IMAGE, AbsentError, Spawner, World, memory_of, need, processes, remove_cgroups

from wherry.oci.filters import default_profile


def filter_bytes() -> bytes:
    """The compiled default filter, the same that our runs load."""
    from wherry.engine.containers.specs.profile import DEFAULT_CAPABILITIES
    from wherry.linux import caps
    from wherry.oci.filters import Filters

    mask = caps.mask(DEFAULT_CAPABILITIES)
    return Filters().compiled("", mask)


class Floor:
    """floor.c, compiled on the spot and kept running."""

    name = "floor"

    def __init__(self, world: World, hierarchies: list[str], syncs: int) -> None:
        compiler = need("cc")
        self.program = world.base / "floor"
        source = Path(__file__).with_name("floor.c")
        subprocess.run([compiler, "-O2", "-o", self.program, source], check=True)
        (world.base / "filter").write_bytes(filter_bytes())
        work = world.base / "floor-work"
        work.mkdir()
        self.command = [
            str(self.program),
            str(world.rootfs),
            str(work),
            str(world.base / "filter"),
            str(syncs),
            *hierarchies,
        ]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, letter: bytes) -> float:
        assert self.process.stdin
        assert self.process.stdout
        began = time.perf_counter()
        self.process.stdin.write(letter + b"\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != b"ok\n":
            raise RuntimeError("the floor program failed")
        return time.perf_counter() - began

    def once(self) -> float:
        return self.ask(b"r")

    def hold(self) -> None:
        self.ask(b"h")

    def execute(self) -> float:
        return self.ask(b"x")

    def drop(self) -> None:
        self.ask(b"k")

    def idle(self, count: int) -> None:
        for _ in range(count):
            self.ask(b"i")

    def helpers(self) -> tuple[int, int]:
        """(memory of the runtime's own processes in bytes, number of helper processes)."""
        return memory_of([self.process.pid]), 0

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        if self.process.wait():
            raise RuntimeError("the floor program failed")


class Bundled:
    """crun or runc on a ready bundle."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.program = need(name)
        self.spawner: Spawner = world.legacy
        self.state = world.run / name
        self.base = world.base / name
        self.group = f"wherry-bench-{os.getpid()}-{name}"
        self.bundle = make_bundle(self.base / "true", world.rootfs, ["true"], f"/{self.group}/true")
        self.sleeper = make_bundle(self.base / "sleep", world.rootfs, ["sleep", "100000"], f"/{self.group}/sleep")
        self.command = [self.program, "--root", str(self.state)]
        self.once()

    def once(self) -> float:
        return self.spawner.one([*self.command, "run", "--bundle", str(self.bundle), f"b{uuid4().hex[:8]}"])

    def hold(self) -> None:
        self.spawner.one([*self.command, "run", "--detach", "--bundle", str(self.sleeper), "held"])

    def execute(self) -> float:
        return self.spawner.one([*self.command, "exec", "held", "true"])

    def drop(self) -> None:
        self.spawner.one([*self.command, "delete", "--force", "held"])

    def close(self) -> None:
        subprocess.run([*self.command, "delete", "--force", "held"], check=False, capture_output=True)
        time.sleep(0.1)
        remove_cgroups(self.group)


class Engine:
    """docker and podman: the same command line."""

    name = ""
    command: list[str]
    environ = ENVIRON
    spawner: Spawner
    options: tuple[str, ...] = ()
    port = 18080  # on the host; each runtime has one of its own

    def run(self, *arguments: str) -> float:
        return self.spawner.one([*self.command, *arguments], self.environ)

    def prepare(self, world: World) -> None:
        self.run("load", "--input", str(world.archive))
        self.once()

    def words(self, *arguments: str) -> list[str]:
        return [*self.command, "run", *self.options, "--network", "none", *arguments]

    def once(self) -> float:
        return self.spawner.one(self.words("--rm", IMAGE, "true"), self.environ)

    def networked(self, *arguments: str, inner: int = 80) -> list[str]:
        """On the runtime's own bridge, with a published port."""
        return [
            *self.command,
            "run",
            *self.options,
            "--publish",
            f"{self.port}:{inner}",
            "--network",
            "bridge",
            *arguments,
        ]

    def published(self) -> float:
        return self.spawner.one(self.networked("--rm", IMAGE, "true"), self.environ)

    def neighbours(self, inner: int) -> tuple[int, int]:
        """The pids of two containers on the runtime's own bridge, of which the second has that port published."""
        plain = [
            *self.command,
            "run",
            *self.options,
            "--network",
            "bridge",
            "--detach",
            "--name",
            "left",
            IMAGE,
            "sleep",
            "100000",
        ]
        self.spawner.one(plain, self.environ)
        named = ("--detach", "--name", "right", IMAGE, "sleep", "100000")
        self.spawner.one(self.networked(*named, inner=inner), self.environ)
        pids = []
        for name in ("left", "right"):
            self.run("inspect", "--format", "{{.State.Pid}}", name)
            pids.append(int(self.spawner.text()))
        return pids[0], pids[1]

    def part(self) -> None:
        self.run("rm", "--force", "left", "right")

    def hold(self) -> None:
        self.spawner.one(self.words("--detach", "--name", "held", IMAGE, "sleep", "100000"), self.environ)

    def execute(self) -> float:
        return self.run("exec", "held", "true")

    def drop(self) -> None:
        self.run("rm", "--force", "held")

    def together(self, count: int) -> tuple[float, list[float]]:
        """(seconds until all have ended, seconds of each)."""
        answer = self.spawner.many([self.words("--rm", IMAGE, "true")] * count, self.environ)
        return answer["wall"] / 1e9, [elapsed / 1e9 for elapsed in answer["elapsed"]]

    def idle(self, count: int) -> None:
        for _ in range(count):
            self.spawner.one(self.words("--detach", "--label", "idle=1", IMAGE, "sleep", "100000"), self.environ)

    def drop_idle(self) -> None:
        self.run("ps", "--all", "--quiet", "--filter", "label=idle=1")
        ids = self.spawner.text().split()
        self.run("rm", "--force", *(("--time", "0") if self.name == "podman" else ()), *ids)

    def own_processes(self) -> list[int]:
        raise NotImplementedError

    def helpers(self) -> tuple[int, int]:
        pids = self.own_processes()
        return memory_of(pids), len(pids)

    def version(self) -> float:
        return self.run("version")

    def ps(self) -> float:
        return self.run("ps")


class Podman(Engine):
    name = "podman"
    port = 18081

    def __init__(self, world: World) -> None:
        program = need("podman")
        need("conmon")
        self.spawner = world.legacy
        self.environ = {**ENVIRON, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1", "TMPDIR": str(world.base)}
        profile = world.base / "seccomp.json"
        profile.write_text(default_profile())
        self.root = world.base / "podman"
        self.runroot = world.run / "podman"
        self.command = [
            program, "--root", str(self.root), "--runroot", str(self.runroot), "--tmpdir", str(world.run / "podman-tmp"),
            "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--network-config-dir", str(world.base / "podman-networks"),
        ]  # fmt: skip
        self.group = f"wherry-bench-{os.getpid()}-podman"
        self.options = (
            "--pull", "never", "--log-driver", "k8s-file", "--security-opt", f"seccomp={profile}",
            "--cgroup-parent", f"/{self.group}",
        )  # fmt: skip
        self.prepare(world)

    def own_processes(self) -> list[int]:
        mark = str(self.runroot)
        found = []
        for pid, (_, name) in processes().items():
            try:
                if name == "conmon" and mark in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
            except OSError:
                continue
        return found

    def close(self) -> None:
        subprocess.run([*self.command, "rm", "--all", "--force", "--time", "0"], check=False, capture_output=True)
        subprocess.run([*self.command, "rmi", "--all", "--force"], check=False, capture_output=True)
        # podman leaves its overlay directory mounted on itself
        for point in (self.root / "overlay", self.runroot):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        remove_cgroups(self.group)


class Docker(Engine):
    """With a daemon of its own, whose links and rules are in the benchmark's network namespace."""

    name = "docker"
    port = 18082

    def __init__(self, world: World) -> None:
        program, daemon = need("docker"), need("dockerd")
        need("containerd")
        self.spawner = world.spawner
        self.group = f"wherry-bench-{os.getpid()}-docker"
        self.socket = world.run / "docker.sock"
        self.exec_root = world.run / "docker"
        self.environ = {**ENVIRON, "DOCKER_CONFIG": str(world.base / "docker-config")}
        self.command = [program, "--host", f"unix://{self.socket}"]
        self.options = ("--pull", "never", "--log-driver", "json-file")
        self.log = (world.run / "dockerd.log").open("wb")
        self.root = world.base / "docker"
        self.process = subprocess.Popen(
            [
                daemon, "--host", f"unix://{self.socket}", "--data-root", str(self.root),
                "--exec-root", str(self.exec_root), "--pidfile", str(world.run / "dockerd.pid"),
                "--cgroup-parent", f"/{self.group}", "--config-file", str(world.base / "no-such-file.json"),
            ][:-2],
            stdout=self.log, stderr=self.log, env=self.environ,
        )  # fmt: skip
        try:
            self.wait(world)
            self.prepare(world)
        except BaseException:
            self.close()
            raise

    def wait(self, world: World) -> None:
        for _ in range(200):
            if self.process.poll() is not None:
                text = (world.run / "dockerd.log").read_text(errors="replace").strip().splitlines()
                raise AbsentError(f"dockerd does not start: {text[-1] if text else 'no output'}")
            if (
                subprocess.run(
                    [*self.command, "version"], capture_output=True, env=self.environ, check=False
                ).returncode
                == 0
            ):
                return
            time.sleep(0.1)
        raise AbsentError("dockerd does not answer within 20 s")

    def own_processes(self) -> list[int]:
        """dockerd, its containerd and the shims, which name its socket on their command line."""
        mark = str(self.exec_root)
        found = [self.process.pid]
        for pid, (_, name) in processes().items():
            try:
                if name.startswith("containerd") and mark in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
            except OSError:
                continue
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            listed = subprocess.run(
                [*self.command, "ps", "-aq"], capture_output=True, text=True, env=self.environ, check=False
            )
            if ids := listed.stdout.split():
                subprocess.run([*self.command, "rm", "-f", *ids], capture_output=True, env=self.environ, check=False)
            os.kill(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                for pid in self.own_processes():
                    os.kill(pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()
        remove_cgroups(self.group)
