"""``wherry history``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import click
from attrs import frozen

from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.listing import ListingRow, format_option, json_option, show
from wherry_plugins.frontend.cli.main import printable
from wherry_plugins.frontend.cli.session import Session

MISSING = "<missing>"
WIDTH = 45


@frozen
class HistoryStep:
    """One entry of an image's history (OCI image-spec, config.md, "history"), with the layer it made."""

    id: str
    created: int
    created_by: str
    size: int
    comment: str


def moment(text: Any) -> int:
    """RFC 3339 as ns since the epoch, 0 for what is none."""
    try:
        return int(datetime.fromisoformat(str(text)).timestamp()) * 10**9
    except (ValueError, OverflowError):
        return 0


def steps(session: Session, name: str, platform: str) -> list[HistoryStep]:
    """The newest first, as docker prints them: only the top one has an id."""
    image = session.engine.image(name)
    layers = iter(session.engine.layers(name, platform=platform))
    history = image.config.get("history")
    entries = [entry for entry in history if isinstance(entry, Mapping)] if isinstance(history, (list, tuple)) else []
    found = []
    for entry in entries:
        layer = None if entry.get("empty_layer") else next(layers, None)
        size = 0 if layer is None else layer.size if layer.unpacked < 0 else layer.unpacked
        texts = [str(entry.get(key) or "") for key in ("created_by", "comment")]
        found.append(HistoryStep(MISSING, moment(entry.get("created")), texts[0], size, texts[1]))
    for layer in layers:  # a history may be shorter than the layers, or absent
        size = layer.size if layer.unpacked < 0 else layer.unpacked
        found.append(HistoryStep(MISSING, image.created, "", size, ""))
    found.reverse()
    if found:
        top = found[0]
        found[0] = HistoryStep(image.id, top.created, top.created_by, top.size, top.comment)
    return found


def _line(text: str) -> str:
    return printable(" ".join(text.split()))


def _cut(text: str) -> str:
    line = _line(text)
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


_FIELDS: dict[str, Callable[[HistoryStep], Any]] = {
    "ID": lambda step: human.short(step.id),
    "CreatedSince": lambda step: human.ago(step.created),
    "CreatedAt": lambda step: human.iso(step.created),
    "CreatedBy": lambda step: _cut(step.created_by),
    "Size": lambda step: human.size(step.size),
    "Comment": lambda step: _line(step.comment),
}
_WHOLE = {**_FIELDS, "ID": lambda step: step.id, "CreatedBy": lambda step: _line(step.created_by)}
_EXACT = {"Size": lambda step: str(step.size), "CreatedSince": lambda step: human.iso(step.created)}
COLUMNS = (
    ("IMAGE", "ID"),
    ("CREATED", "CreatedSince"),
    ("CREATED BY", "CreatedBy"),
    ("SIZE", "Size"),
    ("COMMENT", "Comment"),
)


@click.command(
    "history",
    cls=Command,
    help="Show how an image was made, the newest step first.",
    examples="wherry history debian\nwherry history --no-trunc --format '{{.CreatedBy}}' debian",
)
@option("-H", "--human", "is_human", type=bool, default=True, metavar="BOOL", help="Sizes and dates for people; true")
@option("--no-trunc", is_flag=True, help="Whole ids and commands")
@option("-q", "--quiet", is_flag=True, help="Only ids")
@option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image")
@format_option()
@json_option()
@argument("name", metavar="IMAGE")
def command(
    session: Session,
    *,
    is_human: bool,
    no_trunc: bool,
    quiet: bool,
    platform: str,
    form: str,
    as_json: bool,
    name: str,
) -> int:
    """Prints the list. Sizes are those on disk of unpacked layers, else those of their blobs."""
    fields = {**(_WHOLE if no_trunc else _FIELDS), **({} if is_human else _EXACT)}
    rows = [ListingRow(fields, step) for step in steps(session, name, platform)]
    show(session, rows, COLUMNS, form=form, as_json=as_json, quiet="ID" if quiet else "")
    return 0
