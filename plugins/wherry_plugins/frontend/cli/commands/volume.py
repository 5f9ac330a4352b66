"""``wherry volume``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from attrs import asdict

from wherry.api import Invalid, Volume
from wherry_plugins.frontend.cli import human, values
from wherry_plugins.frontend.cli.command import Command, CommandGroup, argument, option
from wherry_plugins.frontend.cli.confirming import agreed, force_option
from wherry_plugins.frontend.cli.documents import volume_document
from wherry_plugins.frontend.cli.listing import ListingRow, filter_option, format_option, json_option, show, show_one
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each

HERE = "wherry_plugins.frontend.cli.commands"
KEYS = ("dangling", "driver", "label", "name")
_FIELDS: dict[str, Callable[[Volume], Any]] = {
    "Name": lambda volume: volume.name,
    "Driver": lambda volume: volume.driver,
    "Mountpoint": lambda volume: volume.mountpoint,
    "Scope": lambda volume: "local",
    "Labels": lambda volume: dict(volume.labels),
    "CreatedAt": lambda volume: human.local(volume.created),
}
COLUMNS = (("DRIVER", "Driver"), ("VOLUME NAME", "Name"))


@click.command(
    "create",
    cls=Command,
    help="Make a volume, with a name made up when none is given.",
    examples="wherry volume create data",
)
@option("-d", "--driver", default="", metavar="ID", help="Volume driver; the config's when not given")
@option("-o", "--opt", multiple=True, type=values.setting, metavar="KEY=VALUE", help="An option of the driver")
@option("--label", multiple=True, type=values.pair, metavar="KEY[=VALUE]", help="Set a label")
@argument("name", required=False, metavar="[NAME]")
def create(
    session: Session, *, driver: str, opt: tuple[tuple[str, str], ...], label: tuple[tuple[str, str], ...], name: str
) -> int:
    """Prints the name."""
    made = session.engine.create_volume(name or "", driver=driver, options=dict(opt), labels=dict(label))
    session.line(made.name)
    return 0


def _chosen(session: Session, volume: Volume, filters: dict[str, list[str]]) -> bool:
    for text in filters.get("label", ()):
        key, equals, value = text.partition("=")
        if key not in volume.labels or (equals and volume.labels[key] != value):
            return False
    if "name" in filters and not any(part in volume.name for part in filters["name"]):
        return False
    if "driver" in filters and volume.driver not in filters["driver"]:
        return False
    if "dangling" in filters:
        return (not session.engine.volume_users(volume.name)) is (filters["dangling"][0] in {"true", "1"})
    return True


@click.command("ls", cls=Command, help="List volumes.", examples="wherry volume ls\nwherry volume ls -qf dangling=true")
@option("-q", "--quiet", is_flag=True, help="Only names")
@filter_option("dangling, driver, label, name", "-f")
@format_option()
@json_option()
def ls(session: Session, *, quiet: bool, filters: tuple[str, ...], form: str, as_json: bool) -> int:
    """Prints the list, by name."""
    wanted = values.filters(filters)
    for key in wanted:
        if key not in KEYS:
            raise Invalid(f'filter "{key}"', "volumes have none of that name", hint(key, KEYS))
    found = [volume for volume in session.engine.volumes() if _chosen(session, volume, wanted)]
    if as_json:
        session.line(json.dumps([asdict(volume) for volume in found], indent=2, ensure_ascii=False))
    elif quiet:
        session.out("".join([f"{volume.name}\n" for volume in found]))
    else:
        show(session, [ListingRow(_FIELDS, volume) for volume in found], COLUMNS, form=form)
    return 0


@click.command("rm", cls=Command, help="Remove volumes that no container has.")
@option("-f", "--force", is_flag=True, help="Say nothing of those that do not exist")
@argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
def rm(session: Session, *, force: bool, volumes: tuple[str, ...]) -> int:
    """Prints each name."""

    def remove(name: str) -> str:
        session.engine.remove_volume(name, force=force)
        return name

    return each(session, volumes, remove)


@click.command("inspect", cls=Command, help="Print all that is known of volumes.")
@option("-f", "--format", "form", metavar="TEMPLATE", default="", help="Print each by a Go template, or as JSON")
@argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
def inspect(session: Session, *, form: str, volumes: tuple[str, ...]) -> int:
    """Prints them as JSON, or each by the template."""
    found: list[dict[str, Any]] = []

    def look(name: str) -> None:
        found.append(volume_document(session.engine, name))

    code = each(session, volumes, look)
    show_one(session, found, form)
    return code


@click.command("prune", cls=Command, help="Remove volumes without a name of their own that no container has.")
@option("-a", "--all", "everything", is_flag=True, help="Those with a name, too")
@force_option()
def prune(session: Session, *, everything: bool, force: bool) -> int:
    """Asks on a terminal; elsewhere --force is needed. Prints the names."""
    which = "every volume" if everything else "every volume without a name"
    if not agreed(session, "volume prune", f"{which} that no container has", force=force):
        return 0
    names = session.engine.prune_volumes(all=everything)
    if names:
        session.out("Deleted Volumes:\n" + "".join([f"{name}\n" for name in names]))
    return 0


group = CommandGroup(
    "volume",
    {
        "create": (f"{HERE}.volume", "create", "Volumes", "Make a volume"),
        "ls": (f"{HERE}.volume", "ls", "Volumes", "List volumes"),
        "list": (f"{HERE}.volume", "ls", "Volumes", "List volumes"),
        "inspect": (f"{HERE}.volume", "inspect", "Volumes", "Print all that is known of volumes"),
        "rm": (f"{HERE}.volume", "rm", "Volumes", "Remove volumes that no container has"),
        "prune": (f"{HERE}.volume", "prune", "Volumes", "Remove volumes without a name that no container has"),
    },
    help="Manage volumes.",
    epilog="",
)
