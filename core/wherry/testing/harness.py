"""What a driver under test stands on: its directories, its Context, and a way to open it again over the same state."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from wherry.interfaces.common import Event
from wherry.interfaces.kernel import Registration

D = TypeVar("D")


def features() -> frozenset[str]:
    """The features of ``wherry.api.Context`` that a look at /proc and /sys can tell."""
    found = set()
    systems = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if "overlay" in systems:
        found |= {"overlay", "overlay.userxattr"}
    mounted = {line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    found |= {name for name, kind in (("cgroup2", "cgroup2"), ("cgroup1", "cgroup")) if kind in mounted}
    for name, kind in (("userns", "user"), ("time-ns", "time")):
        if Path(f"/proc/self/ns/{kind}").exists():
            found.add(name)
    if Path("/proc/sys/kernel/seccomp").exists():
        found.add("seccomp")
    return frozenset(found | {"mount.idmapped"})


class LazyService:
    """Stands for a service until it is first used: most drivers need neither a shim nor workers."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
        return getattr(self._made, name)


class LocalContext:
    """A ``wherry.api.Context`` without a kernel. What a driver publishes, holds and spans is kept for the test to see."""

    def __init__(self, id: str, root: Path, run: Path, *, shim: Any = None, workers: Any = None) -> None:
        self.id = id
        self.variant = "test"
        self.uid = os.getuid()
        self.root = root
        self.run = run
        self.features = features()
        self.shim: Any = shim
        self.workers: Any = workers
        self.events: list[Event] = []
        self.held: list[str] = []
        self.known: dict[str, tuple[str, str]] = {}
        self.spanned: list[str] = []
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        run.mkdir(parents=True, exist_ok=True, mode=0o700)

    def publish(self, event: Event) -> None:
        self.events.append(event)

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[None]:
        self.spanned.append(name)
        yield

    def checkpoint(self) -> None:
        return

    def hold(self, resource: str) -> None:
        self.held.append(resource)

    def credentials(self, host: str) -> tuple[str, str] | None:
        return self.known.get(host)


class Harness(Generic[D]):
    """One driver over directories of its own below directory. ``open`` answers it, ``reopen`` what a restart would.

    family: "store" and so on; options: the values of its config table. with_shim: ``context.shim`` is a real shim, started
    at its first use and stopped by ``close``.
    """

    def __init__(
        self,
        directory: Path,
        family: str,
        registration: Registration[Any, D],
        options: Mapping[str, Any],
        *,
        with_shim: bool,
    ) -> None:
        self.directory = directory
        self.registration = registration
        self.with_shim = with_shim
        self.root = directory / "root"
        self.run = directory / "run"
        self._shim: Any = None
        self._workers: Any = None
        self._driver: D | None = None
        self.config = registration.config(**options)
        id = f"{family}.{registration.id}"
        self.context = LocalContext(
            id,
            self.root / family / registration.id,
            self.run / family / registration.id,
            shim=LazyService(self._start_shim),
            workers=LazyService(self._start_workers),
        )

    @property
    def shim(self) -> Any:
        """The shim, or None where the harness has none."""
        return self.context.shim if self.with_shim else None

    def provides(self) -> frozenset[str]:
        """The driver's capability flags."""
        return self.registration.capabilities(self.config, self.context).provides

    def reason(self) -> str | None:
        """Why the driver cannot run here, by its own probe."""
        return self.registration.probe(self.config, self.context)

    def open(self) -> D:
        if self._driver is None:
            self._driver = self.registration.init(self.config, self.context)
        return self._driver

    def reopen(self) -> D:
        """The driver as after a restart of the engine: a new object over the same directories and the same shim."""
        self._close_driver()
        return self.open()

    def _close_driver(self) -> None:
        driver, self._driver = self._driver, None
        close = getattr(driver, "close", None)
        if close is not None:
            close()

    def close(self) -> None:
        self._close_driver()
        if self._workers is not None:
            self._workers.close()
        if self._shim is not None:
            shim, self._shim = self._shim, None
            try:
                shim.quit()
            finally:
                shim.close()

    def _start_shim(self) -> Any:
        from wherry.engine.shim.client import start_shim

        for directory in (self.root, self.run):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._shim = start_shim(self.run, self.root, engine=False)
        return self._shim

    def _start_workers(self) -> Any:
        from wherry.engine.workers.pool import WorkerPool

        self._workers = WorkerPool(self.run)
        return self._workers
