"""``wherry ps``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import click

from wherry.api import Container, NotFound, Port
from wherry_plugins.frontend.cli import human, values
from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.listing import ListingRow, filter_option, format_option, json_option, show
from wherry_plugins.frontend.cli.networking import addresses
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.template import method

COLUMNS = (
    ("CONTAINER ID", "ID"), ("IMAGE", "Image"), ("COMMAND", "Command"), ("CREATED", "RunningFor"), ("STATUS", "Status"),
    ("PORTS", "Ports"), ("NAMES", "Names"),
)  # fmt: skip
COMMAND_WIDTH = 20


def _command(container: Container) -> str:
    return json.dumps(" ".join(container.command), ensure_ascii=False)


@lru_cache(1024)
def _shortened(words: tuple[str, ...]) -> str:
    text = " ".join(words)
    return json.dumps(text if len(text) < COMMAND_WIDTH else text[: COMMAND_WIDTH - 2] + "…", ensure_ascii=False)


def _cut(container: Container) -> str:
    return _shortened(container.command)


def ports(found: tuple[Port, ...]) -> str:
    """ "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 53/udp"."""
    texts = []
    for port in found:
        inner = f"{port.container_port}/{port.protocol}"
        texts += [f"{address}->{inner}" for address in addresses(port)] if port.host_port else [inner]
    return ", ".join(texts)


_FIELDS: dict[str, Callable[[Container], Any]] = {
    "ID": lambda container: container.id[:12],
    "Image": lambda container: container.image,
    "Command": _cut,
    "CreatedAt": lambda container: human.local(container.created),
    "RunningFor": lambda container: human.ago(container.created),
    "Status": human.status,
    "State": lambda container: {"stopped": "exited", "creating": "created"}.get(container.status, container.status),
    "Ports": lambda container: ports(container.ports) if container.status in {"running", "paused"} else "",
    "Names": lambda container: container.name,
    "Labels": lambda container: ",".join(f"{key}={value}" for key, value in container.labels.items()),
    "Label": lambda container: method(lambda name: container.labels.get(name, "")),
    "Networks": lambda container: ",".join(container.networks),
    "Variant": lambda container: container.variant,
    "Drivers": lambda container: dict(container.drivers),
    "Pid": lambda container: container.pid,
    "ExitCode": lambda container: container.exit_code,
}
_WHOLE: dict[str, Callable[[Container], Any]] = {**_FIELDS, "ID": lambda container: container.id, "Command": _command}


def _json(container: Container) -> Mapping[str, Any]:
    import attrs

    return attrs.asdict(container)


@click.command(
    "ps",
    cls=Command,
    help="List containers, by default the running ones.",
    examples="wherry ps -a\nwherry ps --filter status=exited --format 'table {{.Names}}\\t{{.Status}}'",
)
@option("-a", "--all", "everything", is_flag=True, help="Those that do not run too")
@option("-q", "--quiet", is_flag=True, help="Only ids")
@option("--no-trunc", is_flag=True, help="Whole ids and commands")
@filter_option("id, name, label, status, ancestor, exited, volume, network, publish ...", "-f")
@option("-s", "--size", is_flag=True, help="Show what each has on disk beyond its image")
@option("-n", "--last", type=int, default=-1, metavar="N", help="The last N created, in any state")
@option("-l", "--latest", is_flag=True, help="The last created, in any state")
@format_option()
@json_option()
def command(
    session: Session,
    *,
    everything: bool,
    quiet: bool,
    no_trunc: bool,
    filters: tuple[str, ...],
    size: bool,
    last: int,
    latest: bool,
    form: str,
    as_json: bool,
) -> int:
    """Prints the list, the newest first."""
    chosen = values.filters(filters)
    last = 1 if latest else last
    shown_all = everything or last >= 0 or bool({"status", "exited"} & chosen.keys())
    if "status" in chosen:  # docker's word for ours
        chosen["status"] = ["stopped" if value == "exited" else value for value in chosen["status"]]
    found = sorted(session.engine.containers(all=shown_all, filters=chosen), key=lambda container: -container.created)
    found = found[:last] if last >= 0 else found
    if as_json:
        session.line(json.dumps([_json(container) for container in found], indent=2, ensure_ascii=False))
        return 0
    fields = {**(_WHOLE if no_trunc else _FIELDS), **_asked(session, sizes=size or ".Size" in form)}
    columns = (*COLUMNS, ("SIZE", "Size")) if size else COLUMNS
    show(
        session, [ListingRow(fields, container) for container in found], columns, form=form, quiet="ID" if quiet else ""
    )
    return 0


def _asked(session: Session, *, sizes: bool) -> dict[str, Callable[[Container], Any]]:
    """Fields that the engine has to be asked for once more. sizes: whether trees are to be walked."""
    taken = {use.id: use.size for use in session.engine.disk_usage().containers} if sizes else {}

    def mounts(container: Container) -> list[str]:
        try:
            found = session.engine.inspect(container.id)["Mounts"]
        except NotFound:  # removed since it was listed
            return []
        return [mount.get("Name") or mount["Source"] for mount in found]

    return {
        "Size": lambda container: human.size(taken.get(container.id, 0)),
        "Mounts": lambda container: ",".join(mounts(container)),
    }
