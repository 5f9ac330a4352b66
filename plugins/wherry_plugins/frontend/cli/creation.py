"""The options that ``run`` and ``create`` share, and the RunRequest they add up to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import click

from wherry.api import Bind, Invalid, NotFound, Port, RunRequest
from wherry_plugins.frontend.cli import values
from wherry_plugins.frontend.cli.command import argument, option
from wherry_plugins.frontend.cli.networking import wishes
from wherry_plugins.frontend.cli.session import Session

_PULL = click.Choice(("always", "missing", "never"))

_OPTIONS = (
    option("--name", default="", metavar="NAME", help="Name of the container; made up when not given"),
    option("-i", "--interactive", is_flag=True, help="Pass stdin to the container"),
    option("-t", "--tty", is_flag=True, help="Give it a terminal"),
    option("--rm", "remove", is_flag=True, help="Remove it when it exits"),
    option("--entrypoint", metavar="PROGRAM", help='Run this in place of the image\'s entrypoint; "" for none'),
    option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass the client's own"),
    option("--env-file", multiple=True, metavar="FILE", help="Read variables from a file"),
    option("-w", "--workdir", default="", metavar="DIR", help="Directory to start in"),
    option("-u", "--user", default="", metavar="USER[:GROUP]", help="Name or id, from the image's passwd"),
    option("-h", "--hostname", default="", metavar="NAME", help="Host name; the id's first digits when not given"),
    option("--init", is_flag=True, help="Have an init process reap orphans and pass on signals"),
    option("--stop-signal", default="", metavar="SIGNAL", help="What stop sends first"),
    option("--stop-timeout", type=values.duration, default=10.0, metavar="SECONDS", help="How long stop waits before SIGKILL"),
    option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image"),
    option("--pull", type=_PULL, default="missing", metavar="WHEN", help="always, missing (the default) or never"),
    option("-q", "--quiet", is_flag=True, help="Do not show how an image is fetched"),
    option("--cidfile", default="", metavar="FILE", help="Write the container's id to a new file"),
    option("-l", "--label", multiple=True, type=values.pair, metavar="KEY=VALUE", help="Set a label"),
    option("--label-file", multiple=True, metavar="FILE", help="Read labels from a file"),
    option("--annotation", multiple=True, type=values.setting, metavar="KEY=VALUE", help="Set an annotation of the OCI spec"),
    option("--log-driver", default="", metavar="ID", help="Where output is kept: json-file, none ..."),
    option("--log-opt", multiple=True, type=values.setting, metavar="KEY=VALUE", help="Option of the log driver"),
    option("-v", "--volume", multiple=True, metavar="[SRC:]DST[:ro]", help="Bind a path, or a volume by name", section="Files"),
    option("--mount", multiple=True, metavar="type=...,...", help="Mount in docker's long form", section="Files"),
    option("--tmpfs", multiple=True, type=values.tmpfs, metavar="DST[:OPTIONS]", help="Mount a tmpfs", section="Files"),
    option("--read-only", is_flag=True, help="Mount the root read-only", section="Files"),
    option("--device", multiple=True, metavar="SRC[:DST[:rwm]]", help="Give it a device", section="Files"),
    option("-m", "--memory", type=values.size, default=0, metavar="SIZE", help="Limit of memory", section="Limits"),
    option("--memory-swap", type=values.swap, default=0, metavar="SIZE", help="Memory plus swap; -1: no limit", section="Limits"),
    option("--memory-reservation", type=values.size, default=0, metavar="SIZE", help="Kept when memory is short", section="Limits"),
    option("--oom-score-adj", type=int, metavar="N", help="How soon the kernel ends it, -1000 to 1000", section="Limits"),
    option("--cpus", type=values.cpus, default=0.0, metavar="N", help="Limit of CPU time, in cores", section="Limits"),
    option("--cpu-quota", type=int, default=0, metavar="US", help="The same in microseconds of each period", section="Limits"),
    option("--cpu-period", type=int, default=0, metavar="US", help="Period of --cpu-quota (100000)", section="Limits"),
    option("-c", "--cpu-shares", type=int, default=0, metavar="N", help="Share of CPU time; 1024 is one", section="Limits"),
    option("--cpuset-cpus", default="", metavar="LIST", help='CPUs it may run on, "0-2,4"', section="Limits"),
    option("--pids-limit", type=int, default=0, metavar="N", help="Limit of processes; -1: none", section="Limits"),
    option("--shm-size", type=values.size, default=64 << 20, metavar="SIZE", help="Size of /dev/shm (64m)", section="Limits"),
    option("--ulimit", multiple=True, type=values.ulimit, metavar="NAME=SOFT[:HARD]", help="A resource limit", section="Limits"),
    option("--cap-add", multiple=True, metavar="CAP", help="Add a capability, or ALL", section="Security"),
    option("--cap-drop", multiple=True, metavar="CAP", help="Drop a capability, or ALL", section="Security"),
    option(
        "--security-opt", multiple=True, metavar="OPTION", section="Security",
        help="no-new-privileges, seccomp=unconfined or seccomp=FILE",
    ),
    option("--privileged", is_flag=True, help="All capabilities and devices, no filter, nothing masked", section="Security"),
    option(
        "--userns", default="", metavar="MODE", section="Security",
        help="User namespace: host, auto[:size=N], keep-id[:uid=N,gid=N] or nomap",
    ),
    option("--sysctl", multiple=True, type=values.setting, metavar="KEY=VALUE", help="Set a kernel parameter", section="Security"),
    option(
        "--network", "--net", multiple=True, metavar="NAME", section="Network",
        help="none, host, container:ID or a network; several: name=NAME,alias=...,ip=...",
    ),
    option("-p", "--publish", multiple=True, type=values.port, metavar="[IP:][HOST:]PORT", help="Publish a port", section="Network"),
    option("-P", "--publish-all", is_flag=True, help="Publish all ports that the image exposes, each to a free one", section="Network"),
    option("--expose", multiple=True, type=values.exposed, metavar="PORT", help="One more port for --publish-all", section="Network"),
    option("--network-alias", multiple=True, metavar="NAME", help="One more name in the network", section="Network"),
    option("--ip", multiple=True, metavar="ADDRESS", help="Wished address", section="Network"),
    option("--ip6", multiple=True, metavar="ADDRESS", help="Wished IPv6 address", section="Network"),
    option("--mac-address", default="", metavar="MAC", help="Hardware address", section="Network"),
    option("--dns", multiple=True, metavar="ADDRESS", help="Name server", section="Network"),
    option("--dns-search", multiple=True, metavar="DOMAIN", help="Search domain", section="Network"),
    option("--dns-option", "--dns-opt", multiple=True, metavar="OPTION", help="Resolver option", section="Network"),
    option("--add-host", multiple=True, metavar="HOST:IP", help="Add a line to /etc/hosts", section="Network"),
    option("--variant", default="", metavar="NAME", help="Which runtime variant of the config", section="Runtime"),
    option("--snapshotter", default="", metavar="ID", help="This snapshotter in place of the variant's", section="Runtime"),
    option("--isolation", default="", metavar="ID", help="This isolation in place of the variant's", section="Runtime"),
    option("--store", default="", metavar="ID", help="This store in place of the variant's", section="Runtime"),
    option(
        "--option", "plugin_options", multiple=True, type=values.setting, metavar="KEY=VALUE", section="Runtime",
        help="An option for spec adjusters of plugins",
    ),
    option("--trace", default="", metavar="FILE", help="Write the driver calls as trace events (Perfetto)", section="Runtime"),
)  # fmt: skip


def creation_options(function: Any) -> Any:
    """Decorates a command's callback with all of them and IMAGE [COMMAND...]."""
    function = argument("command", nargs=-1, metavar="[COMMAND] [ARG...]")(function)
    function = argument("image", metavar="IMAGE")(function)
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return function


def build_request(
    session: Session,
    *,
    image: str,
    command: tuple[str, ...],
    entrypoint: str | None,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    label: tuple[tuple[str, str], ...],
    label_file: tuple[str, ...],
    annotation: tuple[tuple[str, str], ...],
    volume: tuple[str, ...],
    mount: tuple[str, ...],
    tmpfs: tuple[Bind, ...],
    security_opt: tuple[str, ...],
    publish: tuple[tuple[Port, ...], ...],
    publish_all: bool,
    expose: tuple[tuple[Port, ...], ...],
    sysctl: tuple[tuple[str, str], ...],
    add_host: tuple[str, ...],
    log_driver: str,
    log_opt: tuple[tuple[str, str], ...],
    cpus: float,
    cpu_quota: int,
    cpu_period: int,
    cpuset_cpus: str,
    ulimit: tuple[tuple[str, int, int], ...],
    device: tuple[str, ...],
    network: tuple[str, ...],
    network_alias: tuple[str, ...],
    ip: tuple[str, ...],
    ip6: tuple[str, ...],
    mac_address: str,
    dns_option: tuple[str, ...],
    trace: str,
    pull: Literal["always", "missing", "never"],
    plugin_options: tuple[tuple[str, str], ...],
    detach: bool = False,
    cidfile: str = "",
    quiet: bool = False,
    **plain: Any,
) -> RunRequest:
    """The request. Options that go into it unchanged arrive in plain, under their names there. Invalid, OSError."""
    del cidfile, quiet  # the command's own
    no_new_privileges, seccomp = security(session, security_opt)
    ports = tuple(one for group in publish for one in group)
    wished = wishes(network, network_alias, (*ip, *ip6), mac_address)
    if wished["network"] == "host":
        if ports:
            session.err(
                "wherry: warning: published ports are discarded: a port of the host's network is the host's own\n"
            )
        ports, publish_all = (), False
    elif wished["network"] == "none" and not wished["networks"] and (ports or publish_all):
        session.err('wherry: warning: ports are published only once the container is in another network than "none"\n')
    if publish_all:
        image_ports = exposed(session, session.reference(image), plain["platform"], pull)
        known = {(port.container_port, port.protocol) for port in ports}
        more = {
            (one.container_port, one.protocol): one for one in (*image_ports, *(o for group in expose for o in group))
        }
        ports += tuple(one for key, one in more.items() if key not in known)
    return RunRequest(
        image=session.reference(image),
        command=command or None,
        entrypoint=None if entrypoint is None else ((entrypoint,) if entrypoint else ()),
        env=environment(session, env, env_file),
        labels=labels(session, label, label_file),
        annotations=dict(annotation),
        mounts=mounts(session, volume, mount, tmpfs),
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        ports=ports,
        sysctls=dict(sysctl),
        extra_hosts=tuple(map(_host, add_host)),
        log=log_driver,
        log_options=dict(log_opt),
        cpus=cores(cpus, cpu_quota, cpu_period),
        cpuset=cpuset_cpus,
        ulimits=ulimit,
        devices=device,
        dns_options=dns_option,
        trace=bool(trace),
        pull=pull,
        options=dict(plugin_options),
        detach=detach,
        **wished,
        **plain,
    )


def exposed(session: Session, reference: str, platform: str, pull: str) -> tuple[Port, ...]:
    """The ports that an image says it listens on, none of them with one of the host's. The image is fetched where it is not here."""
    name = reference
    try:
        if pull == "always":
            raise NotFound(f'image "{reference}"', "is to be fetched anew")
        info = session.engine.image(reference)
    except (NotFound, Invalid):
        if pull == "never":
            raise
        from wherry_plugins.frontend.cli.commands.pull import fetch

        name = fetch(session, session.engine.pull(reference, platform=platform), quiet=True)
        info = session.engine.image(name)
    texts = (info.config.get("config") or {}).get("ExposedPorts") or {}
    try:
        return tuple(port for text in sorted(texts) for port in values.exposed(text))
    except ValueError as error:
        raise Invalid(f'image "{name}"', f"exposes what is no port: {error}") from None


def environment(session: Session, given: tuple[str, ...], files: tuple[str, ...]) -> tuple[str, ...]:
    """KEY=VALUE lines; a bare name takes the client's value, or is left out where it has none; the last one of a name wins."""
    if not given and not files:
        return ()
    found: dict[str, str] = {}
    for text in [*(line for name in files for line in _lines(session, name)), *given]:
        key, equals, value = text.partition("=")
        if not key or any(letter.isspace() for letter in key):
            raise Invalid(f'variable "{text}"', "its name is empty or has spaces")
        if equals:
            found[key] = value
        elif key in session.environ:
            found[key] = session.environ[key]
    return tuple([f"{key}={value}" for key, value in found.items()])


def _lines(session: Session, name: str) -> list[str]:
    """A file's lines without empty ones and comments (docker, "--env-file")."""
    lines = [line.lstrip() for line in session.read(name).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def cores(cpus: float, quota: int, period: int) -> float:
    """--cpus, or what quota and period, in microseconds, come to. Invalid for both at once (docker, "--cpus")."""
    if cpus and (quota or period):
        raise Invalid('option "--cpus"', "says the same as --cpu-quota and --cpu-period", "leave one of them out")
    if period and not 1000 <= period <= 1_000_000:
        raise Invalid('option "--cpu-period"', f"{period} is not between 1000 and 1000000 microseconds")
    return quota / (period or 100_000) if quota > 0 else cpus


def labels(session: Session, given: tuple[tuple[str, str], ...], files: tuple[str, ...]) -> Mapping[str, str]:
    return {**dict(values.pair(line) for name in files for line in _lines(session, name)), **dict(given)}


def mounts(
    session: Session, volumes: tuple[str, ...], long: tuple[str, ...], tmpfs: tuple[Bind, ...]
) -> tuple[Bind, ...]:
    """All binds and the like, with the client's paths made absolute. Invalid for a target given twice."""
    if not (volumes or long or tmpfs):
        return ()
    found: dict[str, Bind] = {}
    parsers: tuple[tuple[tuple[str, ...], str, Callable[[str, object], Bind]], ...] = (
        (volumes, "--volume", values.volume),
        (long, "--mount", values.mount),
    )
    binds = [(name, _checked(name, text, parse, session)) for texts, name, parse in parsers for text in texts]
    for name, bind in [*binds, *[("--tmpfs", bind) for bind in tmpfs]]:
        if bind.target in found:
            raise Invalid(f'option "{name}"', f'the target "{bind.target}" is given twice')
        found[bind.target] = bind
    return tuple(found.values())


def _checked(name: str, text: str, parse: Callable[[str, object], Bind], session: Session) -> Bind:
    try:
        return parse(text, session.path)
    except ValueError as error:
        raise Invalid(f'option "{name}"', str(error)) from None


def security(session: Session, given: tuple[str, ...]) -> tuple[bool, str]:
    """(no_new_privileges, seccomp) of RunRequest; a profile's file is read here."""
    no_new_privileges, seccomp = False, ""
    for text in given:
        key, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
        if key == "no-new-privileges" and value in {"", "true", "false"}:
            no_new_privileges = value != "false"
        elif key == "seccomp" and value in {"unconfined", "builtin", "default"}:
            seccomp = "unconfined" if value == "unconfined" else ""
        elif key == "seccomp" and value:
            seccomp = session.read(value)
            try:
                json.loads(seccomp)
            except ValueError as error:
                raise Invalid(f'seccomp profile "{value}"', f"not JSON: {error}") from None
        elif text not in {"apparmor=unconfined", "label=disable", "label:disable"}:  # neither is applied anyway
            raise Invalid(
                f'option "--security-opt {text}"',
                "not supported here",
                "use no-new-privileges, seccomp=unconfined or seccomp=FILE",
            )
    return no_new_privileges, seccomp


def _host(text: str) -> str:
    """HOST:IP (or HOST=IP), as "HOST:IP"."""
    host, found, address = text.partition("=") if "=" in text else text.partition(":")
    if not (host and found and address):
        raise Invalid('option "--add-host"', f'"{text}" is not HOST:IP')
    return f"{host}:{address.strip('[]')}"
