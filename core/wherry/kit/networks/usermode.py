"""Networks by a program of the host for each sandbox, which moves packets between a tap interface in it and sockets of the user who
runs it: nobody needs more than that user has.

A driver gives the addresses and the program; this is the rest. Such a driver has one network, named like itself. Its sandboxes
can't reach each other but by published ports.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from uuid import uuid4

import attrs

from wherry.api import (
    Attachment,
    AttachRequest,
    Context,
    FailedPrecondition,
    InUse,
    NetworkConfig,
    NotFound,
    Reservation,
    Sandbox,
)
from wherry.kit.codec import restore
from wherry.kit.names import check_name
from wherry.kit.networks import interfaces, netlink, sandboxes
from wherry.kit.networks.netlink import Rtnl
from wherry.kit.networks.ports import PortClaims
from wherry.kit.networks.records import AttachmentFiles, Key, plain
from wherry.kit.networks.single import BuiltinNetwork
from wherry.kit.networks.tap import Tap, TapProgram
from wherry.kit.programs import Programs

_LOCKS = 64
_PERMANENT, _BY_ROUTER = 0x80, 9  # IFA_F_PERMANENT, RTPROT_RA
_TUN = "/dev/net/tun"
FIRST = "eth0"


def reason(program: str) -> str | None:
    """Why such a program, a name in $PATH or a path, can't serve here; None when it can."""
    if shutil.which(program) is None:
        return f'"{program}" is not installed'
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} is missing, or this user may not open it"
    return None


@attrs.frozen
class UserModeEndpoint:
    """What a program is started for, and how."""

    reservation: Reservation
    how: TapProgram


class UserModeNetwork(BuiltinNetwork):
    """A ``wherry.api.Network``; a subclass fills in what its own docstring asks for below."""

    def __init__(self, context: Context, *, patience: float) -> None:
        """patience: seconds that the program may take until the sandbox is connected."""
        self._context = context
        self._shim = context.shim
        self._patience = patience
        self._programs = Programs(context.shim, context.id)
        self._records = AttachmentFiles(context.run / "attached", durable=False)
        self._files = context.run / "programs"
        self._files.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._busy = tuple(threading.Lock() for _ in range(_LOCKS))
        self._ports = PortClaims()

    def close(self) -> None:
        """Lets go of claims; programs go on."""
        self._ports.close()

    # of the subclass

    def judge(self, request: AttachRequest) -> None:
        """Invalid for a wish that the program can't grant."""
        raise TypeError("a subclass says it")

    def addresses(self, request: AttachRequest, taken: Collection[str]) -> tuple[str, ...]:
        """CIDR, none of them in taken. InUse."""
        raise TypeError("a subclass says it")

    def run(self, place: UserModeEndpoint) -> tuple[Tap, tuple[str, ...]]:
        """Starts the program (``wherry.kit.networks.tap``) and answers its interface and the nameservers, once it moves packets and the
        ports are published.

        It sets up the interface itself where that is the sandbox's first one: programs know no default route but the first.
        """
        raise TypeError("a subclass says it")

    # networks

    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]:
        self.own(name)
        found = [data["attachment"] for _key, data in self._records.all() if data.get("attachment")]
        return self.described(), tuple(restore(Attachment, each) for each in found)

    # places

    def reserve(self, request: AttachRequest) -> Reservation:
        self.own(request.network)
        check_name(request.sandbox_id, "sandbox id")
        self.judge(request)
        key = (self.name, request.sandbox_id)
        with self._lock:
            if self._records.read(key) is not None:
                raise InUse(f'sandbox "{request.sandbox_id}"', f'has a place in network "{self.name}" already')
            taken = {text for _key, data in self._records.all() for text in data["reservation"]["addresses"]}
            addresses = self.addresses(request, taken)
            ports = self._ports.claim(key, request.ports)
            reservation = Reservation(request, addresses=addresses, ports=ports)
            try:
                self._records.write(key, {"reservation": plain(reservation)})
            except BaseException:
                self._ports.release(key)
                raise
        return reservation

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        key = (reservation.request.network, sandbox.id)
        self.own(key[0])
        check_name(sandbox.id, "sandbox id")
        sandboxes.refuse_hosts(sandbox)
        with self._turn(key):
            data = self._records.read(key)
            if data is None:
                raise NotFound(f'sandbox "{sandbox.id}"', f'has no place in network "{self.name}"', "reserve one first")
            if data.get("attachment"):
                return restore(Attachment, data["attachment"])
            made = self._attach(key, data)
            self._ports.release(key)  # they are the program's now
            return made

    def _attach(self, key: Key, data: dict[str, Any]) -> Attachment:
        if data.get("program"):  # of an attach before this one that was broken off
            self._end(data)
        reservation = restore(Reservation, data["reservation"])
        data["program"] = f"{self.name}-{uuid4().hex[:12]}"
        self._records.write(key, data)  # from here on gc finds it
        try:
            with sandboxes.namespace(self._shim, key[1]) as netns:
                self._ports.share(key)
                files = str(self._files / data["program"])
                place = UserModeEndpoint(
                    reservation, TapProgram(self._programs, data["program"], netns, files, self._patience)
                )
                tap, nameservers = self.run(place)
            if not tap.configure:
                self._furnish(key[1], tap)
            mac, addresses, gateways = self._look(key[1], reservation.request.interface)
            _granted(reservation.request, addresses)
        except BaseException:
            self._end(data)
            raise
        task = self._programs.find(data["program"])
        made = Attachment(
            attrs.evolve(reservation, addresses=addresses),
            mac=mac,
            addresses=addresses,
            gateways=gateways,
            nameservers=nameservers,
            host=interfaces.hosts_own(),
        )
        data |= {
            "pid": task.pid if task else 0,
            "start_time": task.start_time if task else 0,
            "attachment": plain(made),
        }
        self._records.write(key, data)
        return made

    def detach(self, sandbox_id: str, network: str) -> None:
        if network != self.name:
            return
        check_name(sandbox_id, "sandbox id")
        key = (network, sandbox_id)
        with self._turn(key):
            data = self._records.read(key)
            if data is not None:
                self._end(data)
                self._records.remove(key)
            self._ports.release(key)

    def check(self, sandbox_id: str, network: str) -> None:
        self.own(network)
        check_name(sandbox_id, "sandbox id")
        what = f'sandbox "{sandbox_id}"'
        data = self._records.read((network, sandbox_id))
        if data is None or not data.get("attachment"):
            raise NotFound(what, f'is not attached to network "{network}"')
        task = self._programs.find(data["program"])
        if task is None or task.status != "running":
            raise FailedPrecondition(what, f'its program "{self.name}" has ended')
        made = restore(Attachment, data["attachment"])
        try:
            with sandboxes.inside(self._shim, sandbox_id) as rtnl:
                differs = interfaces.lacking(rtnl, made.reservation.request.interface, made.addresses)
        except NotFound:
            differs = "is attached, but no shim holds its namespaces"
        if differs:
            raise FailedPrecondition(what, differs)

    def gc(self, live: Collection[str]) -> int:
        keep = frozenset(live)
        dropped = 0
        for key, _data in self._records.all():
            if key[1] not in keep:
                self.detach(key[1], key[0])
                dropped += 1
        files = list(
            self._files.iterdir()
        )  # before the records are read: those of an attach that is under way have one
        self._programs.sweep(self._known)
        known = self._known()
        for path in files:
            if path.name.rpartition(".")[0] not in known:
                path.unlink(missing_ok=True)
        return dropped

    def _known(self) -> set[str]:
        """The names of programs that some record has."""
        return {data.get("program", "") for _key, data in self._records.all()}

    # the program

    def _turn(self, key: Key) -> threading.Lock:
        return self._busy[hash(key) % _LOCKS]

    def let_go(self, place: UserModeEndpoint, protocol: str) -> None:
        """Gives up the claims of a protocol, for a program that can't bind beside them."""
        self._ports.release((self.name, place.reservation.request.sandbox_id), protocol)

    def _end(self, data: dict[str, Any]) -> None:
        name = data.get("program", "")
        if not name:
            return
        self._programs.end(name, data.get("pid", 0), data.get("start_time", 0))
        for path in self._files.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    # inside

    def add(self, place: UserModeEndpoint, tap: Tap) -> None:
        """Adds addresses and routes to an interface that the program has set up."""
        with sandboxes.inside(self._shim, place.reservation.request.sandbox_id) as rtnl:
            interfaces.furnish(rtnl, tap.interface, tap.addresses, tap.gateways, six=True)

    def _furnish(self, sandbox_id: str, tap: Tap) -> None:
        with sandboxes.inside(self._shim, sandbox_id) as rtnl:
            attributes = [("IFLA_ADDRESS", tap.mac), ("IFLA_MTU", tap.mtu)]
            change = netlink.link(index=rtnl.index(tap.interface), attributes=attributes)
            rtnl.ask((netlink.SETLINK, 0, change, f"link {tap.interface}"))
            six = any(":" in cidr for cidr in tap.addresses)
            interfaces.furnish(rtnl, tap.interface, tap.addresses, tap.gateways, six=six)

    def _look(self, sandbox_id: str, interface: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """(hardware address, addresses, gateways) as the program has made them; not what came of a router's advertisement."""
        with sandboxes.inside(self._shim, sandbox_id) as rtnl:
            index = rtnl.index(interface)
            links = [one for one in rtnl.dump(netlink.GETLINK, netlink.link()) if one["index"] == index]
            addresses = tuple(
                f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}"
                for one in rtnl.dump(netlink.GETADDR, netlink.address())
                if one["index"] == index
                and one["flags"] & _PERMANENT
                and not ip_address(one.get_attr("IFA_ADDRESS")).is_link_local
            )
            gateways = tuple(
                gateway
                for one in rtnl.dump(netlink.GETROUTE, netlink.route())
                if not one["dst_len"]
                and one["type"] == 1
                and one["proto"] != _BY_ROUTER
                and one.get_attr("RTA_OIF") == index
                and (gateway := one.get_attr("RTA_GATEWAY"))
            )
        return str(links[0].get_attr("IFLA_ADDRESS")), addresses, gateways


def _granted(request: AttachRequest, addresses: Collection[str]) -> None:
    given = {ip_address(text.partition("/")[0]) for text in addresses}
    for text in request.addresses:
        if ip_address(text) not in given:
            raise FailedPrecondition(
                f'address "{text}"', "could not be given: the host has no route out of that family", "see: ip route"
            )


def routes_six() -> bool:
    """Whether the host has an IPv6 default route: without one there is no IPv6 by such a program."""
    with Rtnl() as rtnl:
        return any(
            one["family"] == 10 and not one["dst_len"] and one["type"] == 1 and one.get_attr("RTA_OIF")
            for one in rtnl.dump(netlink.GETROUTE, netlink.route())
        )


__all__ = ["FIRST", "UserModeEndpoint", "UserModeNetwork", "reason", "routes_six"]
