"""The engine in this process: puts the parts together and answers every call of the Engine Protocol."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wherry.api import (
    ArchiveFormat,
    Container,
    ContainerProcess,
    DiskUsage,
    EndpointConfig,
    Event,
    ExecRequest,
    Exit,
    Finding,
    GcReport,
    ImageInfo,
    Info,
    LayerFile,
    LayerUse,
    LogLine,
    NetworkConfig,
    NetworkInfo,
    Origin,
    PluginInfo,
    Progress,
    RunRequest,
    Span,
    Stdio,
    Unavailable,
    Volume,
)
from wherry.engine.assembly import Parts, assemble

if TYPE_CHECKING:
    from wherry.engine.state.state import State
    from wherry.kernel.config import LoadedConfig


class Engine:
    """An engine with a shim of its own, for Python programs, research and tests.

    root: the durable state; run: sockets, bundles, mounts (a tmpfs is best); both are made when absent, and are the config's
    when not given. config: the path of a config file, its text as a ``LoadedConfig``, or None for the usual search. One
    engine a root: Unavailable names the pid of another one. Example:

        with wherry.Engine(root="/tmp/w/root", run="/tmp/w/run") as engine:
            container = engine.run(RunRequest(image="host:/bin/sh", command=("sh", "-c", "exit 3")))
            print(engine.wait(container.id).code)
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        run: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | LoadedConfig | None = None,
        *,
        resident: bool = False,
    ) -> None:
        """resident: this is the engine's own process, whose parent is the shim."""
        self._parts: Parts | None = assemble(
            Path(root) if root is not None else None,
            Path(run) if run is not None else None,
            config,
            resident=resident,
        )

    @property
    def _p(self) -> Parts:
        if self._parts is None:
            raise Unavailable("engine", "is closed")
        return self._parts

    @property
    def state(self) -> State:
        """The parts underneath: for the engine's own process and for tests."""
        return self._p.state

    @property
    def root(self) -> Path:
        return self._p.state.root

    @property
    def run_directory(self) -> Path:
        return self._p.state.run

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # images

    def pull(self, reference: str, *, platform: str = "") -> Iterator[Progress]:
        return self._p.state.images.pull(reference, platform)

    def load(self, reference: str, *, platform: str = "") -> tuple[ImageInfo, ...]:
        return tuple(self._p.state.images.load(reference, platform))

    def import_image(
        self, reference: str, *, name: str = "", changes: tuple[str, ...] = (), message: str = "", platform: str = ""
    ) -> ImageInfo:
        return self._p.state.images.import_image(reference, name, changes, message, platform)

    def save(
        self, names: Collection[str], *, format: ArchiveFormat = "docker-archive", platform: str = ""
    ) -> Iterator[bytes]:
        return self._p.state.images.save(names, format, platform)

    def images(self, prefix: str = "") -> tuple[ImageInfo, ...]:
        return tuple(self._p.state.images.list(prefix))

    def image(self, name: str) -> ImageInfo:
        return self._p.state.images.get(name)

    def tag(self, source: str, target: str) -> ImageInfo:
        return self._p.state.images.tag(source, target)

    def remove_image(self, name: str, *, force: bool = False) -> tuple[str, ...]:
        with self._p.reserve.used():
            return self._p.images.remove(name, force=force)

    def layers(self, image: str, *, platform: str = "") -> tuple[LayerUse, ...]:
        return self._p.state.images.layers(image, platform)

    def layer_files(self, image: str, layer: str, *, platform: str = "") -> Iterator[LayerFile]:
        return self._p.state.images.layer_files(image, layer, platform)

    # containers

    def create(self, request: RunRequest) -> Container:
        return self._p.lifecycle.create(request)

    def start(self, container: str, stdio: Stdio = Stdio()) -> Container:
        return self._p.lifecycle.start(container, stdio)

    def run(self, request: RunRequest, stdio: Stdio = Stdio()) -> Container:
        return self._p.lifecycle.run(request, stdio)

    def wait(self, container: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        return self._p.lifecycle.wait(container, exec_id, timeout)

    def attach(self, container: str, stdio: Stdio) -> str:
        return self._p.streams.attach(container, stdio)

    def detach(self, container: str, token: str = "", exec_id: str = "") -> None:
        self._p.streams.detach(container, token, exec_id)

    def resize(self, container: str, rows: int, columns: int, exec_id: str = "") -> None:
        self._p.streams.resize(container, rows, columns, exec_id)

    def stop(self, container: str, timeout: float | None = None, signal: str = "") -> Container:
        return self._p.lifecycle.stop(container, timeout, signal)

    def kill(self, container: str, signal: str = "KILL", exec_id: str = "") -> None:
        self._p.lifecycle.kill(container, signal, exec_id)

    def pause(self, container: str) -> None:
        self._p.lifecycle.pause(container)

    def resume(self, container: str) -> None:
        self._p.lifecycle.resume(container)

    def remove(self, container: str, *, force: bool = False, volumes: bool = False) -> None:
        with self._p.reserve.used():
            self._p.lifecycle.remove(container, force=force, volumes=volumes)

    def exec(self, container: str, request: ExecRequest, stdio: Stdio = Stdio()) -> str:
        return self._p.execs.exec(container, request, stdio)

    def containers(self, *, all: bool = False, filters: Mapping[str, Collection[str]] = {}) -> tuple[Container, ...]:
        return self._p.views.list(all, filters)

    def container(self, container: str) -> Container:
        return self._p.state.registry.find(container).view()

    def inspect(self, container: str) -> Mapping[str, Any]:
        return self._p.views.inspect(container)

    def logs(
        self, container: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1
    ) -> Iterator[LogLine]:
        return self._p.streams.logs(container, follow=follow, since=since, until=until, tail=tail)

    def processes(self, container: str) -> tuple[ContainerProcess, ...]:
        return self._p.streams.processes(container)

    def rename(self, container: str, name: str) -> Container:
        return self._p.changing.rename(container, name)

    def update(
        self,
        container: str,
        *,
        memory: int | None = None,
        memory_swap: int | None = None,
        memory_reservation: int | None = None,
        cpus: float | None = None,
        cpu_shares: int | None = None,
        cpuset: str | None = None,
        pids_limit: int | None = None,
    ) -> Container:
        return self._p.changing.update(
            container,
            memory=memory,
            memory_swap=memory_swap,
            memory_reservation=memory_reservation,
            cpus=cpus,
            cpu_shares=cpu_shares,
            cpuset=cpuset,
            pids_limit=pids_limit,
        )

    def stats(self, container: str) -> Mapping[str, int]:
        return self._p.streams.stats(container)

    # networks

    def create_network(self, config: NetworkConfig, *, driver: str = "") -> NetworkInfo:
        return self._p.networks.create(config, driver)

    def networks(self) -> tuple[NetworkInfo, ...]:
        return self._p.networks.list()

    def network(self, name: str) -> NetworkInfo:
        return self._p.networks.get(name)

    def remove_network(self, name: str) -> None:
        self._p.networks.remove(name)

    def connect(self, container: str, join: EndpointConfig) -> Container:
        return self._p.joining.connect(container, join)

    def disconnect(self, container: str, network: str, *, force: bool = False) -> Container:
        return self._p.joining.disconnect(container, network, force)

    # volumes

    def create_volume(
        self, name: str = "", *, driver: str = "", options: Mapping[str, str] = {}, labels: Mapping[str, str] = {}
    ) -> Volume:
        return self._p.state.volumes.create(name, driver, options, labels)

    def volumes(self) -> tuple[Volume, ...]:
        return self._p.state.volumes.every()

    def volume(self, name: str) -> Volume:
        return self._p.state.volumes.get(name)

    def volume_users(self, name: str) -> tuple[str, ...]:
        return tuple(record.id for record in self._p.state.volumes.users(name))

    def remove_volume(self, name: str, *, force: bool = False) -> None:
        self._p.state.volumes.remove(name, force=force)

    def prune_volumes(self, *, all: bool = False) -> tuple[str, ...]:
        return self._p.state.volumes.prune(all=all)

    # the system

    def events(self, after: int = -1, *, follow: bool = True) -> Iterator[Event]:
        return self._p.state.bus.follow(self._p.state.database, after, follow=follow)

    def spans(self, container: str) -> tuple[Span, ...]:
        # By its id also of one that never came to be: the error that says so names it.
        return self._p.state.kernel.spans(container) or self._p.state.kernel.spans(
            self._p.state.registry.find_or_grave(container).id
        )

    def info(self) -> Info:
        return self._p.system.info()

    def plugins(self) -> tuple[PluginInfo, ...]:
        return self._p.system.plugins()

    def config(self) -> tuple[Origin, ...]:
        return self._p.system.config()

    def disk_usage(self, *, images_only: bool = False) -> DiskUsage:
        return self._p.system.disk_usage(images_only=images_only)

    def gc(self) -> GcReport:
        with self._p.reserve.used():
            return self._p.system.gc()

    def doctor(self, *, repair: bool = False) -> tuple[Finding, ...]:
        with self._p.reserve.used():
            return self._p.system.doctor(repair)

    def reset(self) -> None:
        with self._p.reserve.used():
            self._p.system.reset()

    def close(self) -> None:
        """Ends this engine. Containers that run stay with the shim, for the next engine of this root; without any it goes."""
        if (parts := self._parts) is not None:
            self._parts = None
            parts.close()
