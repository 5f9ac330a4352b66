"""``wherry inspect``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from wherry.api import Error, FailedPrecondition, NotFound
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.documents import image_document
from wherry_plugins.frontend.cli.listing import show_one, table
from wherry_plugins.frontend.cli.main import report
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


def _find(session: Session, name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """A container's document, else an image's. NotFound names both kinds."""
    if "container" in kinds:
        try:
            return dict(session.engine.inspect(name))
        except NotFound:
            if kinds == ("container",):
                raise
    try:
        return image_document(session.engine.image(name))
    except NotFound as error:
        what = f'{" or ".join(kinds)} "{name}"'
        raise NotFound(what, error.cause if len(kinds) == 1 else "there is none of that name or id") from None


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
    help="Print all that is known of containers and images, under docker's names, as JSON.",
    examples="wherry inspect -f '{{.State.Status}} {{.State.Pid}}' web\nwherry inspect --explain web",
)
@_FORM
@option("--explain", is_flag=True, help="Print each field of the OCI spec with who set it")
@option("--type", "kind", type=click.Choice(("container", "image")), metavar="KIND", help="container or image")
@_NAMES
def command(session: Session, *, form: str, explain: bool, kind: str | None, names: tuple[str, ...]) -> int:
    """Prints an array, or a table with --explain."""
    if explain:
        return _explain(session, names)
    return _inspect(session, names, form, (kind,) if kind else ("container", "image"))


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
