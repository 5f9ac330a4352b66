"""Puts an engine together, in the order in which the parts need each other, and takes it apart again."""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

from wherry.api import Error, Event, FailedPrecondition
from wherry.engine.containers.containers import Containers
from wherry.engine.containers.create import Creator
from wherry.engine.containers.execs import Execs
from wherry.engine.containers.exits import ExitHandler
from wherry.engine.containers.inspect import Inspector
from wherry.engine.containers.start import Starter
from wherry.engine.containers.streams import ContainerStreams
from wherry.engine.containers.update import Updater
from wherry.engine.images.gc import present
from wherry.engine.images.remove import ImageRemoval
from wherry.engine.networks.attach import Attacher
from wherry.engine.networks.connect import Connector
from wherry.engine.networks.networks import Networks
from wherry.engine.recovery import Recovery
from wherry.engine.state.database import EngineDatabase
from wherry.engine.state.events import EventBus, EventPruner
from wherry.engine.state.leases import Leases
from wherry.engine.state.ownership import DirectoryLock
from wherry.engine.state.reserve import DiskReserve
from wherry.engine.state.state import State, cgroup_parent
from wherry.engine.system import System
from wherry.kernel.config import LoadedConfig, load
from wherry.linux import cgroup

if TYPE_CHECKING:
    from wherry.engine.shim.client import ShimClient


@define
class Parts:
    """All verbs over one state."""

    state: State
    lifecycle: Containers
    execs: Execs
    streams: ContainerStreams
    views: Inspector
    images: ImageRemoval
    networks: Networks
    joining: Connector
    changing: Updater
    system: System
    recovery: Recovery
    reserve: DiskReserve
    closers: ExitStack

    def close(self) -> None:
        """Idempotent. The shim goes too when no container is left; else it stays with them for the next engine."""
        state = self.state
        if state.closing.is_set():
            return
        state.closing.set()
        state.bus.close()
        state.finishers.shutdown(wait=True)
        self.recovery.retire()
        self.closers.close()


def default_root(environ: os._Environ[str], configured: str) -> Path:
    """$WHERRY_ROOT, [engine] root, /var/lib/wherry for root, else wherry in the XDG data directory."""
    if text := environ.get("WHERRY_ROOT") or configured:
        return Path(text)
    if os.geteuid() == 0:
        return Path("/var/lib/wherry")
    return Path(environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()) / "wherry"


def default_run(environ: os._Environ[str], configured: str) -> Path:
    """$WHERRY_RUN, [engine] run, /run/wherry for root, else as the command line has it for an ordinary user."""
    if text := environ.get("WHERRY_RUN") or configured:
        return Path(text)
    if os.geteuid() == 0:
        return Path("/run/wherry")
    from wherry.client.hot import user_run

    return Path(user_run(environ.get("XDG_RUNTIME_DIR", ""), os.geteuid()))


def locate(
    root: Path | None, run: Path | None, config: str | os.PathLike[str] | LoadedConfig | None
) -> tuple[Path, Path, LoadedConfig]:
    """(root, run, config): what was given, else the environment's, the config's or the default. Both paths absolute."""
    loaded = config if isinstance(config, LoadedConfig) else load(Path(config) if config else None, os.environ)
    settings = loaded.config.engine
    root = (root or default_root(os.environ, settings.root)).absolute()
    run = (run or default_run(os.environ, settings.run)).absolute()
    return root, run, loaded


def assemble(
    root: Path | None,
    run: Path | None,
    config: str | os.PathLike[str] | LoadedConfig | None,
    *,
    resident: bool = False,
) -> Parts:
    """An engine ready to serve: locked, recovered. resident: the shim is its parent and stays when it ends.

    Raises Unavailable when another engine has the root, FailedPrecondition for an ordinary user, whose engine lives in the
    namespaces of its shim, and all that config, database or shim may raise; then nothing stays open.
    """
    if os.geteuid():
        raise FailedPrecondition(
            "engine",
            "an ordinary user's lives in a user namespace, which this process is not in",
            "reach it by wherry.connect(), which starts it",
        )
    root, run, loaded = locate(root, run, config)
    with ExitStack() as stack:
        _directories(root, run, loaded.config.engine.group)
        stack.callback(DirectoryLock(run / "engine.lock", "run directory").close)
        stack.callback(DirectoryLock(root / "engine.lock", "root").close)
        reserve = DiskReserve(root)
        with reserve.used():
            parts = _recovered(stack, root, run, loaded, reserve, resident)
        parts.closers = stack.pop_all()
        return parts


def _recovered(
    stack: ExitStack, root: Path, run: Path, loaded: LoadedConfig, reserve: DiskReserve, resident: bool
) -> Parts:
    bus = EventBus()
    database = EngineDatabase(root / "wherry.db", bus.deliver)
    stack.callback(database.close)
    leases = Leases(database, secrets.token_hex(8))
    state = _state(stack, root, run, loaded, database, bus, leases, resident)
    parts = combine(state, reserve)
    parts.recovery.load()
    parts.recovery.run()
    if reserve.is_given:  # now or never: their databases need room to be opened
        present(state.kernel, "store")
        present(state.kernel, "snapshotter")
    return parts


def combine(state: State, reserve: DiskReserve | None = None) -> Parts:
    """The verbs over a state. Nothing is recovered and nothing runs yet."""
    ending = ExitHandler(state)
    recovery = Recovery(state, ending)
    creation = Creator(state)
    attaching = Attacher(state, creation)
    lifecycle = Containers(state, creation, attaching, Starter(state, creation, attaching), ending)
    execs = Execs(state)
    system = System(state, lifecycle, recovery)
    state.images.live = system.live
    state.bus.heard += (state.peers.heard, EventPruner(state.database, state.finishers.submit).heard)
    return Parts(
        state=state,
        lifecycle=lifecycle,
        execs=execs,
        streams=ContainerStreams(state, execs),
        views=Inspector(state),
        images=ImageRemoval(state),
        networks=Networks(state),
        joining=Connector(state, creation, attaching),
        changing=Updater(state),
        system=system,
        recovery=recovery,
        reserve=reserve or DiskReserve(state.root),
        closers=ExitStack(),
    )


def _directories(root: Path, run: Path, group: str) -> None:
    for path in (root, run):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    run.chmod(0o710 if group else 0o700)
    (run / "bundles").mkdir(mode=0o700, exist_ok=True)


def _leave_shim(shim: ShimClient, run: Path, quit_shim: threading.Event) -> None:
    if quit_shim.is_set():
        with suppress(Error):  # InUse: it stays with its containers, for the next engine of this root
            shim.quit()
    shim.close()
    layout = cgroup.detect()
    for mount in {*layout.v1.values(), layout.v2} - {""}:
        with suppress(OSError):  # it was never made, or containers stay
            os.rmdir(mount + cgroup_parent(run))


def _state(
    stack: ExitStack,
    root: Path,
    run: Path,
    loaded: LoadedConfig,
    database: EngineDatabase,
    bus: EventBus,
    leases: Leases,
    resident: bool,
) -> State:
    from wherry.engine.images.images import Images
    from wherry.engine.shim.client import start_shim
    from wherry.engine.shim.facade import for_drivers
    from wherry.engine.workers.pool import WorkerPool
    from wherry.kernel import Kernel

    shim = start_shim(run, root, config=Path(loaded.file) if loaded.file else None, engine=resident)
    quit_shim = threading.Event()
    if not resident:
        quit_shim.set()
    stack.callback(_leave_shim, shim, run, quit_shim)

    def publish(event: Event) -> None:
        database.publish(event)

    kernel = Kernel(loaded, root=root, run=run, shim=for_drivers(shim), workers=WorkerPool(run), publish=publish)
    stack.callback(kernel.close)
    leases.holding = kernel.holding
    bus.notify = kernel.notify
    images = Images(kernel, leases)
    stack.callback(images.close)
    return State(
        root=root,
        run=run,
        loaded=loaded,
        database=database,
        bus=bus,
        leases=leases,
        kernel=kernel,
        shim=shim,
        images=images,
        quit_shim=quit_shim,
    )
