"""``wherry container prune`` and ``wherry system prune``."""

from __future__ import annotations

import click

from wherry.api import Error, Invalid
from wherry_plugins.frontend.cli import human, values
from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.commands.network import remove_unused
from wherry_plugins.frontend.cli.commands.prune import limit, matches, remove_images
from wherry_plugins.frontend.cli.confirming import agreed, force_option
from wherry_plugins.frontend.cli.listing import filter_option
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.session import Session

KEYS = ("until", "label", "label!")
_DONE = ("created", "stopped")


def _wanted(command: str, filters: tuple[str, ...]) -> dict[str, list[str]]:
    wanted = values.filters(filters)
    for key in wanted:
        if key not in KEYS:
            raise Invalid(f'filter "{key}"', f"{command} has none of that name", hint(key, KEYS))
    limit(wanted)
    return wanted


def remove_stopped(session: Session, wanted: dict[str, list[str]]) -> list[str]:
    """The ids of containers that went: those that do not run and fit the filters."""
    until = limit(wanted)
    gone = []
    for container in session.engine.containers(all=True):
        if container.status not in _DONE or not matches(container, wanted, until):
            continue
        try:
            session.engine.remove(container.id)
        except Error:
            continue  # it was started, or went, since it was listed
        gone.append(container.id)
    return gone


def _show(session: Session, title: str, names: list[str]) -> None:
    if names:
        session.out(f"Deleted {title}:\n" + "".join(f"{name}\n" for name in names) + "\n")


def _taken(session: Session) -> int:
    """Bytes that all images, containers and volumes have on disk."""
    usage = session.engine.disk_usage()
    return (
        usage.layers
        + sum(max(container.size, 0) for container in usage.containers)
        + sum(max(volume.size, 0) for volume in usage.volumes)
    )


@click.command(
    "prune",
    cls=Command,
    help="Remove all containers that do not run.",
    examples="wherry container prune -f\nwherry container prune -f --filter until=24h",
)
@force_option()
@filter_option("until, label, label!")
def containers(session: Session, *, force: bool, filters: tuple[str, ...]) -> int:
    """Asks on a terminal; elsewhere --force is needed. Prints what went."""
    wanted = _wanted("container prune", filters)
    if not agreed(session, "container prune", "all stopped containers", force=force):
        return 0
    before = _taken(session)
    _show(session, "Containers", remove_stopped(session, wanted))
    session.line(f"Total reclaimed space: {human.size(max(before - _taken(session), 0))}")
    return 0


@click.command(
    "prune",
    cls=Command,
    help="Remove containers that do not run, networks that no container is attached to, images without a name, and what nothing "
    "refers to. With --all also images that no container was made from, with --volumes also volumes without a name of their own.",
    examples="wherry system prune -f\nwherry system prune -af --volumes",
)
@option("-a", "--all", "everything", is_flag=True, help="All images that no container was made from")
@force_option()
@option("--volumes", is_flag=True, help="Volumes without a name of their own, too")
@filter_option("until, label, label!")
def system(session: Session, *, everything: bool, force: bool, volumes: bool, filters: tuple[str, ...]) -> int:
    """Asks on a terminal; elsewhere --force is needed. Prints what went. Filters are for containers, networks and images; volumes stay
    where there is one."""
    wanted = _wanted("system prune", filters)
    what = "all stopped containers, all unused networks, " + (
        "all unused images" if everything else "all images without a name"
    )
    what += ", and all unused volumes without a name" if volumes else ""
    if not agreed(session, "system prune", what, force=force):
        return 0
    before = _taken(session)
    _show(session, "Containers", remove_stopped(session, wanted))
    _show(session, "Networks", remove_unused(session, wanted))
    if volumes and not wanted:
        _show(session, "Volumes", list(session.engine.prune_volumes()))
    lines, orphans = remove_images(session, wanted, everything=everything)
    _show(session, "Images", lines)
    session.line(f"Total reclaimed space: {human.size(max(before - _taken(session), 0) + orphans)}")
    return 0
