"""``wherry images``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import click
from attrs import asdict, frozen

from wherry.api import ImageInfo, Invalid
from wherry_plugins.frontend.cli import human, values
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.documents import NONE, split_name
from wherry_plugins.frontend.cli.listing import ListingRow, filter_option, format_option, json_option, show
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.session import Session

#: What docker has for these fields, too: they are told by ``system df -v``.
ABSENT = "N/A"
KEYS = ("dangling", "label", "reference", "before", "since", "until")


@frozen
class ImageName:
    """One name of an image: a row."""

    image: ImageInfo
    repository: str
    tag: str
    digest: str


def rows(images: tuple[ImageInfo, ...]) -> Iterator[ImageName]:
    """One a name; an image without a name has one too."""
    for image in images:
        for name in image.names or ("",):
            repository, tag, _digest = split_name(name) if name else (NONE, NONE, "")
            yield ImageName(image, repository, tag, image.target.digest)


_FIELDS: dict[str, Callable[[ImageName], Any]] = {
    "ID": lambda row: human.short(row.image.id),
    "Repository": lambda row: row.repository,
    "Tag": lambda row: row.tag,
    "Digest": lambda row: row.digest,
    "CreatedSince": lambda row: human.ago(row.image.created),
    "CreatedAt": lambda row: human.local(row.image.created),
    "Size": lambda row: human.size(row.image.size),
    "Containers": lambda row: ABSENT,
    "SharedSize": lambda row: ABSENT,
    "UniqueSize": lambda row: ABSENT,
    "Platform": lambda row: row.image.platform,
    "Labels": lambda row: dict(row.image.labels),
}
_WHOLE: dict[str, Callable[[ImageName], Any]] = {**_FIELDS, "ID": lambda row: row.image.id}
COLUMNS = (
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
)
WITH_DIGEST = (*COLUMNS[:2], ("DIGEST", "Digest"), *COLUMNS[2:])


@lru_cache(64)
def _like(pattern: str) -> re.Pattern[str]:
    """A shell's pattern in which "*" and "?" match no "/", as in Go's path.Match, which docker uses."""
    parts = re.split(r"(\*|\?|\[[^\]]+\])", pattern)
    words = {"*": "[^/]*", "?": "[^/]"}
    found = "".join(
        words.get(part) or (part if part.startswith("[") and part.endswith("]") else re.escape(part)) for part in parts
    )
    try:
        return re.compile(found)
    except re.error:
        raise Invalid(f'pattern "{pattern}"', "is none of a shell's") from None


def chosen(row: ImageName, filters: dict[str, list[str]], bounds: tuple[int, int]) -> bool:
    """Whether all filters hold for a row; bounds are (since, before) in ns."""
    labels = row.image.labels
    for text in filters.get("label", ()):
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    if "dangling" in filters and (row.repository == NONE) is not values.truth("dangling", filters["dangling"][0]):
        return False
    patterns = filters.get("reference", ())
    names = (row.repository, f"{row.repository}:{row.tag}")
    if patterns and not any(_like(pattern).fullmatch(name) for name in names for pattern in patterns):
        return False
    return (not bounds[0] or row.image.created > bounds[0]) and (not bounds[1] or row.image.created < bounds[1])


@click.command(
    "images",
    cls=Command,
    help="List images.",
    examples="wherry images\nwherry images 'deb*:stable'\nwherry images --filter dangling=true -q",
)
@option("-a", "--all", "everything", is_flag=True, help="Accepted for docker's sake: there are no hidden ones")
@option("-q", "--quiet", is_flag=True, help="Only ids")
@option("--no-trunc", is_flag=True, help="Whole ids")
@option("--digests", is_flag=True, help="Show digests")
@filter_option("dangling, label, reference, before, since, until", "-f")
@format_option()
@json_option()
@argument("repository", required=False, metavar="[PATTERN[:TAG]]")
def command(
    session: Session,
    *,
    everything: bool,  # noqa: ARG001 - see its help
    quiet: bool,
    no_trunc: bool,
    digests: bool,
    filters: tuple[str, ...],
    form: str,
    as_json: bool,
    repository: str,
) -> int:
    """Prints the list, the newest first."""
    wanted = values.filters(filters)
    for key in wanted:
        if key not in KEYS:
            raise Invalid(f'filter "{key}"', "images have none of that name", hint(key, KEYS))
    bounds = tuple(session.engine.image(wanted[key][0]).created if key in wanted else 0 for key in ("since", "before"))
    if "until" in wanted:
        try:
            until = values.moment(wanted["until"][0])
        except ValueError as error:
            raise Invalid('filter "until"', str(error)) from None
        bounds = (bounds[0], min(bounds[1] or until, until))
    images = sorted(session.engine.images(), key=lambda image: -image.created)
    found = [row for row in rows(tuple(images)) if chosen(row, wanted, (bounds[0], bounds[1]))]
    if repository:
        repo, tag, _digest = split_name(repository)
        found = [row for row in found if _like(repo).fullmatch(row.repository)]
        found = [row for row in found if tag == NONE or _like(tag).fullmatch(row.tag)]
    if as_json:
        unique = {(row.image.id, row.digest): row.image for row in found}
        session.line(
            json.dumps([asdict(image) for image in unique.values()], indent=2, ensure_ascii=False, default=str)
        )
        return 0
    lines = [ListingRow(_WHOLE if no_trunc else _FIELDS, row) for row in found]
    if quiet:
        session.out("".join([f"{text}\n" for text in dict.fromkeys(row["ID"] for row in lines)]))
        return 0
    show(session, lines, WITH_DIGEST if digests else COLUMNS, form=form)
    return 0
