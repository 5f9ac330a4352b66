"""A container without engine and shim: a root file system of busybox, a spec with Docker's defaults, and a run of its plan."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.engine.containers.specs import capabilities, profile
from wherry.linux import caps
from wherry.oci import compile, filters

APPLETS = (
    "sh true cat ls id mount umount sleep hostname readlink stat echo mkdir ln touch rm test grep mknod dd date nsenter"
)
CORE = Path(compile.__file__).resolve().parent.parent.parent
_filters = filters.Filters()


class IdMap:
    """As wherry.api.IdMap."""

    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()


class RootMount:
    """As wherry.api.Mount."""

    def __init__(self, type: str, source: str, options: Sequence[str]) -> None:
        self.type = type
        self.source = source
        self.target = ""
        self.options = tuple(options)
        self.idmap = IdMap()


class Result:
    """What the spawner answered: created, error, code, output."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.answer = dict(answer)
        self.created: dict[str, Any] | None = answer["created"]
        self.error: dict[str, Any] | None = answer["error"]
        self.code: int | None = answer["code"]
        self.output: str = answer["output"]

    def __repr__(self) -> str:
        return f"Result({self.answer!r})"


class Box:
    """A rootfs below directory, which the container gets as a bind mount, and its spec, for tests to change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rootfs = directory / "rootfs"
        for name in ("bin", "etc", "tmp", "root"):
            (self.rootfs / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, self.rootfs / "bin/busybox")
        for applet in APPLETS.split():
            (self.rootfs / "bin" / applet).symlink_to("busybox")
        (self.rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nworker:x:1234:4321::/home/w:/bin/sh\n")
        (self.rootfs / "etc/group").write_text(
            "root:x:0:\nworkers:x:4321:\nextra:x:77:other,worker\nmore:x:78:worker\n"
        )
        names = list(profile.DEFAULT_CAPABILITIES)
        self.spec: dict[str, Any] = {
            "process": {
                "args": ["true"],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "capabilities": capabilities.sets(names),
            },
            "root": {},
            "hostname": "box",
            "mounts": [copy.deepcopy(dict(mount)) for mount in profile.MOUNTS],
            "linux": {
                "namespaces": [{"type": name} for name in ("mount", "pid", "ipc", "uts", "network")],
                "maskedPaths": list(profile.masked_paths()),
                "readonlyPaths": list(profile.READONLY_PATHS),
            },
        }
        self.root: RootMount = RootMount("bind", str(self.rootfs), ("rbind", "rw"))
        self.seccomp: str | None = ""
        self.sandboxed = True
        self.netns = ""

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["process"]
        return found

    @property
    def linux(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["linux"]
        return found

    def overlay(self) -> None:
        """An overlay over the rootfs instead of a bind."""
        for name in ("upper", "work"):
            (self.directory / name).mkdir(exist_ok=True)
        options = (f"lowerdir={self.rootfs}", f"upperdir={self.directory}/upper", f"workdir={self.directory}/work")
        self.root = RootMount("overlay", "overlay", options)

    def map_ids(self, first: int = 100000) -> None:
        """A user namespace, whose ids begin at first; the rootfs is given to them."""
        maps = [{"containerID": 0, "hostID": first, "size": 65536}]
        self.linux["namespaces"].insert(0, {"type": "user"})
        self.linux["uidMappings"] = self.linux["gidMappings"] = maps
        for path in (self.rootfs, *self.rootfs.rglob("*")):
            os.chown(path, first, first, follow_symlinks=False)

    def compiled(self) -> compile.Compiled:
        code = None
        if self.seccomp is not None:
            held = caps.mask(self.process["capabilities"]["bounding"])
            code = (_filters.compiled(self.seccomp, held), 0)
        host = compile.HostFacts(sandboxed=self.sandboxed, filter=code)
        return compile.container("box", self.spec, [self.root], host, bundle=str(self.directory))

    def plan(self) -> dict[str, Any]:
        made = self.compiled()
        return {
            "argv": made.argv,
            "env": made.env,
            "flags": made.flags,
            "steps": [step.encode() for step in made.steps],
            "join": made.join,
            "cgroups": [],
            "idmap": {"uids": made.idmap[0], "gids": made.idmap[1]},
        }

    def run(
        self,
        *argv: str,
        remove: Sequence[str] = (),
        patch: Mapping[str, Any] | None = None,
        strays: Sequence[str] = (),
        keep_strays: bool = False,
        change: Callable[[list[list[Any]]], None] | None = None,
        wrapper: Sequence[str] = (),
        timeout: float = 30,
        stdin: str = "/dev/null",
    ) -> Result:
        """Runs argv (else the spec's own) and answers what came of it. remove and patch make the vulnerable twins."""
        if argv:
            self.process["args"] = list(argv)
        plan = json.loads(json.dumps(self.plan()))
        if change is not None:
            change(plan["steps"])
        mapped = plan["idmap"] if self.sandboxed else {}
        task = {
            "plan": plan,
            "remove": list(remove),
            "patch": dict(patch or {}),
            "strays": list(strays),
            "keep_strays": keep_strays,
            "sandbox": {"netns": self.netns, "ipc": True, "uts": True, "idmap": mapped}
            if self.sandboxed
            else {"netns": "host", "ipc": False, "uts": False},
            "timeout": timeout,
            "stdin": stdin,
        }
        code = f"import sys; sys.path[:0] = [{str(CORE)!r}, {str(Path(__file__).parent)!r}]; import spawner; spawner.main()"
        ended = subprocess.run(
            [*wrapper, sys.executable, "-I", "-S", "-c", code],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return Result(json.loads(ended.stdout))

    def joined(self, script: str, *, dumpable: bool = False, early: bool = False, remove: Sequence[str] = ()) -> str:
        """What a hostile first process says of one that joins its container: script is given the joining one's pid as $x.

        early: as soon as that can be seen, not right before its execve. dumpable and remove make the vulnerable twins.
        """
        self.process["args"] = ["sh", "-c", f"echo ready; read x; {{ {script}; }} 2>&1; echo looked; sleep 1000"]
        container = self.plan()
        made = compile.exec("box", self.spec, {**self.process, "args": ["true"]}, compile.HostFacts())
        more = {**container, "argv": made.argv, "env": made.env, "flags": 0, "join": [], "idmap": {}}
        more["steps"] = [step.encode() for step in made.steps if step.name not in remove]
        code = (
            f"import sys; sys.path[:0] = [{str(CORE)!r}, {str(Path(__file__).parent)!r}]; import joiner; joiner.main()"
        )
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            input=json.dumps({"container": container, "exec": more, "dumpable": dumpable, "early": early}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        seen: str = json.loads(ended.stdout)["seen"]
        return seen
