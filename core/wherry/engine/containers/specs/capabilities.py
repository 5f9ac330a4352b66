"""Which capabilities a container gets (docker run, "Runtime privilege and Linux capabilities")."""

from __future__ import annotations

from collections.abc import Iterable

from wherry.api import Denied, Invalid
from wherry.engine.containers.specs.profile import DEFAULT_CAPABILITIES, held_capabilities
from wherry.errors import suggest
from wherry.linux import caps

ALL = "ALL"


def normalise(name: str, option: str) -> str:
    """``net_admin`` or ``CAP_NET_ADMIN`` -> ``CAP_NET_ADMIN``; "ALL" stays. Invalid for a name that no kernel has."""
    upper = name.upper()
    if upper == ALL:
        return ALL
    if not upper.startswith("CAP_"):
        upper = "CAP_" + upper
    if upper in caps.NAMES:
        return upper
    near = suggest(upper, caps.NAMES, otherwise="see capabilities(7)")
    raise Invalid(f'{option} "{name}"', "no such capability", near)


def choose(add: Iterable[str], drop: Iterable[str], *, privileged: bool) -> tuple[str, ...]:
    """The set, in the order of the default profile, then of the request. "ALL" in add wins over "ALL" in drop.

    Never more than this process holds: of the defaults and of "ALL" what is missing is left out, as runc does. Denied where
    one is asked for by name.
    """
    added = [normalise(name, "cap-add") for name in add]
    dropped = {normalise(name, "cap-drop") for name in drop}
    held = held_capabilities()
    if privileged:
        return held
    missing = [name for name in added if name != ALL and name not in held]
    if missing:
        raise Denied(f'cap-add "{missing[0]}"', "the engine does not have it itself, so it can't give it")
    if ALL in added:
        return tuple(name for name in held if name not in dropped)
    base = (
        () if ALL in dropped else tuple(name for name in DEFAULT_CAPABILITIES if name in held and name not in dropped)
    )
    return (*base, *dict.fromkeys(name for name in added if name not in base))


def sets(names: Iterable[str]) -> dict[str, list[str]]:
    """The OCI ``process.capabilities``: inheritable and ambient stay empty (CVE-2022-24769)."""
    chosen = list(names)
    return {"bounding": chosen, "effective": chosen, "permitted": chosen, "inheritable": [], "ambient": []}
