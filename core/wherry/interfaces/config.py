"""The config as records. TOML in, structured by cattrs with unknown keys forbidden and no coercion between types.

The first file found wins over the defaults of the "defaults" hook; files are never merged with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from wherry.interfaces.common import Kind


@frozen
class Variant:
    """A named choice of one driver per kind. In TOML a string or an array; a tuple is tried in order and the first whose
    probe passes is taken. An omitted key comes from ``extends``, else from the default variant.

    decorate: the first is the outermost; it replaces what would be inherited.
    """

    extends: str = ""
    store: tuple[str, ...] = ()
    snapshotter: tuple[str, ...] = ()
    isolation: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    decorate: tuple[str, ...] | None = None


@frozen
class EngineConfig:
    """[engine]. root "" is /var/lib/wherry or $XDG_DATA_HOME/wherry; run "" is /run/wherry or $XDG_RUNTIME_DIR/wherry.

    group: members may connect (socket 0660, <run> 0710). frontends are started with the engine; transport is asked for
    references without a prefix; log is the log driver, volume that of new volumes. adjusters: their order, unlisted ones follow
    by id. deadline: seconds for one driver call. idle_exit: seconds without work or containers, 0 is never. userns: "FIRST:COUNT",
    the host's ids that --userns=auto gives to root's containers; "" takes those of "containers" in /etc/subuid and /etc/subgid.
    """

    root: str = ""
    run: str = ""
    group: str = ""
    frontends: tuple[str, ...] = ()
    transport: str = ""
    log: str = ""
    volume: str = ""
    adjusters: tuple[str, ...] = ()
    deadline: float = 30.0
    idle_exit: float = 0.0
    userns: str = ""


@frozen
class Config:
    """The whole file. plugin is [plugin.<family>.<id>]: the table for Registration.config, less the kernel's own key
    ``process`` (bool, false): run this driver in a process of its own."""

    version: Literal[1] = 1
    default: str = "standard"
    engine: EngineConfig = EngineConfig()
    variant: Mapping[str, Variant] = field(factory=dict)
    plugin: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(factory=dict)


@frozen
class Origin:
    """One value of the effective config: key is dotted, "variant.standard.network"; origin is the file, or "defaults"."""

    key: str
    value: Any
    origin: str


@frozen
class PluginInfo:
    """One row of ``wherry plugins``. state: "ready" (initialised), "available" (not used yet), "skipped" (its probe says
    it can't run here), "failed"; reason belongs to the last two."""

    family: str
    id: str
    distribution: str
    version: str
    state: Literal["ready", "available", "skipped", "failed"]
    reason: str = ""
    process: bool = False
    lost_threads: int = 0


@frozen
class Process:
    """A process of Wherry's: start_time in clock ticks, as in /proc/PID/stat field 22."""

    pid: int
    start_time: int
    version: str


@frozen
class Info:
    """What ``wherry info --json`` prints, key by key. config: the file, "" for the defaults. chosen: variant -> kind ->
    driver; passed_over: variant -> kind -> driver -> reason. ids: which ids containers have, how those of layers become theirs,
    and why so ("namespace", "layers"). limits: what limits containers, or why nothing does."""

    engine: Process
    shim: Process
    root: str
    run: str
    config: str
    features: tuple[str, ...]
    chosen: Mapping[str, Mapping[Kind, str]]
    passed_over: Mapping[str, Mapping[Kind, Mapping[str, str]]]
    ids: Mapping[str, str] = field(factory=dict)
    limits: str = ""
