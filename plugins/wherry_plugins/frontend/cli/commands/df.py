"""``wherry system df``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from attrs import asdict, frozen

from wherry.api import ContainerUse, DiskUsage, ImageUse, VolumeUse
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.documents import NONE, split_name
from wherry_plugins.frontend.cli.listing import ListingRow, format_option, json_option, show
from wherry_plugins.frontend.cli.session import Session

ALIVE = frozenset({"running", "paused"})


@frozen
class UsageLine:
    """One line of the summary."""

    type: str
    total: int
    active: int
    size: int
    reclaimable: int


def summary(usage: DiskUsage) -> list[UsageLine]:
    """As docker: what is reclaimable is what no container uses, and containers that do not run."""
    idle = [container for container in usage.containers if container.status not in ALIVE]
    return [
        UsageLine(
            "Images", len(usage.images), sum(1 for image in usage.images if image.containers),
            usage.layers, usage.reclaimable,
        ),
        UsageLine(
            "Containers", len(usage.containers), len(usage.containers) - len(idle),
            sum(container.size for container in usage.containers), sum(container.size for container in idle),
        ),
        UsageLine(
            "Local Volumes", len(usage.volumes), sum(1 for volume in usage.volumes if volume.containers),
            sum(max(volume.size, 0) for volume in usage.volumes),
            sum(max(volume.size, 0) for volume in usage.volumes if not volume.containers),
        ),
    ]  # fmt: skip


def _reclaimable(kind: UsageLine) -> str:
    share = f" ({100 * kind.reclaimable // kind.size}%)" if kind.size else ""
    return human.size(kind.reclaimable) + share


_SUMMARY: dict[str, Callable[[UsageLine], Any]] = {
    "Type": lambda kind: kind.type,
    "TotalCount": lambda kind: str(kind.total),
    "Active": lambda kind: str(kind.active),
    "Size": lambda kind: human.size(kind.size),
    "Reclaimable": _reclaimable,
}
_COLUMNS = (
    ("TYPE", "Type"),
    ("TOTAL", "TotalCount"),
    ("ACTIVE", "Active"),
    ("SIZE", "Size"),
    ("RECLAIMABLE", "Reclaimable"),
)


def _name(image: ImageUse, part: int) -> str:
    return split_name(image.names[0])[part] if image.names else NONE


_IMAGES: dict[str, Callable[[ImageUse], Any]] = {
    "Repository": lambda image: _name(image, 0),
    "Tag": lambda image: _name(image, 1),
    "ID": lambda image: human.short(image.id),
    "CreatedSince": lambda image: human.ago(image.created),
    "Size": lambda image: human.size(image.size),
    "SharedSize": lambda image: human.size(image.shared),
    "UniqueSize": lambda image: human.size(image.size - image.shared),
    "Containers": lambda image: str(image.containers),
}
_IMAGE_COLUMNS = (
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
    ("SHARED SIZE", "SharedSize"),
    ("UNIQUE SIZE", "UniqueSize"),
    ("CONTAINERS", "Containers"),
)
_CONTAINERS: dict[str, Callable[[ContainerUse], Any]] = {
    "ID": lambda container: human.short(container.id),
    "Image": lambda container: container.image,
    "Command": lambda container: '"' + " ".join(container.command)[:20] + '"',
    "Size": lambda container: human.size(container.size),
    "CreatedSince": lambda container: human.ago(container.created),
    "Status": lambda container: container.status,
    "Name": lambda container: container.name,
}
_CONTAINER_COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("SIZE", "Size"),
    ("CREATED", "CreatedSince"),
    ("STATUS", "Status"),
    ("NAMES", "Name"),
)


_VOLUMES: dict[str, Callable[[VolumeUse], Any]] = {
    "Name": lambda volume: volume.name,
    "Links": lambda volume: str(volume.containers),
    "Size": lambda volume: "N/A" if volume.size < 0 else human.size(volume.size),
}
_VOLUME_COLUMNS = (("VOLUME NAME", "Name"), ("LINKS", "Links"), ("SIZE", "Size"))


def _table(
    session: Session, title: str, fields: Any, columns: Sequence[tuple[str, str]], items: Sequence[Any], gap: str
) -> None:
    session.line(f"{gap}{title}\n")
    show(session, [ListingRow(fields, item) for item in items], columns)


@click.command(
    "df",
    cls=Command,
    help="Show what images, containers and volumes take on disk, and what could be had back.",
    examples="wherry system df\nwherry system df -v",
)
@option("-v", "--verbose", is_flag=True, help="Each image, container and volume")
@format_option()
@json_option()
def command(session: Session, *, verbose: bool, form: str, as_json: bool) -> int:
    """Prints the table. An image's size is that of its blobs and of its unpacked layers."""
    usage = session.engine.disk_usage()
    if as_json:
        session.line(json.dumps(asdict(usage), indent=2, ensure_ascii=False))
        return 0
    if verbose and not form:
        _table(session, "Images space usage:", _IMAGES, _IMAGE_COLUMNS, usage.images, "")
        _table(session, "Containers space usage:", _CONTAINERS, _CONTAINER_COLUMNS, usage.containers, "\n")
        _table(session, "Local Volumes space usage:", _VOLUMES, _VOLUME_COLUMNS, usage.volumes, "\n")
        return 0
    show(session, [ListingRow(_SUMMARY, kind) for kind in summary(usage)], _COLUMNS, form=form)
    return 0
