"""Every hook. A plugin module implements those of its family with ``@hookimpl``; the entry point ``<family>.<id>`` in the
group ``wherry.plugins`` names the module, and only modules whose prefix names the family in question are imported.

Each implementation is called on its own, never through pluggy's chain, so that one that raises does not hide the others.

The table [plugin.<family>.<id>] is judged by Registration.config. A module of a family without registrations (decorate, listen
and the like) may name such an attrs class in a variable ``wherry_config``; its table is then judged by that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from wherry.interfaces.common import Descriptor, Event, Kind, Labels
    from wherry.interfaces.contributions import Frontend, LogDriver, Transport, VolumeDriver
    from wherry.interfaces.engine import RunRequest
    from wherry.interfaces.isolation import Isolation
    from wherry.interfaces.kernel import Registration
    from wherry.interfaces.network import Network
    from wherry.interfaces.snapshotter import Snapshotter
    from wherry.interfaces.store import Store

hookspec = pluggy.HookspecMarker("wherry")
hookimpl = pluggy.HookimplMarker("wherry")


class Hooks:
    """The hooks, in the order kinds, contributions with drivers of their own, contributions."""

    @hookspec
    def wherry_store(self) -> Registration[Any, Store]:  # type: ignore[empty-body]
        """[store] Registers an image store.

        Example: ``return Registration(id="local", config=LocalConfig, init=open_store)``
        """

    @hookspec
    def wherry_snapshotter(self) -> Registration[Any, Snapshotter]:  # type: ignore[empty-body]
        """[snapshotter] Registers a snapshotter.

        Example: ``return Registration(id="vfs", config=VfsConfig, init=VfsSnapshotter)``
        """

    @hookspec
    def wherry_isolation(self) -> Registration[Any, Isolation]:  # type: ignore[empty-body]
        """[isolation] Registers an isolation driver.

        Example: ``return Registration(id="namespaces", config=Config, init=Namespaces, probe=need_root)``
        """

    @hookspec
    def wherry_network(self) -> Registration[Any, Network]:  # type: ignore[empty-body]
        """[network] Registers a network driver.

        Example: ``return Registration(id="none", config=NoneConfig, init=NoneNetwork)``
        """

    @hookspec
    def wherry_transport(self) -> Registration[Any, Transport]:  # type: ignore[empty-body]
        """[transport] Registers where images come from; the id is the prefix of a reference, ``archive:x.tar``.

        Example: ``return Registration(id="archive", config=ArchiveConfig, init=Archive)``
        """

    @hookspec
    def wherry_log(self) -> Registration[Any, LogDriver]:  # type: ignore[empty-body]
        """[log] Registers a log driver.

        Example: ``return Registration(id="json-file", config=JsonFileConfig, init=JsonFile)``
        """

    @hookspec
    def wherry_volume(self) -> Registration[Any, VolumeDriver]:  # type: ignore[empty-body]
        """[volume] Registers a volume driver.

        Example: ``return Registration(id="local", config=VolumeConfig, init=LocalVolumes)``
        """

    @hookspec
    def wherry_frontend(self) -> Registration[Any, Frontend]:  # type: ignore[empty-body]
        """[frontend] Registers a front end, started with the engine when [engine] frontends lists it.

        Example: ``return Registration(id="cli", config=CliConfig, init=Cli)``
        """

    @hookspec
    def wherry_default_config(self) -> str:  # type: ignore[empty-body]
        """[defaults] The TOML text of the default config; the kernel itself names no driver.

        Example: ``return 'default = "standard"\\n[variant.standard]\\nstore = "local"\\n...'``
        """

    @hookspec
    def wherry_adjust_spec(self, spec: Mapping[str, Any], request: RunRequest) -> Mapping[str, Any] | None:
        """[adjust] A JSON merge patch (RFC 7396) to fold into the OCI spec, or None. Its owner is recorded for each field.

        Example: ``return {"process": {"env": [*spec["process"]["env"], "TZ=UTC"]}}``
        """

    @hookspec
    def wherry_validate_spec(self, spec: Mapping[str, Any], owners: Labels) -> str | None:
        """[validate] Judges the merged spec; a reason refuses it. owners maps JSON pointers to who set them.

        Example: ``return None if spec["root"].get("readonly") else "policy wants a read-only root"``
        """

    @hookspec
    def wherry_event(self, event: Event) -> None:
        """[listen] Called for each event, in order, on a thread of this plugin's own: a slow one delays nobody.

        Example: ``print(event.topic, event.id)``
        """

    @hookspec
    def wherry_credentials(self, host: str) -> tuple[str, str] | None:
        """[credentials] (user, secret) for a registry host "name[:port]", or None.

        Example: ``return ("robot", token()) if host == "registry.example" else None``
        """

    @hookspec
    def wherry_gc_roots(self) -> Collection[str]:  # type: ignore[empty-body]
        """[gcroots] Resources that gc must keep, written as in Context.hold.

        Example: ``return ["blob/sha256:...", "snapshot/overlayfs/cache-1"]``
        """

    @hookspec
    def wherry_verify_image(self, name: str, target: Descriptor) -> str | None:
        """[verify] Judges an image before it is used; a reason refuses it.

        Example: ``return None if signed(target.digest) else "no signature"``
        """

    @hookspec
    def wherry_decorate(self, kind: Kind, id: str, driver: object, config: Mapping[str, Any]) -> object:
        """[decorate] Wraps a driver: an object with the same Protocol, or driver itself. config is [plugin.decorate.<id>].

        Example: ``return Delayed(driver, config) if kind == "snapshotter" else driver``
        """


#: Which hook a family answers. Decorators, listeners and the like return nothing that is registered.
FAMILY_HOOK: dict[str, str] = {
    "store": "wherry_store",
    "snapshotter": "wherry_snapshotter",
    "isolation": "wherry_isolation",
    "network": "wherry_network",
    "transport": "wherry_transport",
    "log": "wherry_log",
    "volume": "wherry_volume",
    "frontend": "wherry_frontend",
    "defaults": "wherry_default_config",
    "adjust": "wherry_adjust_spec",
    "validate": "wherry_validate_spec",
    "listen": "wherry_event",
    "credentials": "wherry_credentials",
    "gcroots": "wherry_gc_roots",
    "verify": "wherry_verify_image",
    "decorate": "wherry_decorate",
}
