"""Variants: a named choice of one driver per kind, put together and judged before anything is touched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from wherry.errors import Error, Invalid, NotFound, Unavailable, suggest
from wherry.interfaces.common import Capabilities, Kind
from wherry.interfaces.config import Variant
from wherry.interfaces.isolation import Isolation
from wherry.interfaces.network import Network
from wherry.interfaces.snapshotter import LayerSnapshotter
from wherry.interfaces.store import Store
from wherry.kernel.calls import Pool
from wherry.kernel.config import LoadedConfig, variants_of
from wherry.kernel.decorators import Decorators
from wherry.kernel.drivers import Driver, provided
from wherry.kernel.guard import GuardTarget, guard
from wherry.kernel.protocols import protocols

KINDS: tuple[Kind, ...] = ("store", "snapshotter", "isolation", "network")


@frozen
class Drivers:
    """A variant put together: one guarded driver per kind. ids: which; network is the default network driver."""

    name: str
    store: Store
    snapshotter: LayerSnapshotter
    isolation: Isolation
    network: Network
    ids: Mapping[Kind, str] = field(factory=dict)
    capabilities: Mapping[Kind, Capabilities] = field(factory=dict)


@frozen
class Choice:
    """What was chosen for one kind, and what was passed over with which reason."""

    id: str
    passed_over: Mapping[str, str]


class Variants:
    """Resolves variants lazily; each combination is put together once. Thread-safe."""

    def __init__(
        self, loaded: LoadedConfig, pool: Pool, driver: Callable[[str, str], Driver], decorators: Decorators
    ) -> None:
        self._loaded = loaded
        self._pool = pool
        self._driver = driver
        self._decorators = decorators
        self._made: dict[tuple[str, str, str, str], Drivers] = {}
        self._guards: dict[tuple[str, str, str], Any] = {}
        self._choices: dict[tuple[str, str, tuple[str, ...]], Choice] = {}
        self._lock = threading.RLock()

    def get(self, name: str = "", store: str = "", snapshotter: str = "", isolation: str = "") -> Drivers:
        """The drivers of a variant, with one kind or another overridden. Raises NotFound (unknown variant or driver), Invalid
        (a pairing that can't work), Unavailable (none of a list can run), PluginFault."""
        key = (name, store, snapshotter, isolation)
        try:
            return self._made[key]
        except KeyError:
            pass
        with self._lock:
            if key not in self._made:
                wanted = {"store": store, "snapshotter": snapshotter, "isolation": isolation}
                self._made[key] = self._make(name or self._loaded.config.default, wanted)
            return self._made[key]

    def resolve(self, name: str) -> Variant:
        """The variant with everything filled in: from ``extends``, else from the default variant."""
        config = self._loaded.config
        if name not in config.variant:
            known = sorted(config.variant)
            raise NotFound(f'variant "{name}"', "not in the config", suggest(name, known, count=3))
        chain = [variant for _, variant in variants_of(config, name)]
        chain += [variant for _, variant in variants_of(config, config.default)]
        kinds = {kind: next((ids for each in chain if (ids := getattr(each, kind))), ()) for kind in KINDS}
        decorate = next((each.decorate for each in chain if each.decorate is not None), ())
        return Variant(config.variant[name].extends, **kinds, decorate=decorate)

    def choose(self, name: str, kind: str, ids: Sequence[str]) -> Choice:
        """The first of ids whose probe passes; a single one must. Raises NotFound, PluginFault, Invalid, Unavailable."""
        key = (name, kind, tuple(ids))
        with self._lock:
            if key not in self._choices:
                self._choices[key] = self._choose(name, kind, ids)
            return self._choices[key]

    def able(self, name: str, kind: Kind, flag: str) -> str:
        """The first driver of a variant's list that can run and provides the flag; "" without one."""
        name = name or self._loaded.config.default
        for id in getattr(self.resolve(name), kind):
            try:
                if flag in self._driver(kind, id).capabilities().provides and not self._driver(kind, id).probe():
                    return str(id)
            except Error:
                continue
        return ""

    def _choose(self, name: str, kind: str, ids: Sequence[str]) -> Choice:
        where = self._loaded.place("variant", name, kind)
        if not ids:
            raise Invalid(where, f"no {kind} is named", "name one, here or in the default variant")
        passed: dict[str, str] = {}
        errors: list[Error] = []
        for id in ids:
            try:
                reason = self._driver(kind, id).probe()
            except Error as error:
                if len(ids) == 1:
                    raise
                reason = str(error)
                errors.append(error)
            if not reason:
                return Choice(id, passed)
            passed[id] = reason
        if len(ids) == 1:
            raise Unavailable(
                f'{kind} driver "{ids[0]}"', passed[ids[0]], "it can't run here", plugin=f"{kind}.{ids[0]}"
            )
        reasons = "".join(f"\n  {id}: {reason}" for id, reason in passed.items())
        raise Unavailable(
            f"variant {name}", f"no {kind} of {', '.join(ids)} can run here:{reasons}", "name another one"
        )

    def _make(self, name: str, wanted: Mapping[str, str]) -> Drivers:
        variant = self.resolve(name)
        chosen: dict[str, str] = {}
        for kind in KINDS:
            override = wanted.get(kind, "")
            chosen[kind] = self.choose(name, kind, (override,) if override else getattr(variant, kind)).id
        capabilities = {kind: self._driver(kind, id).capabilities() for kind, id in chosen.items()}
        for needy, other, flags in provided(capabilities):
            needs = ", ".join(f'"{flag}"' for flag in sorted(flags))
            have = ", ".join(f'"{flag}"' for flag in sorted(capabilities[other].provides)) or "nothing"
            cause = f'{needy} "{chosen[needy]}" needs {needs} of the {other}, "{chosen[other]}" provides {have}'
            raise Invalid(f"variant {name}", cause, f"choose another {needy} or another {other}")
        decorate = variant.decorate or ()
        for id in decorate:
            self._decorators.need(id)
        made = {kind: self.guarded(kind, id, name, decorate) for kind, id in chosen.items()}
        return Drivers(name, **made, ids=chosen, capabilities=capabilities)  # type: ignore[arg-type]

    def guarded(self, kind: str, id: str, variant: str = "", decorate: Sequence[str] = ()) -> Any:
        """The driver, wrapped by the decorators and guarded; one object for each variant."""
        key = (variant, kind, id)
        with self._lock:
            if key not in self._guards:
                driver = self._driver(kind, id)
                self._guards[key] = self._guard(driver, variant, decorate)
            return self._guards[key]

    def _guard(self, driver: Driver, variant: str, decorate: Sequence[str]) -> Any:
        inner = driver.get()
        wrapped, blame = self._decorators.wrap(driver, inner, decorate)
        target = GuardTarget(
            driver.key,
            self._pool,
            driver.health,
            deadline=self._loaded.config.engine.deadline,
            variant=variant,
            isolated=driver.process and not decorate,
            on_hang=driver.on_hang,
            blame=blame,
        )
        return guard(wrapped, target, driver.family, *protocols(driver.family))
