"""The Engine Protocol: all that a front end sees. ``wherry.Engine`` (in process) and ``wherry.connect()`` implement it.

Every argument and answer is wire-safe. A container is named by its id, a unique prefix of it, or its name. Errors are those
of ``wherry.errors``: NotFound for an unknown container or image, FailedPrecondition for a wrong state, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from attrs import field, frozen

from wherry.errors import Invalid
from wherry.interfaces.common import Descriptor, Event, Labels
from wherry.interfaces.config import Info, Origin, PluginInfo
from wherry.interfaces.container import Container, ContainerProcess
from wherry.interfaces.contributions import LogLine, Volume
from wherry.interfaces.images import ArchiveFormat, DiskUsage, LayerFile, LayerUse
from wherry.interfaces.network import Attachment, EndpointConfig, NetworkConfig, Port
from wherry.interfaces.process import Exit, Stdio


def _refuse_bare_text(request: Any, *names: str) -> None:
    """Invalid for a string where a tuple of strings belongs: it would be taken letter by letter."""
    for name in names:
        if isinstance(value := getattr(request, name), (str, bytes)):
            raise Invalid(
                f'field "{name}" of {type(request).__name__}', "a string, not a tuple of them", f"write ({value!r},)"
            )


@frozen
class Bind:
    """A mount the user asks for. type: "bind" (source is an absolute host path), "tmpfs" or "volume" (source is a name).

    options as in mount(8): "ro", "rbind", "size=64m", "mode=1777"; a "ro" is for what is mounted below too, unless there is "bind"
    or "writable". create: make a missing bind source as a directory, as docker -v does.
    """

    type: Literal["bind", "tmpfs", "volume"]
    source: str
    target: str
    options: tuple[str, ...] = ()
    create: bool = False


@frozen
class RunRequest:
    """What a user asks of one container; the same for create and run. None in entrypoint, command: the image's.

    image: a reference, with or without a transport's prefix. env: "KEY=value". user: "name[:group]" or "uid[:gid]". memory in
    bytes, cpus in cores, pids_limit a count; 0: no limit (pids_limit -1 too). memory_reservation in bytes: what it keeps when memory is
    short. shm_size in bytes. oom_score_adj as in proc_pid_oom_score_adj(5), None: the isolation driver's. stop_timeout in seconds.
    userns: "" or "host", "auto[:size=N]", "nomap", "keep-id[:uid=N,gid=N]" (podman-run(1)).
    network: "" is the variant's default, "none", "host", "container:ID" or the name of a network; aliases, addresses and mac are for
    that one, networks are those besides it. variant, snapshotter,
    isolation, store: "" is the default. pull: when to ask the transport. options: for adjusters of plugins, free form.
    """

    image: str
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    name: str = ""
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    hostname: str = ""
    labels: Labels = field(factory=dict)
    annotations: Labels = field(factory=dict)
    tty: bool = False
    interactive: bool = False
    detach: bool = False
    remove: bool = False
    init: bool = False
    privileged: bool = False
    read_only: bool = False
    no_new_privileges: bool = False
    seccomp: str = ""
    """"" is the default profile, "unconfined" none, else the JSON text of a profile in Docker's format."""
    mounts: tuple[Bind, ...] = ()
    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpuset: str = ""
    pids_limit: int = 0
    shm_size: int = 64 << 20
    oom_score_adj: int | None = None
    ulimits: tuple[tuple[str, int, int], ...] = ()
    sysctls: Labels = field(factory=dict)
    devices: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    network: str = ""
    ports: tuple[Port, ...] = ()
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    mac: str = ""
    networks: tuple[EndpointConfig, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    stop_signal: str = ""
    stop_timeout: float = 10.0
    log: str = ""
    log_options: Labels = field(factory=dict)
    variant: str = ""
    store: str = ""
    snapshotter: str = ""
    isolation: str = ""
    sandbox_id: str = ""
    userns: str = ""
    platform: str = ""
    pull: Literal["missing", "always", "never"] = "missing"
    hooks: Mapping[str, Any] = field(factory=dict)
    """OCI hooks (runtime-spec, config.md, "POSIX-platform Hooks"): {"createRuntime": [{"path": ...}], ...}."""
    trace: bool = False
    options: Mapping[str, Any] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        _refuse_bare_text(self, "command", "entrypoint", "env", "mounts", "devices", "cap_add", "cap_drop", "ports")
        _refuse_bare_text(self, "aliases", "addresses", "networks", "dns", "dns_search", "dns_options", "extra_hosts")


@frozen
class ExecRequest:
    """One more process in a running container."""

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    tty: bool = False
    interactive: bool = False
    detach: bool = False
    privileged: bool = False

    def __attrs_post_init__(self) -> None:
        _refuse_bare_text(self, "command", "env")


@frozen
class NetworkInfo:
    """A network as ``network ls`` shows it. id: 64 hex digits that follow from driver and name; builtin: it can't be removed.

    attachments, and the names of the containers by their sandbox_id, are filled in by ``Engine.network`` alone.
    """

    id: str
    driver: str
    config: NetworkConfig
    builtin: bool = False
    attachments: tuple[Attachment, ...] = ()
    containers: Labels = field(factory=dict)


@frozen
class ImageInfo:
    """An image in the store. id is the digest of its config; size is in bytes, of the blobs; names are its references."""

    id: str
    names: tuple[str, ...]
    target: Descriptor
    created: int
    size: int
    labels: Labels
    platform: str
    layers: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(factory=dict)


@frozen
class Progress:
    """One step of a pull: id is a digest or a name; status "resolving", "waiting", "fetching", "unpacking", "done", "exists"."""

    id: str
    status: str
    current: int = 0
    total: int = 0


watching: ContextVar[Callable[[Progress], None]] = ContextVar("wherry_watching", default=lambda progress: None)
"""Told of each step when another verb than pull fetches an image on its way. Whoever calls a verb sets it, in the engine's own
process; several threads may call it, and what it raises ends the work. The last step has the image's name and "done"."""


@frozen
class Span:
    """One timed driver call: start in ns since the epoch, duration in ns; plugin is "<family>.<id>", "" for the kernel."""

    name: str
    plugin: str
    start: int
    duration: int
    thread: int
    id: int = 0
    parent: int = 0
    attributes: Mapping[str, Any] = field(factory=dict)
    error: str = ""


@frozen
class GcReport:
    """What gc removed: digests, snapshots as "driver/key", and the bytes freed."""

    blobs: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    bytes: int = 0


@frozen
class Finding:
    """Something doctor found: what is wrong, and what was done about it ("" when repair was not asked for)."""

    what: str
    problem: str
    repair: str = ""


class Engine(Protocol):
    """See the module. Streams of output are iterators; closing one ends the work behind it."""

    # images
    def pull(self, reference: str, *, platform: str = "") -> Iterator[Progress]:
        """Fetches and unpacks for the default variant; the last Progress has the id "<name>" and the status "done"."""
        ...

    def load(self, reference: str, *, platform: str = "") -> tuple[ImageInfo, ...]:
        """All images that a reference stands for, e.g. "archive:/path/x.tar", into the store."""
        ...

    def import_image(
        self, reference: str, *, name: str = "", changes: tuple[str, ...] = (), message: str = "", platform: str = ""
    ) -> ImageInfo:
        """One image from elsewhere, most often a tree in a tar, "archive:rootfs:/path/x.tar", under a name or none. changes are lines
        of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR."""
        ...

    def save(
        self, names: Collection[str], *, format: ArchiveFormat = "docker-archive", platform: str = ""
    ) -> Iterator[bytes]:
        """The images as one tar, in pieces; docker, podman, skopeo and ``load`` read it."""
        ...

    def images(self, prefix: str = "") -> tuple[ImageInfo, ...]:
        """By their first names; prefix: only those with a name that begins so."""
        ...

    def image(self, name: str) -> ImageInfo:
        """By name, digest, id, or a beginning of the id (4 hex digits or more). NotFound; Invalid for that of several."""
        ...

    def tag(self, source: str, target: str) -> ImageInfo:
        """One name more; an image that had it loses it. NotFound, Invalid for what can't be a name."""
        ...

    def remove_image(self, name: str, *, force: bool = False) -> tuple[str, ...]:
        """What went, docker-like: "Untagged: NAME", "Deleted: DIGEST". InUse while a container uses it, unless force."""
        ...

    def layers(self, image: str, *, platform: str = "") -> tuple[LayerUse, ...]:
        """The layers of an image, the lowest first, and who shares them."""
        ...

    def layer_files(self, image: str, layer: str, *, platform: str = "") -> Iterator[LayerFile]:
        """What the layer with that digest has, in its own order."""
        ...

    # containers
    def create(self, request: RunRequest) -> Container:
        """Made and not started; the image is fetched where ``request.pull`` says so. Nothing is left when it fails."""
        ...

    def start(self, container: str, stdio: Stdio = Stdio()) -> Container:
        """Streams go to the log in any case; fds in stdio get them too."""
        ...

    def run(self, request: RunRequest, stdio: Stdio = Stdio()) -> Container:
        """create and start in one. Nothing is left behind when it fails and request.remove is set."""
        ...

    def wait(self, container: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        """None when timeout (seconds) ran out. After a container with ``remove`` exited, it is gone when this returns."""
        ...

    def attach(self, container: str, stdio: Stdio) -> str:
        """Gives a running container more streams, beside the log; the token for ``detach``. FailedPrecondition when it does not run."""
        ...

    def detach(self, container: str, token: str = "", exec_id: str = "") -> None:
        """Takes the streams of a token away; "": those given at its start without one. Nothing happens when they are gone."""
        ...

    def resize(self, container: str, rows: int, columns: int, exec_id: str = "") -> None:
        """The size of its terminal, in characters."""
        ...

    def stop(self, container: str, timeout: float | None = None, signal: str = "") -> Container:
        """The stop signal, then SIGKILL after timeout seconds (None: the container's own)."""
        ...

    def kill(self, container: str, signal: str = "KILL", exec_id: str = "") -> None:
        """signal: a name, with or without "SIG", or a number (signal(7)). FailedPrecondition when it does not run."""
        ...

    def pause(self, container: str) -> None:
        """Freezes all its processes (cgroups(7), freezer). FailedPrecondition when it does not run or can't be paused."""
        ...

    def resume(self, container: str) -> None:
        """Lets a paused one go on."""
        ...

    def remove(self, container: str, *, force: bool = False, volumes: bool = False) -> None:
        """volumes: its volumes without a name of their own go too, as they do with a container that removes itself."""
        ...

    def exec(self, container: str, request: ExecRequest, stdio: Stdio = Stdio()) -> str:
        """Starts it; the exec id. ``wait`` with that id answers its exit."""
        ...

    def containers(self, *, all: bool = False, filters: Mapping[str, Collection[str]] = {}) -> tuple[Container, ...]:
        """The newest first; all: those too that do not run. The values of a filter are alternatives (labels add up), and all filters
        must hold: ancestor, before, exited, id, label, name, network, publish, since, status, variant, volume (docker ps,
        "Filtering"). Invalid for another one."""
        ...

    def container(self, container: str) -> Container:
        """NotFound; Invalid for a prefix of several ids."""
        ...

    def inspect(self, container: str) -> Mapping[str, Any]:
        """The container, its spec ("spec"), who set each field ("owners": JSON pointer -> owner) and its request."""
        ...

    def logs(
        self, container: str, *, follow: bool = False, since: int = 0, until: int = 0, tail: int = -1
    ) -> Iterator[LogLine]:
        """What it wrote, as ``LogDriver.read``; with follow until it ends. FailedPrecondition where nothing is recorded."""
        ...

    def processes(self, container: str) -> tuple[ContainerProcess, ...]:
        """What runs in it, by pid. FailedPrecondition when it does not run."""
        ...

    def rename(self, container: str, name: str) -> Container:
        """AlreadyExists for a name that is taken. The resolver of its networks follows with its next start."""
        ...

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
        """Other limits, in the units of ``RunRequest``; None: as it is, 0: none. At once while it runs, and from then on."""
        ...

    def stats(self, container: str) -> Mapping[str, int]:
        """Counters of a running container: what ``Isolation.stats`` has, and "network.rx_bytes", "network.rx_packets",
        "network.tx_bytes" and "network.tx_packets" of its own network namespace, lo aside, where it has one."""
        ...

    # networks
    def create_network(self, config: NetworkConfig, *, driver: str = "") -> NetworkInfo:
        """driver "": the default variant's. AlreadyExists for a name that any driver has."""
        ...

    def networks(self) -> tuple[NetworkInfo, ...]:
        """Those of all drivers that run here, by name."""
        ...

    def network(self, name: str) -> NetworkInfo:
        """By name, id, or a unique prefix of the id."""
        ...

    def remove_network(self, name: str) -> None:
        """InUse while a container is attached, Invalid for a built-in one."""
        ...

    def connect(self, container: str, join: EndpointConfig) -> Container:
        """One network more: at once for a container that runs, and at each later start."""
        ...

    def disconnect(self, container: str, network: str, *, force: bool = False) -> Container:
        """One network less, at once and from then on. NotFound when it is not in it, unless force."""

    # volumes
    def create_volume(
        self, name: str = "", *, driver: str = "", options: Mapping[str, str] = {}, labels: Mapping[str, str] = {}
    ) -> Volume:
        """A new volume, or the one of that name; "" has a name made up, driver "" is that of the config."""
        ...

    def volumes(self) -> tuple[Volume, ...]:
        """Of all drivers, by name."""
        ...

    def volume(self, name: str) -> Volume:
        """NotFound."""
        ...

    def volume_users(self, name: str) -> tuple[str, ...]:
        """The ids of the containers that have it, running or not."""
        ...

    def remove_volume(self, name: str, *, force: bool = False) -> None:
        """InUse while a container has it. force: one that is not there is no error."""
        ...

    def prune_volumes(self, *, all: bool = False) -> tuple[str, ...]:
        """Removes volumes that no container has, those without a name of their own or all; their names."""
        ...

    # the system
    def events(self, after: int = -1, *, follow: bool = True) -> Iterator[Event]:
        """Those with a sequence above after; -1: only what comes from now on. With follow, a quiet stream yields an Event
        with an empty topic at least every half second, so that the reader can stop."""
        ...

    def spans(self, container: str) -> tuple[Span, ...]:
        """The spans of a run that asked for ``trace``, kept until the container is removed and 60 s longer. A create or run that
        failed has them too: the error's ``container`` is the id."""
        ...

    def info(self) -> Info:
        """This engine and its shim, the drivers chosen and passed over for each variant, and what the kernel can."""
        ...

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin that is installed, with its state and, where it can't be used, the reason."""
        ...

    def config(self) -> tuple[Origin, ...]:
        """The effective config, each value with its origin."""
        ...

    def disk_usage(self, *, images_only: bool = False) -> DiskUsage:
        """images_only: without containers and volumes, whose trees have to be walked."""
        ...

    def gc(self) -> GcReport:
        """Removes blobs and snapshots that no image, container, lease or plugin leads to."""
        ...

    def doctor(self, *, repair: bool = False) -> tuple[Finding, ...]:
        """What is out of step after a crash; repair: it is mended, and a second run finds nothing."""
        ...

    def reset(self) -> None:
        """Removes every container, image, snapshot and volume of this root."""
        ...

    def close(self) -> None:
        """Ends the connection, or the engine of this process. Containers go on."""
        ...
