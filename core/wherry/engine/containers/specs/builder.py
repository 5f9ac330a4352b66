"""Puts an OCI runtime spec together (runtime-spec, config.md and config-linux.md) and notes who wanted what.

Owners map JSON pointers (RFC 6901) to "defaults", "image", "request" or a plugin's id. Only what differs from its parent is
noted: the owner of a field is that of the longest pointer that leads to it, and "" is the whole document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from wherry.api import Invalid, Mount, RunRequest
from wherry.engine.containers.specs import capabilities, mounts, process, resources
from wherry.engine.containers.specs.profile import READONLY_PATHS, masked_paths, time_namespaces, unified_cgroups

VERSION = "1.2.1"
#: Annotations of our own begin so; an image's or a user's may not.
RESERVED = "io.wherry."
SECCOMP = RESERVED + "seccomp"
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?\Z")
_HOOKS = frozenset({"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})


@frozen
class SpecInputs:
    """What a spec is made of. image is the ``config`` object of the image config; hostname is of the sandbox; files holds
    the three files for /etc; network: "own", "host" or "shared" (with another container)."""

    id: str
    image: Mapping[str, Any]
    request: RunRequest
    hostname: str
    cgroups_path: str
    files: Path | None = None
    network: str = "own"
    volumes: Mapping[str, tuple[Mount, ...]] = {}
    """The mounts of each volume, by its target."""


@frozen
class BuiltSpec:
    """A spec as plain data and the owners of its parts."""

    spec: dict[str, Any]
    owners: dict[str, str]


def build(inputs: SpecInputs) -> BuiltSpec:
    """The spec before adjusters. Raises Invalid, NotFound and FailedPrecondition for what the request can't have."""
    request = inputs.request
    image = inputs.image
    owners = {"": "defaults", "/hostname": "request" if request.hostname else "defaults"}
    argv, owners["/process/args"] = process.command_of(image, request)
    mount_list, mount_owners = mounts.all_mounts(request, inputs.files, inputs.volumes)
    owners.update(mount_owners)
    if request.init:
        argv = (mounts.INIT_TARGET, "--", *argv)
    spec: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": _process(inputs, argv, owners),
        "root": {"path": "rootfs", "readonly": request.read_only},
        "hostname": inputs.hostname,
        "mounts": mount_list,
        "linux": _linux(inputs, owners),
        "annotations": _annotations(request),
    }
    if request.read_only:
        owners["/root/readonly"] = "request"
    for name in request.annotations:
        owners["/annotations/" + _escape(name)] = "request"
    if request.seccomp or request.privileged:
        owners["/annotations/" + SECCOMP] = "request"
    if request.hooks:
        spec["hooks"] = _hooks(request.hooks)
        owners["/hooks"] = "request"
    return BuiltSpec(spec, owners)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _process(inputs: SpecInputs, argv: tuple[str, ...], owners: dict[str, str]) -> dict[str, Any]:
    request, image = inputs.request, inputs.image
    if any("\0" in word for word in argv):
        raise Invalid("command", "a zero byte in an argument")
    image_env = image.get("Env") or ()
    env = process.environment(image_env, request.env, hostname=inputs.hostname, tty=request.tty)
    from_request = {entry for entry in request.env if "=" in entry}
    from_image = set(filter(lambda entry: isinstance(entry, str), image_env))
    for index, entry in enumerate(env):
        if entry in from_request:
            owners[f"/process/env/{index}"] = "request"
        elif entry in from_image:
            owners[f"/process/env/{index}"] = "image"
    image_user, image_cwd = str(image.get("User") or ""), str(image.get("WorkingDir") or "")
    for pointer, wished, given in (("user", request.user, image_user), ("cwd", request.workdir, image_cwd)):
        if wished or given:
            owners["/process/" + pointer] = "request" if wished else "image"
    chosen = capabilities.choose(request.cap_add, request.cap_drop, privileged=request.privileged)
    result: dict[str, Any] = {
        "terminal": request.tty,
        "user": process.user_of(request.user or image_user),
        "args": list(argv),
        "env": env,
        "cwd": process.working_directory(request.workdir or image_cwd),
        "capabilities": capabilities.sets(chosen),
        "noNewPrivileges": request.no_new_privileges,
    }
    if request.cap_add or request.cap_drop or request.privileged:
        owners["/process/capabilities"] = "request"
    if request.no_new_privileges:
        owners["/process/noNewPrivileges"] = "request"
    if request.ulimits:
        result["rlimits"] = process.rlimits(request.ulimits)
        owners["/process/rlimits"] = "request"
    if request.oom_score_adj is not None:
        if not -1000 <= request.oom_score_adj <= 1000:
            raise Invalid(f"oom score {request.oom_score_adj}", "not between -1000 and 1000")
        result["oomScoreAdj"] = request.oom_score_adj
        owners["/process/oomScoreAdj"] = "request"
    if request.tty:
        owners["/process/terminal"] = "request"
    return result


def _linux(inputs: SpecInputs, owners: dict[str, str]) -> dict[str, Any]:
    request = inputs.request
    namespaces = ["mount", "pid", "ipc", "uts"]
    if inputs.network != "host":
        namespaces.append("network")
    if unified_cgroups():
        namespaces.append("cgroup")
    if time_namespaces() and not request.privileged:
        namespaces.append("time")
    nodes, rules = resources.devices(request.devices, privileged=request.privileged)
    linux: dict[str, Any] = {
        "cgroupsPath": inputs.cgroups_path,
        "namespaces": [{"type": name} for name in namespaces],
        "resources": {"devices": rules, **resources.limits(request)},
    }
    sysctl = resources.sysctls(
        request.sysctls, own_network=inputs.network == "own", own_ipc=inputs.network in ("own", "host")
    )
    if sysctl:
        linux["sysctl"] = sysctl
    for name in request.sysctls:
        owners["/linux/sysctl/" + name] = "request"
    if nodes:
        linux["devices"] = nodes
        owners["/linux/devices"] = "request"
    if not request.privileged:
        linux["maskedPaths"] = list(masked_paths())
        linux["readonlyPaths"] = list(READONLY_PATHS)
    for name in ("memory", "cpu", "pids"):
        if name in linux["resources"]:
            owners["/linux/resources/" + name] = "request"
    return linux


def _annotations(request: RunRequest) -> dict[str, str]:
    for name in request.annotations:
        if not name or name.startswith(RESERVED):
            raise Invalid(f'annotation "{name}"', f"empty, or begins with {RESERVED}, which is kept for wherry itself")
    choice = request.seccomp or ("unconfined" if request.privileged else "default")
    if choice not in ("default", "unconfined"):
        try:
            profile = json.loads(choice)
        except (ValueError, RecursionError) as error:
            raise Invalid("seccomp profile", f"not JSON: {error}") from None
        if not isinstance(profile, dict) or "defaultAction" not in profile:
            raise Invalid("seccomp profile", "no defaultAction in it", "see the format of docker's default.json")
    return {**request.annotations, SECCOMP: choice}


def _hooks(wished: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, entries in wished.items():
        if name not in _HOOKS:
            raise Invalid(f'hook "{name}"', "no such moment", "one of " + ", ".join(sorted(_HOOKS)))
        if not isinstance(entries, (list, tuple)):
            raise Invalid(f'hook "{name}"', "not a list")
        for entry in entries:
            path = entry.get("path") if isinstance(entry, Mapping) else None
            if not isinstance(path, str) or not path.startswith("/"):
                raise Invalid(f'hook "{name}"', "an entry without an absolute path")
        result[name] = [dict(entry) for entry in entries]
    return result


def check_hostname(name: str) -> str:
    """The name itself; Invalid when it is none (RFC 1123, at most 64 bytes: sethostname(2))."""
    if not _HOSTNAME.match(name):
        raise Invalid(f'hostname "{name}"', "not letters, digits, - and ., at most 64 in all")
    return name
