"""Which ids this engine's containers have, and what there is to limit them: in words, for ``wherry info``."""

from __future__ import annotations

from collections.abc import Mapping

from wherry.linux import cgroup, userns
from wherry.shim import rootless


def words(run: str, features: frozenset[str]) -> Mapping[str, str]:
    """ "namespace": the ids and where they are from. "layers": how the ids of an image become a container's."""
    if not userns.confined():
        return {"namespace": "the host's own", "layers": "as they are" + _remapped(features)}
    single = rootless.read(run).get("single", "")
    ids = f"one, {userns.outer_uid()}, as {single}" if single else f"{_ranges()}, by newuidmap and newgidmap"
    layers = (
        "every owner is root, as there is one id only"
        if _alone()
        else "written at unpack with the user's own ids: the kernel idmaps mounts of file systems for the host's root alone; "
        "for --userns by fuse-overlayfs or by copies (vfs)"
    )
    return {"namespace": ids, "layers": layers}


def _remapped(features: frozenset[str]) -> str:
    if "mount.idmapped" in features:
        return "; for --userns by idmapped mounts"
    return "; no --userns: this kernel has no idmapped mounts"


def _alone() -> bool:
    return sum(size for _inside, _outside, size in userns.id_map()) == 1


def _ranges() -> str:
    rows = userns.id_map()
    return ", ".join(
        f"{inside} is {outside}"
        if size == 1
        else f"{inside} to {inside + size - 1} are {outside} to {outside + size - 1}"
        for inside, outside, size in rows
    )


def limits() -> str:
    """What limits containers."""
    layout = cgroup.detect()
    if layout.unified:
        return f"cgroup v2 at {layout.v2} ({' '.join(sorted(layout.v2_controllers))})"
    if layout.v1:
        return f"cgroup v1 ({' '.join(sorted(layout.v1))})"
    if userns.confined():
        return (
            "none: no part of a cgroup v2 tree is delegated to this user, as a systemd session does; "
            "--memory, --cpus, --pids-limit and pause are refused"
        )
    return "none: no hierarchy with the memory or pids controller is mounted"
