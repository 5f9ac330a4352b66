"""``wherry inspect``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from wherry.api import Engine, Error, FailedPrecondition, NotFound
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.documents import image_document, volume_document
from wherry_plugins.frontend.cli.listing import show_one, table
from wherry_plugins.frontend.cli.main import report
from wherry_plugins.frontend.cli.networking import network_document
from wherry_plugins.frontend.cli.session import Session

_FORM = option("-f", "--format", "form", metavar="TEMPLATE", default="", help="Print each by a Go template, or as JSON")
_NAMES = argument("names", nargs=-1, required=True, metavar="NAME...")


def explain(details: Mapping[str, Any]) -> str:
    """Every leaf of the spec with who set it: the owner of the nearest pointer at or above it."""
    if not details.get("spec"):
        raise FailedPrecondition(
            f'container "{details.get("Name", "").lstrip("/")}"', "it has no spec before its first start"
        )
    owners = details.get("owners", {})
    rows = [("FIELD", "VALUE", "SET BY")]
    for pointer, value in _leaves(details.get("spec", {}), "", owners):
        text = json.dumps(value, ensure_ascii=False)
        rows.append((pointer, text if len(text) <= 60 else text[:59] + "…", _owner(pointer, owners)))
    return table(rows)


def _owner(pointer: str, owners: Mapping[str, str]) -> str:
    while pointer and pointer not in owners:
        pointer = pointer.rpartition("/")[0]
    return owners.get(pointer, "")


def _leaves(value: Any, pointer: str, owners: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(JSON pointer, value) of everything that is no mapping; a list of plain values by one owner is one leaf (RFC 6901)."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(key.replace("~", "~0").replace("/", "~1"), value[key]) for key in value]
    elif isinstance(value, (list, tuple)) and (
        any(isinstance(item, (Mapping, list, tuple)) for item in value)
        or any(f"{pointer}/{at}" in owners for at in range(len(value)))
    ):
        items = [(str(at), item) for at, item in enumerate(value)]
    if not items:
        return [(pointer, value)]
    return [leaf for key, item in items for leaf in _leaves(item, f"{pointer}/{key}", owners)]


_LOOK: dict[str, Callable[[Engine, str], dict[str, Any]]] = {
    "container": lambda engine, name: dict(engine.inspect(name)),
    "image": lambda engine, name: image_document(engine.image(name)),
    "network": lambda engine, name: network_document(engine.network(name)),
    "volume": volume_document,
}


def _find(session: Session, name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The document of the first kind that has one of that name. NotFound names them all."""
    for kind in kinds:
        try:
            return _LOOK[kind](session.engine, name)
        except NotFound:
            if len(kinds) == 1:
                raise
    raise NotFound(f'{", ".join(kinds[:-1])} or {kinds[-1]} "{name}"', "there is none of that name or id")


def _inspect(session: Session, names: tuple[str, ...], form: str, kinds: tuple[str, ...]) -> int:
    found, code = [], 0
    for name in names:
        try:
            found.append(_find(session, name, kinds))
        except Error as error:
            code = report(session, error)
    show_one(session, found, form)
    return code


@click.command(
    "inspect",
    cls=Command,
    help="Print all that is known of containers, images, networks and volumes, under docker's names, as JSON.",
    examples="wherry inspect -f '{{.State.Status}} {{.State.Pid}}' web\nwherry inspect --explain web",
)
@_FORM
@option("--explain", is_flag=True, help="Print each field of the OCI spec with who set it")
@option("--type", "kind", type=click.Choice(tuple(_LOOK)), metavar="KIND", help=", ".join(_LOOK))
@_NAMES
def command(session: Session, *, form: str, explain: bool, kind: str | None, names: tuple[str, ...]) -> int:
    """Prints an array, or a table with --explain."""
    if explain:
        return _explain(session, names)
    return _inspect(session, names, form, (kind,) if kind else tuple(_LOOK))


def _explain(session: Session, names: tuple[str, ...]) -> int:
    for name in names:
        session.out(explain(session.engine.inspect(name)))
    return 0


@click.command("inspect", cls=Command, help="Print all that is known of containers.")
@_FORM
@option("--explain", "who", is_flag=True, help="Print each field of the OCI spec with who set it")
@_NAMES
def container(session: Session, *, form: str, who: bool, names: tuple[str, ...]) -> int:
    """Prints an array, or a table with --explain."""
    return _explain(session, names) if who else _inspect(session, names, form, ("container",))


@click.command("inspect", cls=Command, help="Print all that is known of images.")
@_FORM
@_NAMES
def image(session: Session, *, form: str, names: tuple[str, ...]) -> int:
    """Prints an array."""
    return _inspect(session, names, form, ("image",))
