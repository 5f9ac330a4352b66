"""Containers and images as documents under docker's names (Docker Engine API, ContainerInspect and ImageInspect)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.api import Container, ImageInfo
from wherry_plugins.frontend.cli.human import iso


def container_document(container: Container, details: Mapping[str, Any]) -> dict[str, Any]:
    """What docker's clients look for, and under Wherry all that Engine.inspect says."""
    spec: Mapping[str, Any] = details.get("spec") or {}
    request: Mapping[str, Any] = details.get("request") or {}
    process: Mapping[str, Any] = spec.get("process") or {}
    running = container.status in {"running", "paused"}
    argv = list(process.get("args") or container.command)
    return {
        "Id": container.id,
        "Created": iso(container.created),
        "Path": argv[0] if argv else "",
        "Args": argv[1:],
        "State": {
            "Status": {"stopped": "exited", "creating": "created"}.get(container.status, container.status),
            "Running": running,
            "Paused": container.status == "paused",
            "OOMKilled": container.oom_killed,
            "Dead": False,
            "Pid": container.pid,
            "ExitCode": 0 if running or not container.finished else container.exit_code,
            "Error": container.error,
            "StartedAt": iso(container.started),
            "FinishedAt": iso(container.finished),
        },
        "Image": container.image_digest,
        "Name": f"/{container.name}",
        "Driver": container.drivers.get("snapshotter", ""),
        "Platform": "linux",
        "Config": _config(container, process, request),
        "HostConfig": _host_config(container, request),
        "Mounts": [_mount(mount) for mount in request.get("mounts") or ()],
        "NetworkSettings": {
            "Ports": {f"{port.container_port}/{port.protocol}": _bindings(port) for port in container.ports},
            "Networks": {name: {} for name in container.networks},
            "IPAddress": container.addresses[0].partition("/")[0] if container.addresses else "",
        },
        "Variant": container.variant,
        "Drivers": dict(container.drivers),
        "SandboxID": container.sandbox_id,
        "Spec": spec,
        "Owners": details.get("owners") or {},
    }


def _config(container: Container, process: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Hostname": request.get("hostname") or container.id[:12],
        "User": request.get("user", ""),
        "Tty": container.tty,
        "OpenStdin": bool(request.get("interactive")),
        "Env": list(process.get("env") or ()),
        "Cmd": list(container.command),
        "Entrypoint": request.get("entrypoint"),
        "Image": container.image,
        "WorkingDir": process.get("cwd", ""),
        "Labels": dict(container.labels),
        "StopSignal": request.get("stop_signal") or "SIGTERM",
    }


def _host_config(container: Container, request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "AutoRemove": container.remove,
        "Privileged": bool(request.get("privileged")),
        "ReadonlyRootfs": bool(request.get("read_only")),
        "Init": bool(request.get("init")),
        "NetworkMode": request.get("network") or "default",
        "Memory": request.get("memory", 0),
        "MemorySwap": request.get("memory_swap", 0),
        "NanoCpus": round(float(request.get("cpus", 0) or 0) * 1e9),
        "CpuShares": request.get("cpu_shares", 0),
        "CpusetCpus": request.get("cpuset", ""),
        "PidsLimit": request.get("pids_limit", 0),
        "ShmSize": request.get("shm_size", 0),
        "CapAdd": list(request.get("cap_add") or ()),
        "CapDrop": list(request.get("cap_drop") or ()),
        "Sysctls": dict(request.get("sysctls") or {}),
        "LogConfig": {"Type": request.get("log", ""), "Config": dict(request.get("log_options") or {})},
    }


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    options = list(mount.get("options") or ())
    return {
        "Type": mount.get("type", ""),
        "Source": mount.get("source", ""),
        "Destination": mount.get("target", ""),
        "Mode": ",".join(options),
        "RW": "ro" not in options,
    }


def _bindings(port: Any) -> list[dict[str, str]] | None:
    return [{"HostIp": port.host_ip, "HostPort": str(port.host_port)}] if port.host_port else None


def image_document(image: ImageInfo) -> dict[str, Any]:
    """As docker's, from the image's config; Size is that of the blobs."""
    config = dict(image.config)
    return {
        "Id": image.id,
        "RepoTags": [name for name in image.names if "@" not in name],
        "RepoDigests": [
            f"{name.partition('@')[0].rpartition(':')[0] or name}@{image.target.digest}" for name in image.names
        ],
        "Created": iso(image.created),
        "Size": image.size,
        "Os": config.get("os", image.platform.partition("/")[0]),
        "Architecture": config.get("architecture", image.platform.partition("/")[2]),
        "Config": config.get("config", {}),
        "RootFS": {"Type": "layers", "Layers": list((config.get("rootfs") or {}).get("diff_ids") or image.layers)},
        "Labels": dict(image.labels),
        "Descriptor": {"mediaType": image.target.media_type, "digest": image.target.digest, "size": image.target.size},
    }
