"""Plans, streams, sandboxes and states as the JSON that travels between engine and shim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.interfaces.common import IdMap
from wherry.interfaces.process import Exit, Plan, Sandbox, Stdio, TaskState


def encode_idmap(idmap: IdMap) -> dict[str, Any]:
    return {"uids": idmap.uids, "gids": idmap.gids} if idmap.uids or idmap.gids else {}


def encode_plan(plan: Plan) -> dict[str, Any]:
    """All but the numbers of its fds, which mean nothing to another process."""
    return {
        "how": plan.how,
        "argv": plan.argv,
        "env": plan.env,
        "flags": plan.flags,
        "cgroups": plan.cgroups,
        "sandbox_id": plan.sandbox_id,
        "join": plan.join,
        "idmap": encode_idmap(plan.idmap),
        "steps": [step.encode() for step in plan.steps],
        "pid": plan.pid,
        "start_time": plan.start_time,
        "target": plan.target,
        "hooks": dict(plan.hooks),
        "start": plan.start,
    }


def encode_stdio(stdio: Stdio) -> tuple[dict[str, Any], list[int]]:
    """The record, and the descriptors that its numbers are indexes into."""
    fds: list[int] = []

    def index(fd: int) -> int:
        if fd < 0:
            return -1
        fds.append(fd)
        return len(fds) - 1

    sink = stdio.log
    record = {
        "stdin": index(stdio.stdin),
        "stdout": index(stdio.stdout),
        "stderr": index(stdio.stderr),
        "terminal": stdio.terminal,
        "rows": stdio.rows,
        "columns": stdio.columns,
        "hold_stdin": stdio.hold_stdin,
        "attachable": stdio.attachable,
        "token": stdio.token,
        "log": {
            "format": sink.format,
            "path": sink.path,
            "fd": index(sink.fd if sink.format == "raw-fd" else -1),
            "max_size": sink.max_size,
            "max_file": sink.max_file,
            "when_full": sink.when_full,
        },
    }
    return record, fds


def encode_sandbox(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "id": sandbox.id,
        "netns": sandbox.netns,
        "ipc": sandbox.ipc,
        "uts": sandbox.uts,
        "pid": sandbox.pid,
        "idmap": encode_idmap(sandbox.idmap),
        "cgroup_parent": sandbox.cgroup_parent,
        "hostname": sandbox.hostname,
    }


def _triples(rows: Any) -> tuple[tuple[int, int, int], ...]:
    return tuple((row[0], row[1], row[2]) for row in rows)


def sandbox_of(record: Mapping[str, Any]) -> Sandbox:
    idmap = record.get("idmap") or {}
    return Sandbox(
        id=record["id"],
        netns=record["netns"],
        ipc=record["ipc"],
        uts=record["uts"],
        pid=record["pid"],
        idmap=IdMap(_triples(idmap.get("uids", ())), _triples(idmap.get("gids", ()))),
        cgroup_parent=record["cgroup_parent"],
        hostname=record["hostname"],
    )


def state_of(record: Mapping[str, Any]) -> TaskState:
    exit = record.get("exit")
    return TaskState(
        id=record["id"],
        exec_id=record["exec_id"],
        status=record["status"],
        pid=record["pid"],
        start_time=record["start_time"],
        sandbox_id=record["sandbox_id"],
        exit=None if exit is None else Exit(exit["code"], exit["time"], exit["oom_killed"]),
        user=record["user"],
    )
