"""Without root: ours and podman, both as the same ordinary user, whom the benchmark makes for itself."""

from __future__ import annotations

import compileall
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from peers import Engine
from world import ENVIRON, HERE, IMAGE, AbsentError, Spawner, World, need

from wherry.oci.filters import default_profile

NAME, ID = "wherrybench", 54321
FIRST, COUNT = 8_000_000, 65536
FUSE = "fuse-overlayfs"
#: /dev/net/tun and /dev/fuse as distributions have them, for everybody; (major, minor) of each.
_DEVICES = {"/dev/net/tun": (10, 200), "/dev/fuse": (10, 229)}

# The user exists in a mount namespace alone. Without the nearly empty cgroup2 of a hybrid host, at which crun stumbles.
_BECOME = f"""set -eu
place=$1; shift
[ -e /sys/fs/cgroup/cgroup.controllers ] || umount /sys/fs/cgroup/unified 2>/dev/null || true
for name in passwd group subuid subgid; do mount --bind "$place/$name" /etc/$name; done
for path in {" ".join(_DEVICES)}; do
    if [ -e $path ]; then mount --bind "$place/${{path##*/}}" $path; fi
done
exec setpriv --reuid={ID} --regid={ID} --clear-groups "$@"
"""


class User:
    """home is on a disk, run on a tmpfs; spawner starts commands as the user."""

    def __init__(self, world: World) -> None:
        for program in ("newuidmap", "newgidmap", "setpriv"):
            need(program)
        program = Path(sys.executable).parent / "wherry"
        for path in (program, *program.parents):
            if not path.exists() or not path.stat().st_mode & stat.S_IXOTH:
                raise AbsentError(f"an ordinary user can't run {program}: {path} bars it")
        compileall.compile_dir(HERE.parents[1] / "core", quiet=1)  # the user may not
        compileall.compile_dir(HERE.parents[1] / "plugins", quiet=1)
        place = world.base / "user"
        place.mkdir()
        texts = {
            "passwd": f"{NAME}:x:{ID}:{ID}::{place}/home:/bin/sh\n",
            "group": f"{NAME}:x:{ID}:\n",
            "subuid": f"{NAME}:{FIRST}:{COUNT}\n",
            "subgid": f"{NAME}:{FIRST}:{COUNT}\n",
        }
        for name, text in texts.items():
            before = Path(f"/etc/{name}").read_text() if name in ("passwd", "group") else ""
            (place / name).write_text(before + text)
        for path, numbers in _DEVICES.items():
            os.mknod(place / Path(path).name, stat.S_IFCHR | 0o600, os.makedev(*numbers))
            (place / Path(path).name).chmod(0o666)
        self.home, self.run = place / "home", world.run / "user"
        for directory in (self.home, self.run):
            directory.mkdir(mode=0o700)
            os.chown(directory, ID, ID)
        self.environ = {**ENVIRON, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.run)}
        self.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BECOME, "sh", str(place)]
        self.spawner = Spawner(self.run / "output", self.prefix)

    def close(self) -> None:
        self.spawner.close()


class Rootless(Engine):
    """What both have. A network of the user's own joins two containers; published ports are of the default network, by pasta."""

    def __init__(self, world: World, user: User) -> None:
        self.user = user
        self.spawner = user.spawner
        self.prepare(world)

    def rootless_neighbours(self, inner: int) -> tuple[int, int, int]:
        """The pids of two containers on one network, and of one more with that port published."""
        sleep = (IMAGE, "sleep", "100000")
        self.run("network", "create", *self.network_options, "bench")
        for name in ("left", "right"):
            self.run("run", *self.options, "--network", "bench", "--detach", "--name", name, *sleep)
        self.run("run", *self.options, "--publish", f"{self.port}:{inner}", "--detach", "--name", "web", *sleep)
        pids = []
        for name in ("left", "right", "web"):
            self.run("inspect", "--format", "{{.State.Pid}}", name)
            pids.append(int(self.spawner.text()))
        return pids[0], pids[1], pids[2]

    network_options: tuple[str, ...] = ()

    def part(self) -> None:
        self.run("rm", "--force", "left", "right", "web")
        self.run("network", "rm", "bench")


class RootlessWherry(Rootless):
    name = "wherry rootless"
    port = 18083

    def __init__(self, world: World, user: User, snapshotter: str = "overlayfs") -> None:
        need(snapshotter) if snapshotter == FUSE else None
        self.command = [str(Path(sys.executable).parent / "wherry")]
        self.environ = user.environ
        self.options = ("--snapshotter", snapshotter)
        super().__init__(world, user)

    def close(self) -> None:
        self.run("engine", "stop")


class RootlessApi:
    """``wherry.connect()`` in a resident process of the user's, on the engine of the command line."""

    def __init__(self, user: User) -> None:
        command = [*user.prefix, sys.executable, "-I", str(HERE / "user_api.py"), IMAGE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=user.environ, text=True
        )
        self.once()

    def once(self) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline() or "0") / 1e9

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


class RootlessPodman(Rootless):
    name = "podman"
    port = 18084
    network_options = ("--disable-dns",)  # ours answers names all the same

    def __init__(self, world: World, user: User, snapshotter: str = "overlayfs") -> None:
        program = need("podman")
        need("conmon")
        self.environ = {**user.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        profile = world.base / "user" / "seccomp.json"
        profile.write_text(default_profile())
        mark = f"podman-{snapshotter}"
        self.command = [
            program, "--root", str(user.home / mark), "--runroot", str(user.run / mark), "--cgroup-manager", "cgroupfs",
            "--events-backend", "file", "--storage-driver", "overlay",
        ]  # fmt: skip
        if snapshotter == FUSE:
            self.command += ["--storage-opt", f"overlay.mount_program={need(FUSE)}"]
        self.options = ("--pull", "never", "--log-driver", "k8s-file", "--security-opt", f"seccomp={profile}")
        super().__init__(world, user)

    def close(self) -> None:
        for words in (("rm", "--all", "--force", "--time", "0"), ("rmi", "--all", "--force"), ("system", "migrate")):
            self.run(*words)
        shutil.rmtree(self.user.run / "libpod", ignore_errors=True)
