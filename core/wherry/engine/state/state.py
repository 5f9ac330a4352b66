"""What every verb of the engine needs at hand, and the few ways to reach drivers."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wherry.api import Error, Event, Invalid, Isolation, Network, NotFound, RunRequest, Sandbox, Snapshotter
from wherry.engine.containers.index import ContainerIndex
from wherry.engine.containers.records import ContainerRecord, unpack_request
from wherry.engine.containers.sandboxes import SandboxMembers
from wherry.engine.networks.endpoints import SandboxEndpoint, network_id
from wherry.engine.networks.peers import Peers
from wherry.engine.state.database import EngineDatabase
from wherry.engine.state.events import EventBus
from wherry.engine.state.leases import Leases
from wherry.engine.state.sweeping import SweepLock
from wherry.engine.volumes.volumes import Volumes
from wherry.kernel.log import logger as log

if TYPE_CHECKING:
    from wherry.engine.images.images import Images
    from wherry.engine.shim.client import ShimClient
    from wherry.kernel import Drivers, Kernel
    from wherry.kernel.config import LoadedConfig

#: Threads that finish what ended: as many ends as that are worked on at once.
FINISHERS = 16
#: So long the spans of a removed container can still be asked for.
SPAN_SECONDS = 60.0


class State:
    """The parts of one engine. ``root`` and ``run`` as in the config; one ``State`` a root."""

    def __init__(
        self,
        *,
        root: Path,
        run: Path,
        loaded: LoadedConfig,
        database: EngineDatabase,
        bus: EventBus,
        leases: Leases,
        kernel: Kernel,
        shim: ShimClient,
        images: Images,
        quit_shim: threading.Event | None = None,
    ) -> None:
        self.root = root
        self.run = run
        self.loaded = loaded
        self.settings = loaded.config.engine
        self.database = database
        self.bus = bus
        self.leases = leases
        self.kernel = kernel
        self.shim = shim
        self.images = images
        self.registry = ContainerIndex()
        self.ranges = threading.Lock()
        """Held from the choice of a container's ids until its record has them."""
        self.memberships = SandboxMembers()
        self.peers = Peers(self)
        self.sweeping = SweepLock()
        self.volumes = Volumes(self)
        self.bundles = run / "bundles"
        self.cgroup = cgroup_parent(run)
        self.finishers = ThreadPoolExecutor(FINISHERS, "wherry-finish")
        self.finishers.submit(int)  # with one thread at least, work that no new one can be started for waits its turn
        self.closing = threading.Event()
        #: Whether the shim goes with this engine, should no container be left.
        self.quit_shim = quit_shim or threading.Event()
        #: The places of each sandbox that was made. Stored in the table sandboxes.
        self.attached: dict[str, tuple[SandboxEndpoint, ...]] = {}
        self._networks: dict[str, str] = {}

    # requests and records

    def request_of(self, record: ContainerRecord) -> RunRequest:
        """The request a container was made from; read from the database after a restart of the engine."""
        if record.request is None:
            rows = self.database.all("SELECT request FROM containers WHERE id = ?", (record.id,))
            if not rows:
                raise NotFound(f'container "{record.name}"', "no such container")
            record.request = unpack_request(rows[0][0])
        return record.request

    def spec_of(self, record: ContainerRecord) -> tuple[dict[str, Any], dict[str, str]]:
        """(spec, owners) as stored at the last start, empty before."""
        rows = self.database.all("SELECT spec, owners FROM containers WHERE id = ?", (record.id,))
        if not rows or not rows[0][0]:
            return {}, {}
        return json.loads(rows[0][0]), json.loads(rows[0][1] or "{}")

    def bundle(self, record: ContainerRecord) -> Path:
        return self.bundles / record.id

    # drivers

    def drivers(self, record: ContainerRecord) -> Drivers:
        """The drivers that made a container, as its variant decorates them now."""
        ids = record.drivers
        return self.kernel.variant(
            record.variant,
            store=ids.get("store", ""),
            snapshotter=ids.get("snapshotter", ""),
            isolation=ids.get("isolation", ""),
        )

    def isolation(self, record: ContainerRecord) -> Isolation:
        return self.drivers(record).isolation

    def snapshotter(self, record: ContainerRecord) -> Snapshotter:
        return self.drivers(record).snapshotter

    def network(self, id: str, record: ContainerRecord | None = None) -> Network:
        """A network driver; for a container whose variant has it as its default, as that variant decorates it."""
        if record is not None:
            drivers = self.drivers(record)
            if drivers.ids["network"] == id:
                return drivers.network
        return cast("Network", self.kernel.driver("network", id))

    def find_network(self, name: str, drivers: Drivers) -> tuple[str, str, Network]:
        """(network, driver id, driver) for a ``RunRequest.network`` that names no container: by name, id, or a unique prefix of
        the id. NotFound with what there is.

        "" is the variant's default network, which is named like its driver.
        """
        if not name or name == drivers.ids["network"]:
            return drivers.ids["network"], drivers.ids["network"], drivers.network
        if (known := self._networks.get(name)) is not None:
            return name, known, self.network(known)
        there: list[str] = []
        by_id: list[tuple[str, str, Network]] = []
        ids = [plugin.id for plugin in self.kernel.plugins() if plugin.family == "network"]
        for id in sorted(ids, key=lambda id: id != name):
            try:
                driver = self.network(id)
                found = [config.name for config in driver.list()]
            except (Error, OSError) as error:
                log.info("network driver {} was passed over: {}", id, error)
                continue
            if name in found:
                if name == id:  # built in: it can't go, so that it may be remembered
                    self._networks[name] = id
                return name, id, driver
            there += found
            by_id += [(one, id, driver) for one in found if network_id(id, one).startswith(name)]
        if len(by_id) == 1:
            return by_id[0]
        if by_id:
            raise Invalid(f'network "{name}"', "several ids begin so", "give more digits")
        raise NotFound(f'network "{name}"', "no such network", "there is " + ", ".join(sorted(there)) if there else "")

    def check_ports(self, request: RunRequest, driver_ids: Sequence[str]) -> None:
        """Invalid when the request publishes ports and no driver of its networks can. Those of one that is to be in no network wait
        until it is in one."""
        able = any("ports" in self.kernel.capabilities("network", id).provides for id in driver_ids)
        if not request.ports or able or (request.network == "none" and not request.networks):
            return
        port = request.ports[0]
        raise Invalid(
            f"port {port.container_port}/{port.protocol}",
            f'the network driver "{driver_ids[0]}" cannot publish ports',
            'leave out --publish, or name a network that can: "wherry network create"; "wherry info" tells why no other is in use',
        )

    def sandbox(self, record: ContainerRecord, netns: str, hostname: str) -> Sandbox:
        return Sandbox(
            id=record.sandbox_id, netns=netns, hostname=hostname, cgroup_parent=self.cgroup, idmap=record.idmap
        )

    # events

    def tell(self, topic: str, id: str, attributes: Mapping[str, str]) -> None:
        """Publishes an event of what has happened just now."""
        self.database.publish(Event(topic, id, time.time_ns(), attributes))

    # spans

    def traced(self, id: str, wished: bool) -> AbstractContextManager[object]:
        """Collects the spans of the block for ``Engine.spans``, when that is wished."""
        return self.kernel.tracing(id) if wished else nullcontext()

    def drop_spans(self, id: str) -> None:
        """Of a container that is gone, and was traced: a minute later this is done."""
        timer = threading.Timer(SPAN_SECONDS, self.kernel.drop_spans, (id,))
        timer.daemon = True
        timer.start()

    # the shim's own bookkeeping

    def forget(self, id: str, exec_id: str = "") -> None:
        """Has the shim drop a process that ended; a shim that is away has nothing to drop."""
        try:
            self.shim.forget_soon(id, exec_id)
        except Error as error:
            log.debug("shim.forget {} {}: {}", id[:12], exec_id[:12], error)

    def report(self, failures: list[tuple[str, Exception]], what: str) -> None:
        """Logs steps of a clean-up that failed; doctor finds what they left."""
        for name, error in failures:
            log.warning("{}: {} failed: {}", what, name, error)


def cgroup_parent(run: Path) -> str:
    """The cgroup, in each hierarchy, that all containers of a run directory are below."""
    return "/wherry-" + hashlib.sha256(str(run).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def attributes(record: ContainerRecord, **more: object) -> Mapping[str, str]:
    """What every event of a container tells: its name and image, then more; empty values are left out."""
    found = {"name": record.name, "image": record.image}
    found.update((key.rstrip("_"), str(value)) for key, value in more.items() if value not in ("", None))
    return found
