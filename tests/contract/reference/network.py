"""Networks as rows: addresses are counted out, nothing is configured in any namespace."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from attrs import asdict, evolve

from contract.reference.state import NoConfig, State
from wherry.api import (
    AlreadyExists,
    Attachment,
    AttachRequest,
    Capabilities,
    Context,
    FailedPrecondition,
    InUse,
    Invalid,
    Network,
    NetworkConfig,
    NotFound,
    Registration,
    Reservation,
    Sandbox,
)


class RowNetwork:
    def __init__(self, config: NoConfig, context: Context) -> None:
        self.context = context
        self.state = State(context.root)

    @property
    def networks(self) -> dict[str, Any]:
        return self.state.table("networks")

    @property
    def members(self) -> dict[str, Any]:
        """ "<network>/<sandbox>" -> its row."""
        return self.state.table("members")

    def config(self, name: str) -> NetworkConfig:
        try:
            row = self.networks[name]
        except KeyError:
            raise NotFound(f"network {name!r}", "no such network") from None
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return NetworkConfig(**lists)

    def create(self, config: NetworkConfig) -> NetworkConfig:
        with self.state.change():
            if config.name in self.networks:
                raise AlreadyExists(f"network {config.name!r}", "the name is taken")
            filled = evolve(config, subnets=config.subnets or ("10.9.0.0/16",))
            self.networks[config.name] = asdict(filled)
            return self.config(config.name)

    def of(self, network: str) -> list[Attachment]:
        rows = [row for key, row in self.members.items() if key.partition("/")[0] == network and row["attached"]]
        return [self.attachment(row) for row in rows]

    def remove(self, name: str) -> None:
        with self.state.change():
            if self.of(name):
                raise InUse(f"network {name!r}", "a sandbox is attached")
            self.networks.pop(name, None)

    def list(self) -> Iterator[NetworkConfig]:
        return iter([self.config(name) for name in self.networks])

    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]:
        return self.config(name), tuple(self.of(name))

    def attachment(self, row: dict[str, Any]) -> Attachment:
        data = {key: tuple(value) if isinstance(value, list) else value for key, value in row["request"].items()}
        addresses = (row["address"],)
        mac = row["request"]["mac"] or "02:00:00:00:00:01"
        return Attachment(Reservation(AttachRequest(**data), "", addresses), mac, addresses, ("10.9.0.1",))

    def address(self) -> str:
        self.state.tables["count"] = int(self.state.tables.get("count", 1)) + 1
        return f"10.9.0.{self.state.tables['count']}/16"

    def wished(self, request: AttachRequest) -> str:
        """The wished address with its prefix, "" for no wish."""
        if not request.addresses:
            return ""
        (subnet,) = self.config(request.network).subnets
        (wish,) = request.addresses
        if ip_address(wish) not in ip_network(subnet):
            raise Invalid(f"address {wish!r}", f"is not in {subnet}")
        address = f"{wish}/{subnet.partition('/')[2]}"
        if any(row["address"] == address for row in self.members.values() if row["network"] == request.network):
            raise InUse(f"address {wish!r}", "is taken")
        return address

    def reserve(self, request: AttachRequest) -> Reservation:
        with self.state.change():
            self.config(request.network)
            if request.ports:
                raise Invalid(f"ports of {request.sandbox_id!r}", "this driver publishes none")
            row = {"sandbox": request.sandbox_id, "network": request.network, "request": asdict(request)}
            row |= {"address": self.wished(request) or self.address(), "attached": False}
            self.members[f"{request.network}/{request.sandbox_id}"] = row
            return Reservation(request, "", (row["address"],))

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        with self.state.change():
            if sandbox.netns == "host":
                raise FailedPrecondition(f"sandbox {sandbox.id!r}", "shares the host's network")
            row = self.members[f"{reservation.request.network}/{sandbox.id}"]
            row["attached"] = True
            return self.attachment(row)

    def detach(self, sandbox_id: str, network: str) -> None:
        with self.state.change():
            self.members.pop(f"{network}/{sandbox_id}", None)

    def check(self, sandbox_id: str, network: str) -> None:
        row = self.members.get(f"{network}/{sandbox_id}")
        if row is None or not row["attached"]:
            raise FailedPrecondition(f"sandbox {sandbox_id!r}", f"not attached to {network!r}")

    def gc(self, live: Collection[str]) -> int:
        with self.state.change():
            dead = [key for key, row in self.members.items() if row["sandbox"] not in live]
            for key in dead:
                del self.members[key]
            return len(dead)


def registration(driver: type[RowNetwork] = RowNetwork) -> Registration[NoConfig, Network]:
    """What a driver class has in "flags" is what it provides."""
    provided = Capabilities(frozenset(getattr(driver, "flags", ())))
    return Registration(id="reference", config=NoConfig, init=driver, capabilities=lambda _config, _context: provided)
