"""isolation/namespaces: containers by Linux namespaces, cgroups, capabilities and seccomp, for root.

It compiles a spec into a plan (``wherry.oci.compile``), makes the container's cgroups, and has the shim clone the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, hookimpl

if TYPE_CHECKING:
    from wherry.kit.isolation.driver import NamespaceDriver


@frozen
class NamespacesConfig:
    """[plugin.isolation.namespaces]

    oom_score_adj: of containers whose spec says nothing; None leaves it as it is. kill_patience: seconds that ``delete`` with force
    gives the kernel to end killed processes.
    """

    oom_score_adj: int | None = None
    kill_patience: float = 10.0


def _init(config: NamespacesConfig, context: Context) -> NamespaceDriver:
    from wherry.kit.isolation.driver import NamespaceDriver

    return NamespaceDriver(config, context)


def _probe(_config: NamespacesConfig, context: Context) -> str | None:
    if context.uid != 0:
        return "needs root"
    missing = [name for name in ("mnt", "pid", "net", "ipc", "uts") if not Path(f"/proc/self/ns/{name}").exists()]
    if missing:
        return "this kernel has no namespaces of type " + ", ".join(missing)
    if not context.features & {"cgroup1", "cgroup2"}:
        return "no cgroup hierarchy with the memory or pids controller is mounted"
    return None


def _capabilities(_config: NamespacesConfig, _context: Context) -> Capabilities:
    return Capabilities(provides=frozenset({"exec", "exec-start", "pause", "netns"}))


@hookimpl
def wherry_isolation() -> Registration[NamespacesConfig, NamespaceDriver]:
    return Registration(id="namespaces", config=NamespacesConfig, init=_init, probe=_probe, capabilities=_capabilities)
