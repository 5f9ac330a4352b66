"""network create, ls, inspect and rm: the networks of all drivers under one roof."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from attrs import evolve

from wherry.api import AlreadyExists, Error, InUse, Invalid, Network, NetworkConfig, NetworkInfo, NotFound
from wherry.engine.networks.endpoints import network_id
from wherry.engine.state.state import State
from wherry.kernel.log import logger as log
from wherry.kit.names import check_labels, check_name


class Networks:
    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()

    def create(self, config: NetworkConfig, driver: str) -> NetworkInfo:
        check_name(config.name, "network name")
        check_labels(config.labels)
        driver = driver or self._default()
        with self._lock:  # names are unique over all drivers, and each knows only its own
            for info in self._all():
                if info.config.name == config.name:
                    raise AlreadyExists(
                        f'network "{config.name}"', f'the network driver "{info.driver}" has one of that name'
                    )
            wish = evolve(config, created=time.time_ns())
            made = _info(driver, self._state.network(driver).create(wish))
        self._state.tell("network.created", made.id, {"name": config.name, "driver": driver})
        return made

    def _default(self) -> str:
        """The default variant's driver where it makes networks, else the first one here that does."""
        state = self._state
        ids = [state.kernel.variant("").ids["network"], *state.kernel.usable("network")]
        for id in ids:
            if "networks" in state.kernel.capabilities("network", id).provides:
                return id
        raise Invalid("network", "no driver here makes networks", "name one with --driver; see: wherry plugins")

    def list(self) -> tuple[NetworkInfo, ...]:
        return tuple(sorted(self._all(), key=lambda info: info.config.name))

    def _all(self) -> Iterator[NetworkInfo]:
        for id in self._state.kernel.usable("network"):
            try:
                driver: Network = self._state.network(id)
                yield from [_info(id, config) for config in driver.list()]
            except (Error, OSError) as error:
                log.info("network driver {} was passed over: {}", id, error)

    def _find(self, name: str) -> NetworkInfo:
        """By name, id, or a unique prefix of the id."""
        there = self.list()
        for info in there:
            if name in (info.config.name, info.id):
                return info
        found = [info for info in there if name and info.id.startswith(name)]
        if len(found) > 1:
            raise Invalid(f'network "{name}"', "several ids begin so", "give more digits")
        if not found:
            names = ", ".join(info.config.name for info in there)
            raise NotFound(f'network "{name}"', "no such network", f"there is {names}" if names else "")
        return found[0]

    def get(self, name: str) -> NetworkInfo:
        info = self._find(name)
        config, attachments = self._state.network(info.driver).inspect(info.config.name)
        names = {}
        for attachment in attachments:
            id = attachment.reservation.request.sandbox_id
            record = self._state.registry.get(id)
            names[id] = record.name if record is not None else ""
        return evolve(info, config=config, attachments=attachments, containers=names)

    def remove(self, name: str) -> None:
        with self._lock:  # of two at once the second one finds nothing
            info = self._find(name)
            if info.builtin:
                raise Invalid(f'network "{info.config.name}"', "is built in and can't be removed")
            try:
                self._state.network(info.driver).remove(info.config.name)
            except InUse:
                names = sorted(filter(None, self.get(info.id).containers.values()))
                if not names:
                    raise  # by somebody who is no container here
                users = ", ".join(f'"{name}"' for name in names)
                raise InUse(
                    f'network "{info.config.name}"',
                    f"is used by container {users}",
                    "stop what is in it, or take it out: wherry network disconnect NETWORK CONTAINER",
                ) from None
        self._state.tell("network.removed", info.id, {"name": info.config.name, "driver": info.driver})


def _info(driver: str, config: NetworkConfig) -> NetworkInfo:
    return NetworkInfo(network_id(driver, config.name), driver, config, builtin=config.name == driver)
