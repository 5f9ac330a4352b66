"""``wherry events``."""

from __future__ import annotations

from contextlib import closing
from typing import Any, cast

import click
from attrs import asdict

from wherry.api import Event
from wherry_plugins.frontend.cli import values
from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.functions import json as one_line
from wherry_plugins.frontend.cli.human import iso
from wherry_plugins.frontend.cli.listing import filter_option, format_option
from wherry_plugins.frontend.cli.session import ClientGone, Session
from wherry_plugins.frontend.cli.template import compile_template, unescape


def text(event: Event) -> str:
    """ "2024-05-01T10:00:00.5Z task.exited 1a2b3c4d5e6f (code=0)"."""
    attributes = ", ".join(f"{key}={value}" for key, value in event.attributes.items())
    return f"{iso(event.time)} {event.topic} {event.id}" + (f" ({attributes})" if attributes else "")


def _row(event: Event) -> dict[str, Any]:
    return {
        "Topic": event.topic,
        "ID": event.id,
        "Time": iso(event.time),
        "TimeNano": event.time,
        "Sequence": event.sequence,
        "Attributes": dict(event.attributes),
    }


@click.command(
    "events",
    cls=Command,
    help="Print what happens, from now on; with --after, what happened since that sequence number too.",
    examples="wherry events --filter topic=task.exited\nwherry events --after 0 --no-follow --json",
)
@option("--after", type=int, default=-1, metavar="N", help="Replay those with a higher sequence number")
@option("--no-follow", is_flag=True, help="Stop at the last one there is")
@option("--since", type=values.moment, default=0, metavar="TIME", help="Only after a time, replaying")
@option("--until", type=values.moment, default=0, metavar="TIME", help="Stop at a time")
@filter_option("topic, event, type, container, image, network, id, or an attribute", "-f")
@format_option("Print each by a Go template, or as JSON")
@option("--json", "as_json", is_flag=True, help="Print one JSON object a line")
def command(
    session: Session,
    *,
    after: int,
    no_follow: bool,
    since: int,
    until: int,
    filters: tuple[str, ...],
    form: str,
    as_json: bool,
) -> int:
    """Prints until the client leaves."""
    import time

    wanted = values.filters(filters)
    render = None if form in {"", "json"} else compile_template(unescape(form))
    events = session.engine.events(0 if since and after < 0 else after, follow=not no_follow)
    with closing(cast(Any, events)):
        for event in events:
            if session.gone:
                raise ClientGone
            if until and (event.time or time.time_ns()) > until:
                break
            if not event.topic or event.time < since or not _chosen(event, wanted):
                continue
            if as_json or form == "json":
                session.line(one_line(asdict(event)))
            else:
                session.line(render(_row(event)) if render else text(event))
    return 0


def _chosen(event: Event, wanted: dict[str, list[str]]) -> bool:
    return all(any(_matches(event, key, value) for value in alternatives) for key, alternatives in wanted.items())


#: What docker calls an event, in our words (docker system events, "Object types").
_DOCKER = {
    "create": {"container.created", "network.created"},
    "start": {"task.started"},
    "die": {"task.exited"},
    "destroy": {"container.removed", "network.removed"},
    "kill": {"task.signalled"},
    "pause": {"task.paused"},
    "unpause": {"task.resumed"},
    "exec_start": {"exec.started"},
    "exec_die": {"exec.exited"},
    "rename": {"container.renamed"},
    "update": {"container.updated"},
    "connect": {"network.attached"},
    "disconnect": {"network.detached"},
}
_CONTAINERS = frozenset({"container", "task", "exec"})


def _matches(event: Event, key: str, value: str) -> bool:
    family, _, what = event.topic.partition(".")
    if key == "topic":
        return value in {event.topic, family}
    if key == "event":
        return value in {event.topic, what} or event.topic in _DOCKER.get(value, ())
    if key == "type":
        return family in (_CONTAINERS if value == "container" else {value})
    if key == "container":
        return family in _CONTAINERS and (event.id.startswith(value) or event.attributes.get("name") == value)
    if key == "id":
        return event.id.startswith(value) or event.attributes.get("name") == value
    if key == "network" and family == "network":
        return value in (event.attributes.get("network"), event.attributes.get("name")) or event.id.startswith(value)
    return event.attributes.get(key) == value
