"""ps and inspect: containers as records and as docker-like JSON."""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.api import Container, Error, Invalid, RunRequest
from wherry.engine.containers.records import ContainerRecord, plain_request
from wherry.engine.networks.endpoints import SandboxEndpoint, network_id
from wherry.engine.state.state import State

_STATUS = {"exited": "stopped", "dead": "stopped"}
_created = operator.attrgetter("created")
_ZERO_TIME = "0001-01-01T00:00:00Z"


class Inspector:
    def __init__(self, state: State) -> None:
        self._state = state

    def list(self, everything: bool, filters: Mapping[str, Collection[str]]) -> tuple[Container, ...]:
        """Newest first. Filters: the values of one are alternatives (labels add up), all filters must hold."""
        tests = [self._filter(name, values) for name, values in filters.items()]
        shown = everything or "status" in filters or "exited" in filters
        found = [record for record in self._state.registry if record.status != "creating" and (shown or record.live)]
        if tests:
            found = [record for record in found if all(test(record) for test in tests)]
        found.sort(key=_created, reverse=True)
        return tuple([record.view() for record in found])

    def _filter(self, name: str, values: Collection[str]) -> Callable[[ContainerRecord], bool]:
        if name == "id":
            return lambda record: any(record.id.startswith(value) for value in values)
        if name == "name":
            return lambda record: any(_named(record, value) for value in values)
        if name == "status":
            wished = {_STATUS.get(value, value) for value in values}
            if unknown := wished - {"creating", "created", "running", "paused", "stopped"}:
                raise Invalid(f"filter status={min(unknown)}", "no such status")
            return lambda record: record.status in wished
        if name == "label":
            pairs = [value.partition("=") for value in values]
            return lambda record: all(
                key in record.labels and (not equals or record.labels[key] == text) for key, equals, text in pairs
            )
        if name == "ancestor":
            return lambda record: any(_descends(record, value) for value in values)
        if name == "exited":
            try:
                codes = {int(value) for value in values}
            except ValueError:
                raise Invalid("filter exited", "not an exit code") from None
            return lambda record: record.status == "stopped" and record.exit_code in codes
        if name == "network":
            return lambda record: any(value in record.networks for value in values)
        if name == "volume":
            return lambda record: any(value in (use.name, use.target) for use in record.volumes for value in values)
        if name == "publish":
            ports = [_port(name, value) for value in values]
            return lambda record: any(
                port.host_port in numbers and protocol in ("", port.protocol)
                for port in record.ports
                for numbers, protocol in ports
            )
        if name == "variant":
            return lambda record: record.variant in values
        if name in ("before", "since"):
            times = [self._state.registry.find(value).created for value in values]
            if name == "before":
                return lambda record: record.created < min(times)
            return lambda record: record.created > max(times)
        raise Invalid(
            f'filter "{name}"',
            "no such filter",
            "one of ancestor, before, exited, id, label, name, network, publish, since, status, variant, volume",
        )

    def inspect(self, name: str) -> Mapping[str, Any]:
        """Docker's keys (Engine API, ContainerInspect) and our own: "spec", "owners", "request", "container"."""
        state = self._state
        record = state.registry.find(name)
        request = state.request_of(record)
        spec, owners = state.spec_of(record)
        process = spec.get("process") or {}
        args = list(process.get("args") or record.command)
        return {
            "Id": record.id,
            "Created": timestamp(record.created),
            "Path": args[0] if args else "",
            "Args": args[1:],
            "State": _state(record),
            "Image": record.image_id,
            "ImageDigest": record.image_digest,
            "Name": "/" + record.name,
            "RestartCount": max(record.generation - 1, 0),
            "Driver": record.drivers.get("snapshotter", ""),
            "Platform": "linux",
            "Variant": record.variant,
            "Drivers": dict(record.drivers),
            "LogPath": self._log_path(record, request),
            "ExecIDs": [exec.id for exec in record.execs.values() if not exec.gate.is_set()],
            "HostConfig": _host_config(record, request),
            "Mounts": _mounts(request) + _volumes(self._state, record),
            "Config": _config(record, request, process, spec),
            "NetworkSettings": _network(record, state.attached.get(record.sandbox_id, ())),
            "container": _container(record),
            "spec": spec,
            "owners": owners,
            "request": plain_request(request),
        }

    def _log_path(self, record: ContainerRecord, request: RunRequest) -> str:
        if record.log == "none":
            return ""
        path = self._state.kernel.log(record.log).sink(record.id, request.log_options).path
        return path if path and Path(path).exists() else ""


def _named(record: ContainerRecord, value: str) -> bool:
    """A part of the name, or a regular expression of it, with or without docker's slash: "^web$" and "^/web$"."""
    if value.removeprefix("/") in record.name:
        return True
    try:
        return any(re.search(value, name) for name in (record.name, f"/{record.name}"))
    except re.error:
        return False


def _port(name: str, value: str) -> tuple[range, str]:
    """PORT[-PORT][/PROTOCOL] of a filter. Invalid for anything else."""
    numbers, _, protocol = value.lower().partition("/")
    first, _, last = numbers.partition("-")
    try:
        return range(int(first), int(last or first) + 1), protocol
    except ValueError:
        raise Invalid(f"filter {name}={value}", "not PORT[-PORT][/PROTOCOL]") from None


def _descends(record: ContainerRecord, image: str) -> bool:
    if image in (record.image, record.image_id, record.image_digest):
        return True
    if record.image_id.removeprefix("sha256:").startswith(image.removeprefix("sha256:")) and len(image) >= 6:
        return True
    return record.image.rpartition("/")[2].partition(":")[0] == image


def timestamp(ns: int) -> str:
    """RFC 3339 with nanoseconds, as docker prints times; its zero time for 0."""
    if not ns:
        return _ZERO_TIME
    seconds, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def _state(record: ContainerRecord) -> dict[str, Any]:
    return {
        "Status": "exited" if record.status == "stopped" else record.status,
        "Running": record.live,
        "Paused": record.status == "paused",
        "Restarting": False,
        "OOMKilled": record.oom_killed,
        "Dead": False,
        "Pid": record.pid,
        "ExitCode": record.exit_code,
        "Error": record.error,
        "StartedAt": timestamp(record.started),
        "FinishedAt": timestamp(record.finished),
    }


def _host_config(record: ContainerRecord, request: RunRequest) -> dict[str, Any]:
    ports: dict[str, list[dict[str, str]]] = {}
    for port in request.ports:
        ports.setdefault(f"{port.container_port}/{port.protocol}", []).append(
            {"HostIp": port.host_ip, "HostPort": str(port.host_port or "")}
        )
    return {
        "Binds": [
            _bind_text(bind.source, bind.target, bind.options)
            for bind in request.mounts
            if bind.type == "bind" or (bind.type == "volume" and bind.source)
        ],
        "Tmpfs": {bind.target: ",".join(bind.options) for bind in request.mounts if bind.type == "tmpfs"},
        "LogConfig": {"Type": record.log, "Config": dict(request.log_options)},
        "NetworkMode": request.network or record.drivers.get("network", ""),
        "PortBindings": ports,
        "AutoRemove": record.remove,
        "Privileged": request.privileged,
        "ReadonlyRootfs": request.read_only,
        "CapAdd": list(request.cap_add),
        "CapDrop": list(request.cap_drop),
        "Dns": list(request.dns),
        "DnsOptions": list(request.dns_options),
        "DnsSearch": list(request.dns_search),
        "ExtraHosts": list(request.extra_hosts),
        "Memory": request.memory,
        "MemorySwap": request.memory_swap or 2 * request.memory,
        "MemoryReservation": request.memory_reservation,
        "OomScoreAdj": request.oom_score_adj or 0,
        "NanoCpus": int(request.cpus * 1_000_000_000),
        "CpuShares": request.cpu_shares,
        "CpusetCpus": request.cpuset,
        "PidsLimit": request.pids_limit,
        "ShmSize": request.shm_size,
        "Ulimits": [{"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in request.ulimits],
        "Sysctls": dict(request.sysctls),
        "Devices": list(request.devices),
        "Init": request.init,
        "SecurityOpt": ["no-new-privileges"] if request.no_new_privileges else [],
    }


def _bind_text(source: str, target: str, options: Collection[str]) -> str:
    return f"{source}:{target}" + (":" + ",".join(options) if options else "")


def _mounts(request: RunRequest) -> list[dict[str, Any]]:
    return [
        {
            "Type": bind.type,
            "Source": bind.source,
            "Destination": bind.target,
            "Mode": ",".join(bind.options),
            "RW": "ro" not in bind.options,
        }
        for bind in request.mounts
        if bind.type != "volume"
    ]


def _volumes(state: State, record: ContainerRecord) -> list[dict[str, Any]]:
    found = []
    for use in record.volumes:
        try:
            source = state.kernel.volume(use.driver).get(use.name).mountpoint
        except (Error, OSError):  # removed behind the engine's back
            source = ""
        found.append(
            {
                "Type": "volume",
                "Name": use.name,
                "Source": source,
                "Destination": use.target,
                "Driver": use.driver,
                "Mode": ",".join(use.options),
                "RW": "ro" not in use.options,
            }
        )
    return found


def _config(
    record: ContainerRecord, request: RunRequest, process: Mapping[str, Any], spec: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "Hostname": spec.get("hostname") or request.hostname or record.sandbox_id[:12],
        "User": record.user,
        "Tty": record.tty,
        "OpenStdin": request.interactive,
        "Env": list(process.get("env") or request.env),
        "Cmd": list(record.command),
        "Entrypoint": list(request.entrypoint) if request.entrypoint is not None else None,
        "Image": record.image,
        "WorkingDir": process.get("cwd") or request.workdir,
        "Labels": dict(record.labels),
        "StopSignal": record.stop_signal,
        "StopTimeout": record.stop_timeout,
    }


def _network(record: ContainerRecord, places: Sequence[SandboxEndpoint]) -> dict[str, Any]:
    """Docker's keys; those of the first network once more at the top."""
    networks = {place.network: _endpoint(place) for place in places}
    for name in () if record.live else record.networks:
        networks.setdefault(name, _endpoint(SandboxEndpoint(name, "")))
    first = next(iter(networks.values()), _endpoint(SandboxEndpoint("", "")))
    top = (
        "IPAddress",
        "IPPrefixLen",
        "Gateway",
        "MacAddress",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "IPv6Gateway",
    )
    return {
        "SandboxID": record.sandbox_id,
        **{key: first[key] for key in top},
        "Networks": networks,
        "Ports": _host_ports(record),
    }


def _endpoint(place: SandboxEndpoint) -> dict[str, Any]:
    four, six = (next((a for a in place.addresses if (":" in a) is wish), "").partition("/") for wish in (False, True))
    gateways = [next((g for g in place.gateways if (":" in g) is wish), "") for wish in (False, True)]
    return {
        "NetworkID": network_id(place.driver, place.network) if place.driver else "",
        "Aliases": list(place.names[1:]),
        "DNSNames": list(place.names),
        "MacAddress": place.mac,
        "IPAddress": four[0],
        "IPPrefixLen": int(four[2] or 0),
        "Gateway": gateways[0],
        "GlobalIPv6Address": six[0],
        "GlobalIPv6PrefixLen": int(six[2] or 0),
        "IPv6Gateway": gateways[1],
    }


def _host_ports(record: ContainerRecord) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in record.ports if record.live else ():
        hosts = [port.host_ip] if port.host_ip else ["0.0.0.0", "::"]  # noqa: S104 as docker shows it
        found.setdefault(f"{port.container_port}/{port.protocol}", []).extend(
            {"HostIp": host, "HostPort": str(port.host_port)} for host in hosts
        )
    return found


def _container(record: ContainerRecord) -> dict[str, Any]:
    view = record.view()
    return {
        "id": view.id,
        "name": view.name,
        "image": view.image,
        "status": view.status,
        "pid": view.pid,
        "created": view.created,
        "started": view.started,
        "finished": view.finished,
        "exit_code": view.exit_code,
        "sandbox_id": view.sandbox_id,
    }
