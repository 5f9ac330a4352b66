"""``wherry network``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from wherry.api import EndpointConfig, Error, InUse, Invalid, NetworkConfig, NetworkInfo, NotFound
from wherry_plugins.frontend.cli import human, values
from wherry_plugins.frontend.cli.command import Command, CommandGroup, argument, option
from wherry_plugins.frontend.cli.commands.prune import limit, matches
from wherry_plugins.frontend.cli.confirming import agreed, force_option
from wherry_plugins.frontend.cli.listing import ListingRow, filter_option, format_option, json_option, show, show_one
from wherry_plugins.frontend.cli.main import report
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.networking import network_document
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each

HERE = "wherry_plugins.frontend.cli.commands.network"
KEYS = ("driver", "id", "label", "name", "scope", "type", "dangling")
PRUNE_KEYS = (*KEYS, "label!", "until")


@click.command(
    "create",
    cls=Command,
    help="Make a network.",
    examples="wherry network create web\nwherry network create --subnet 10.9.0.0/24 --ipv6 -o mtu=1400 lab",
)
@option("-d", "--driver", default="", metavar="ID", help="Network driver; the default one's when not given")
@option("--subnet", multiple=True, metavar="CIDR", help="Subnet; one of the default pools when not given")
@option("--gateway", multiple=True, metavar="ADDRESS", help="Address of the bridge in a subnet; the first one of it")
@option("--ip-range", multiple=True, metavar="CIDR", help="Part of a subnet that containers get addresses of")
@option("--ipv6", is_flag=True, help="IPv6 too; of a subnet of its own when none is given")
@option("--internal", is_flag=True, help="No way out, and none in")
@option("--label", multiple=True, type=values.pair, metavar="KEY=VALUE", help="Set a label")
@option(
    "-o",
    "--opt",
    multiple=True,
    type=values.setting,
    metavar="KEY=VALUE",
    help="Option of the driver, such as mtu=1400",
)
@option("--attachable", is_flag=True, help="Accepted for docker's sake: containers can always be attached")
@argument("name", metavar="NAME")
def create(
    session: Session,
    *,
    driver: str,
    subnet: tuple[str, ...],
    gateway: tuple[str, ...],
    ip_range: tuple[str, ...],
    ipv6: bool,
    internal: bool,
    label: tuple[tuple[str, str], ...],
    opt: tuple[tuple[str, str], ...],
    attachable: bool,  # noqa: ARG001 - see its help
    name: str,
) -> int:
    """Prints the id."""
    config = NetworkConfig(
        name,
        subnets=subnet,
        gateways=gateway,
        ip_ranges=ip_range,
        internal=internal,
        ipv6=ipv6,
        labels=dict(label),
        options=dict(opt),
    )
    session.line(session.engine.create_network(config, driver=driver).id)
    return 0


_FIELDS: dict[str, Callable[[NetworkInfo], Any]] = {
    "ID": lambda info: info.id[:12],
    "Name": lambda info: info.config.name,
    "Driver": lambda info: info.driver,
    "Scope": lambda _info: "local",
    "IPv6": lambda info: info.config.ipv6,
    "Internal": lambda info: info.config.internal,
    "CreatedAt": lambda info: human.local(info.config.created),
    "Labels": lambda info: ",".join(f"{key}={value}" for key, value in info.config.labels.items()),
    "Subnets": lambda info: ",".join(info.config.subnets),
}
_WHOLE: dict[str, Callable[[NetworkInfo], Any]] = {**_FIELDS, "ID": lambda info: info.id}
COLUMNS = (("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope"))


def chosen(session: Session, info: NetworkInfo, filters: dict[str, list[str]]) -> bool:
    """Whether all filters hold: the values of one are alternatives, labels add up (docker network ls, "Filtering")."""
    if not matches(info.config, filters, limit(filters)):
        return False
    for key, wanted in filters.items():
        if key in ("label", "label!", "until"):
            continue
        if key == "name":
            holds = any(text in info.config.name for text in wanted)
        elif key == "id":
            holds = any(info.id.startswith(text) for text in wanted)
        elif key == "driver":
            holds = info.driver in wanted
        elif key == "scope":
            holds = "local" in wanted
        elif key == "type":
            holds = ("builtin" if info.builtin else "custom") in wanted
        else:
            unused = not info.builtin and not session.engine.network(info.config.name).attachments
            holds = unused is (wanted[0].lower() in {"true", "1"})
        if not holds:
            return False
    return True


def _filters(items: tuple[str, ...], keys: tuple[str, ...] = KEYS) -> dict[str, list[str]]:
    found = values.filters(items)
    for key in found:
        if key not in keys:
            raise Invalid(f'filter "{key}"', "networks have none of that name", hint(key, keys))
    limit(found)
    return found


@click.command("ls", cls=Command, help="List networks.", examples="wherry network ls --filter driver=bridge -q")
@option("-q", "--quiet", is_flag=True, help="Only ids")
@option("--no-trunc", is_flag=True, help="Whole ids")
@filter_option("driver, id, label, name, type, dangling", "-f")
@format_option()
@json_option()
def ls(session: Session, *, quiet: bool, no_trunc: bool, filters: tuple[str, ...], form: str, as_json: bool) -> int:
    """Prints the list by name."""
    wanted = _filters(filters)
    found = [info for info in session.engine.networks() if chosen(session, info, wanted)]
    if as_json:
        session.line(json.dumps([network_document(info) for info in found], indent=2, ensure_ascii=False))
        return 0
    rows = [ListingRow(_WHOLE if no_trunc else _FIELDS, info) for info in found]
    show(session, rows, COLUMNS, form=form, quiet="ID" if quiet else "")
    return 0


@click.command("inspect", cls=Command, help="Print all that is known of networks, under docker's names, as JSON.")
@option("-f", "--format", "form", metavar="TEMPLATE", default="", help="Print each by a Go template, or as JSON")
@argument("names", nargs=-1, required=True, metavar="NETWORK...")
def inspect(session: Session, *, form: str, names: tuple[str, ...]) -> int:
    """Prints an array."""
    found, code = [], 0
    for name in names:
        try:
            found.append(network_document(session.engine.network(name)))
        except Error as error:
            code = report(session, error)
    show_one(session, found, form)
    return code


@click.command("rm", cls=Command, help="Remove networks.")
@option("-f", "--force", is_flag=True, help="Say nothing of those that do not exist")
@argument("names", nargs=-1, required=True, metavar="NETWORK...")
def rm(session: Session, *, force: bool, names: tuple[str, ...]) -> int:
    """Prints each name."""

    def remove(name: str) -> str | None:
        try:
            session.engine.remove_network(name)
        except NotFound:
            if not force:
                raise
            return None
        return name

    return each(session, names, remove)


def remove_unused(session: Session, wanted: dict[str, list[str]]) -> list[str]:
    """The names of networks that went: all that fit the filters and that no container is attached to."""
    gone = []
    for info in session.engine.networks():
        if info.builtin or not chosen(session, info, wanted):
            continue
        try:
            session.engine.remove_network(info.config.name)
        except (InUse, NotFound, Invalid):  # used, gone, or kept by somebody else's file
            continue
        gone.append(info.config.name)
    return gone


@click.command("prune", cls=Command, help="Remove all networks that no container is attached to.")
@force_option()
@filter_option("until, label, label!, name, driver, id")
def prune(session: Session, *, force: bool, filters: tuple[str, ...]) -> int:
    """Asks on a terminal; elsewhere --force is needed. Networks that a stopped container names go too, as docker's do."""
    wanted = _filters(filters, PRUNE_KEYS)
    if not agreed(session, "network prune", "all networks that no container is attached to", force=force):
        return 0
    if gone := remove_unused(session, wanted):
        session.out("Deleted Networks:\n" + "".join(f"{name}\n" for name in gone))
    return 0


@click.command("connect", cls=Command, help="Put a container in one more network.")
@option("--alias", multiple=True, metavar="NAME", help="One more name in the network")
@option("--ip", multiple=True, metavar="ADDRESS", help="Wished address")
@option("--ip6", multiple=True, metavar="ADDRESS", help="Wished IPv6 address")
@option("--mac-address", default="", metavar="MAC", help="Hardware address")
@argument("network", metavar="NETWORK")
@argument("container", metavar="CONTAINER")
def connect(
    session: Session,
    *,
    alias: tuple[str, ...],
    ip: tuple[str, ...],
    ip6: tuple[str, ...],
    mac_address: str,
    network: str,
    container: str,
) -> int:
    """Prints nothing."""
    session.engine.connect(container, EndpointConfig(network, alias, (*ip, *ip6), mac_address))
    return 0


@click.command("disconnect", cls=Command, help="Take a container out of a network.")
@option("-f", "--force", is_flag=True, help="Say nothing where it is not in it")
@argument("network", metavar="NETWORK")
@argument("container", metavar="CONTAINER")
def disconnect(session: Session, *, force: bool, network: str, container: str) -> int:
    """Prints nothing."""
    session.engine.disconnect(container, network, force=force)
    return 0


group = CommandGroup(
    "network",
    {
        "create": (HERE, "create", "Networks", "Make a network"),
        "ls": (HERE, "ls", "Networks", "List networks"),
        "list": (HERE, "ls", "Networks", "List networks"),
        "inspect": (HERE, "inspect", "Networks", "Print all that is known of networks"),
        "rm": (HERE, "rm", "Networks", "Remove networks"),
        "prune": (HERE, "prune", "Networks", "Remove those that no container is attached to"),
        "connect": (HERE, "connect", "Networks", "Put a container in one more network"),
        "disconnect": (HERE, "disconnect", "Networks", "Take a container out of a network"),
    },
    help="Manage networks.",
    epilog="",
)
