"""``wherry image prune``."""

from __future__ import annotations

import click

from wherry.api import Container, Error, ImageInfo, Invalid, NetworkConfig
from wherry_plugins.frontend.cli import human, values
from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.confirming import agreed, force_option
from wherry_plugins.frontend.cli.listing import filter_option
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.session import Session

KEYS = ("dangling", "until", "label", "label!")


def matches(thing: ImageInfo | Container | NetworkConfig, filters: dict[str, list[str]], until: int) -> bool:
    """Whether the filters for labels hold, and it was made before until (ns since the epoch, 0: no matter)."""

    def has(text: str) -> bool:
        key, equals, value = text.partition("=")
        return key in thing.labels and (not equals or thing.labels[key] == value)

    if until and thing.created >= until:
        return False
    return all(map(has, filters.get("label", ()))) and not any(map(has, filters.get("label!", ())))


def limit(filters: dict[str, list[str]]) -> int:
    """ns since the epoch, 0 where none is given."""
    try:
        return min(map(values.moment, filters.get("until", ())), default=0)
    except ValueError as error:
        raise Invalid('filter "until"', str(error)) from None


def doomed(session: Session, filters: dict[str, list[str]], *, everything: bool) -> list[ImageInfo]:
    """Images without a name, or all that no container was made from."""
    used = {container.image_digest for container in session.engine.containers(all=True)}
    until = limit(filters)
    return [
        image
        for image in session.engine.images()
        if (everything or not image.names)
        and image.target.digest not in used
        and image.id not in used
        and matches(image, filters, until)
    ]


def remove_images(session: Session, filters: dict[str, list[str]], *, everything: bool) -> tuple[list[str], int]:
    """(what went, in docker's words, bytes of it that no image had)."""
    lines: list[str] = []
    for image in doomed(session, filters, everything=everything):
        try:
            lines += session.engine.remove_image(image.id, force=True)
        except Error:
            continue  # it got a container, or went, since it was listed
    report = session.engine.gc()
    lines += [f"Deleted: {digest}" for digest in report.blobs]
    return [f"{line[0].lower()}{line[1:]}" for line in lines], report.bytes


@click.command(
    "prune",
    cls=Command,
    help="Remove images without a name, or all that no container uses.",
    examples="wherry image prune -f\nwherry image prune -a --filter until=24h",
)
@option("-a", "--all", "everything", is_flag=True, help="Those with names, too")
@force_option()
@filter_option("until, label, label!, dangling")
def command(session: Session, *, everything: bool, force: bool, filters: tuple[str, ...]) -> int:
    """Asks on a terminal; elsewhere --force is needed. Prints what went."""
    wanted = values.filters(filters)
    for key in wanted:
        if key not in KEYS:
            raise Invalid(f'filter "{key}"', "image prune has none of that name", hint(key, KEYS))
    if "dangling" in wanted:
        everything = everything or not values.truth("dangling", wanted["dangling"][0])
    which = "without at least one container associated to them" if everything else "that have no name"
    if not agreed(session, "image prune", f"all images {which}", force=force):
        return 0
    before = session.engine.disk_usage(images_only=True).layers
    lines, orphans = remove_images(session, wanted, everything=everything)
    if lines:
        session.out("Deleted Images:\n" + "".join(f"{line}\n" for line in lines) + "\n")
    freed = max(before - session.engine.disk_usage(images_only=True).layers, 0) + orphans
    session.line(f"Total reclaimed space: {human.size(freed)}")
    return 0
