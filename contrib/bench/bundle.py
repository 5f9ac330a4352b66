"""The bundle for crun and runc: Docker's default profile, word for word that of our own runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from wherry.engine.containers.specs.profile import (
    DEFAULT_CAPABILITIES,
    MASKED_PATHS,
    MOUNTS,
    NET_SYSCTLS,
    READONLY_PATHS,
)
from wherry.oci.filters import default_profile

_MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
_KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])


def seccomp() -> dict[str, Any]:
    """The default profile in the runtime-spec's form: what holds for this machine and the default capabilities."""
    profile = json.loads(default_profile())
    rules = []
    for rule in profile["syscalls"]:
        wanted, refused = rule.get("includes", {}), rule.get("excludes", {})
        kernel = tuple(int(part) for part in wanted.get("minKernel", "0.0").split("."))
        if (
            ("arches" in wanted and _MACHINE not in wanted["arches"])
            or _MACHINE in refused.get("arches", [])
            or not set(wanted.get("caps", [])) <= set(DEFAULT_CAPABILITIES)
            or set(refused.get("caps", [])) & set(DEFAULT_CAPABILITIES)
            or kernel > _KERNEL
        ):
            continue
        rules.append({key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key) is not None})
    architectures = next(
        entry for entry in profile["archMap"] if entry["architecture"].endswith(os.uname().machine.upper())
    )
    names = [architectures["architecture"], *architectures.get("subArchitectures", [])]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": names,
        "syscalls": rules,
    }


def spec(rootfs: Path, args: list[str], cgroup: str) -> dict[str, Any]:
    capabilities = list(DEFAULT_CAPABILITIES)
    nodes = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1))
    rules = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"} for major, minor in nodes]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "oomScoreAdj": 0,
        },
        "root": {"path": str(rootfs), "readonly": False},
        "hostname": "bench",
        "mounts": [dict(mount) for mount in MOUNTS],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": rules},
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup", "network")],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "sysctl": dict(NET_SYSCTLS),
            "seccomp": seccomp(),
        },
    }


def make_bundle(directory: Path, rootfs: Path, args: list[str], cgroup: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(spec(rootfs, args, cgroup)))
    return directory
