"""The OCI runtime spec as attrs classes (opencontainers/runtime-spec 1.2, config.md and config-linux.md).

The engine keeps specs as plain data; ``check`` structures one by cattrs where a stranger had a hand in it, an adjuster or a
bundle's config.json, and says by JSON pointer what is wrong. Properties that are not listed here are ignored, as config.md,
"Extensibility", demands. Names are the document's in snake case, e.g. ``no_new_privileges`` for ``noNewPrivileges``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from attrs import field, fields, frozen, has

from wherry.errors import Invalid


@frozen
class User:
    """process.user. username is the addition of ``wherry.api.CreateRequest``: it wins over uid and gid."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()
    username: str = ""


@frozen
class Capabilities:
    """process.capabilities: names such as CAP_CHOWN (capabilities(7))."""

    effective: tuple[str, ...] = ()
    bounding: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@frozen
class Rlimit:
    """process.rlimits[]: getrlimit(2)."""

    type: str
    soft: int
    hard: int


@frozen
class Box:
    """process.consoleSize."""

    height: int
    width: int


@frozen
class Process:
    """The container's first process; args[0] is searched in the PATH of env."""

    cwd: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    terminal: bool = False
    console_size: Box | None = None
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None


@frozen
class Root:
    """root: the path may be relative to the bundle."""

    path: str
    readonly: bool = False


@frozen
class IdMapping:
    """linux.uidMappings[], gidMappings[]: user_namespaces(7)."""

    container_id: int = field(metadata={"name": "containerID"})
    host_id: int = field(metadata={"name": "hostID"})
    size: int = 0


@frozen
class Mount:
    """mounts[]: in this order."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


@frozen
class Hook:
    """hooks.*[]: timeout in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@frozen
class Hooks:
    """hooks: config.md, "POSIX-platform Hooks"."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@frozen
class Namespace:
    """linux.namespaces[]: without a path a new one is made."""

    type: str
    path: str = ""


@frozen
class Device:
    """linux.devices[]: a node to be made."""

    path: str
    type: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@frozen
class DeviceRule:
    """linux.resources.devices[]: a rule of the device cgroup; a number left out stands for all."""

    allow: bool
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


@frozen
class Memory:
    """linux.resources.memory, in bytes; -1 is unlimited; swap counts memory and swap."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool = field(default=False, metadata={"name": "disableOOMKiller"})


@frozen
class Cpu:
    """linux.resources.cpu: quota and period in microseconds."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    burst: int | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


@frozen
class Pids:
    """linux.resources.pids: 0 or less is no limit."""

    limit: int = 0


@frozen
class Resources:
    """linux.resources; unified are names of cgroup v2 files."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    unified: Mapping[str, str] = field(factory=dict)


@frozen
class Linux:
    """linux: config-linux.md. seccomp stays as it is."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Resources = Resources()
    rootfs_propagation: str = ""
    sysctl: Mapping[str, str] = field(factory=dict)
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    seccomp: Mapping[str, Any] = field(factory=dict)


@frozen
class Spec:
    """The whole document."""

    oci_version: str
    root: Root
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = field(factory=dict)
    linux: Linux = Linux()


NAMESPACES = frozenset({"pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"})


def check(document: Mapping[str, Any], what: str = "spec") -> Spec:
    """The document as a ``Spec``. Invalid names the first wrong field by its JSON pointer; costs about a millisecond."""
    try:
        spec: Spec = _converter().structure(document, Spec)
    except Exception as error:
        pointer, cause = _first(error)
        raise Invalid(f"{what}{pointer and ' ' + pointer}", cause, "see the OCI runtime-spec, config.md") from None
    for index, namespace in enumerate(spec.linux.namespaces):
        if namespace.type not in NAMESPACES:
            raise Invalid(f"{what} /linux/namespaces/{index}/type", f'"{namespace.type}" is no kind of namespace')
    for index, mount in enumerate(spec.mounts):
        if not mount.destination.startswith("/"):
            raise Invalid(f"{what} /mounts/{index}/destination", f'"{mount.destination}" is not an absolute path')
    if spec.process is not None and not spec.process.cwd.startswith("/"):
        raise Invalid(f"{what} /process/cwd", f'"{spec.process.cwd}" is not an absolute path')
    return spec


def _name(attribute: Any) -> str:
    if name := attribute.metadata.get("name"):
        return str(name)
    head, *rest = attribute.name.split("_")
    return str(head + "".join(word.capitalize() for word in rest))


@cache
def _converter() -> Any:
    import cattrs
    from cattrs.gen import make_dict_structure_fn, override

    converter = cattrs.Converter()
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _strict(kind))

    def structure(cls: type[Any]) -> Any:
        names = {attribute.name: override(rename=_name(attribute)) for attribute in fields(cls)}
        return make_dict_structure_fn(cls, converter, **names)  # type: ignore[arg-type]

    converter.register_structure_hook_factory(has, structure)
    return converter


def _strict(kind: type) -> Any:
    def hook(value: object, _type: object) -> object:
        if type(value) is not kind:
            raise TypeError(f"is {'null' if value is None else type(value).__name__}, not {kind.__name__}")
        return value

    return hook


def _first(error: BaseException, pointer: str = "") -> tuple[str, str]:
    """(JSON pointer, cause) of the first problem in cattrs' tree of exceptions."""
    inner = getattr(error, "exceptions", None)
    if inner:
        return _first(inner[0], pointer + _place(inner[0]))
    if isinstance(error, KeyError):
        return pointer, f'lacks "{error.args[0]}"'
    return pointer, str(error) or type(error).__name__


def _place(error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        name, index = getattr(note, "name", None), getattr(note, "index", None)
        if name is not None:
            words = str(name).split("_")
            return "/" + words[0] + "".join(word.capitalize() for word in words[1:])
        if index is not None:
            return f"/{index}"
    return ""
