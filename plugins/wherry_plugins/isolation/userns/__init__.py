"""isolation/userns: containers of an ordinary user, in the user namespace that the user's shim and engine live in.

They are what isolation/namespaces makes, but for what the host's root alone may do: device nodes are bound from the host, what has
no control group can't be limited or paused, and every id is one of the user's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.isolation.userns.driver import UsernsDriver


@frozen
class UsernsConfig:
    """[plugin.isolation.userns]

    oom_score_adj: of containers whose spec says nothing; None leaves it as it is. kill_patience: seconds that ``delete`` with force
    gives the kernel to end killed processes.
    """

    oom_score_adj: int | None = None
    kill_patience: float = 10.0


def _init(config: UsernsConfig, context: Context) -> UsernsDriver:
    from wherry_plugins.isolation.userns.driver import UsernsDriver

    return UsernsDriver(config, context)


def _probe(_config: UsernsConfig, _context: Context) -> str | None:
    from wherry.kit import namespaces

    return (
        None
        if namespaces.confined()
        else "the engine is in no user namespace of an ordinary user's: see isolation.namespaces"
    )


def _capabilities(_config: UsernsConfig, _context: Context) -> Capabilities:
    from wherry.kit import cgroups

    return Capabilities(
        provides=frozenset({"exec", "exec-start", "netns", *(["pause"] if cgroups.detect().unified else [])})
    )


@hookimpl
def wherry_isolation() -> Registration[UsernsConfig, UsernsDriver]:
    return Registration(id="userns", config=UsernsConfig, init=_init, probe=_probe, capabilities=_capabilities)
