"""Faulty network drivers, one for each clause."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Collection

from attrs import asdict, evolve

from contract.faults import planted
from contract.reference.network import RowNetwork
from contract.reference.state import NoConfig
from wherry.api import (
    Attachment,
    AttachRequest,
    Context,
    FailedPrecondition,
    InUse,
    Invalid,
    NetworkConfig,
    NotFound,
    Port,
    Reservation,
    Sandbox,
)
from wherry.testing import NetworkContract

NEWNET = 0x40000000


def breaks(*clauses: str):
    return planted(NetworkContract, *clauses)


@breaks("reservation_answers_the_request")
class ChangesTheRequest(RowNetwork):
    def reserve(self, request: AttachRequest) -> Reservation:
        return super().reserve(evolve(request, names=()))


@breaks("attach_answers_a_result")
class BareAddresses(RowNetwork):
    def attachment(self, row: dict) -> Attachment:  # type: ignore[type-arg]
        made = super().attachment(row)
        return evolve(made, addresses=tuple(address.partition("/")[0] for address in made.addresses))


@breaks("attach_is_idempotent")
class AttachesOnce(RowNetwork):
    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        row = self.members[f"{reservation.request.network}/{sandbox.id}"]
        if row["attached"]:
            row["address"] = self.address()
        return super().attach(reservation, sandbox)


@breaks("detach_is_idempotent")
class DetachesOnce(RowNetwork):
    def detach(self, sandbox_id: str, network: str) -> None:
        self.check(sandbox_id, network)
        super().detach(sandbox_id, network)


@breaks("a_sandbox_can_come_back")
class RemembersTheGone(RowNetwork):
    def __init__(self, config: NoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.gone: set[str] = set()

    def reserve(self, request: AttachRequest) -> Reservation:
        if request.sandbox_id in self.gone:
            raise Invalid(f"sandbox {request.sandbox_id!r}", "was here before")
        self.gone.add(request.sandbox_id)
        return super().reserve(request)


@breaks("unknown_network_is_not_found")
class MakesNetworksUp(RowNetwork):
    def reserve(self, request: AttachRequest) -> Reservation:
        if request.network not in self.networks:
            self.create(NetworkConfig(request.network))
        return super().reserve(request)


@breaks("check_accepts_an_attached_one")
class ChecksTooMuch(RowNetwork):
    def check(self, sandbox_id: str, network: str) -> None:
        raise Invalid("check", "never content")


@breaks("gc_takes_any_set")
class DropsTheLiving(RowNetwork):
    def gc(self, live: Collection[str]) -> int:
        return super().gc(())


@breaks("gc_takes_any_set")
class CountsForever(RowNetwork):
    def gc(self, live: Collection[str]) -> int:
        return super().gc(live) + (0 if live else 1)


@breaks("gc_drops_the_dead")
class DropsNothing(RowNetwork):
    def gc(self, live: Collection[str]) -> int:
        return 0


@breaks("callers_stay_in_their_namespace")
class LeavesTheNamespace(RowNetwork):
    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        assert ctypes.CDLL(None).unshare(NEWNET) == 0
        return super().attach(reservation, sandbox)


@breaks("host_links_stay")
class TakesAHostLink(RowNetwork):
    """The faults run in a namespace of their own that stands for the host's: never in the real one."""

    def create(self, config: NetworkConfig) -> NetworkConfig:
        if config.name == "test-net":
            subprocess.run(["ip", "link", "add", "wherry-host0", "type", "bridge"], check=True)
        return super().create(config)

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        subprocess.run(["ip", "link", "delete", "wherry-host0"], check=True)
        return super().attach(reservation, sandbox)


@breaks("ports_are_granted_or_refused")
class DropsPorts(RowNetwork):
    def reserve(self, request: AttachRequest) -> Reservation:
        return super().reserve(evolve(request, ports=()))


@breaks("wishes_are_granted_or_refused")
class GivesAnotherAddress(RowNetwork):
    def wished(self, request: AttachRequest) -> str:
        return ""


@breaks("wishes_are_granted_or_refused")
class GivesAnotherMac(RowNetwork):
    def attachment(self, row: dict) -> Attachment:  # type: ignore[type-arg]
        return evolve(super().attachment(row), mac="02:00:00:00:00:01")


@breaks("a_fixed_address_is_given_once")
class GivesAFixedAddressTwice(RowNetwork):
    def wished(self, request: AttachRequest) -> str:
        return f"{request.addresses[0]}/24" if request.addresses else ""


@breaks("a_fixed_address_is_given_once")
class KeepsAFixedAddress(RowNetwork):
    given: set[str]

    def wished(self, request: AttachRequest) -> str:
        self.given = getattr(self, "given", set())
        if found := super().wished(request):
            if found in self.given:
                raise InUse(found, "is taken")
            self.given.add(found)
        return found


@breaks("never_the_hosts_namespace")
class AttachesTheHost(RowNetwork):
    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        return super().attach(reservation, evolve(sandbox, netns=""))


@breaks("a_reservation_is_given_back")
class CollectsOnlyWhatWasAttached(RowNetwork):
    def reserve(self, request: AttachRequest) -> Reservation:
        if f"{request.network}/{request.sandbox_id}" in self.members:
            raise InUse(f"sandbox {request.sandbox_id!r}", "has a place already")
        return super().reserve(request)

    def gc(self, live: Collection[str]) -> int:
        kept = {key: row for key, row in self.members.items() if not row["attached"]}
        dropped = super().gc(live)
        self.members.update(kept)
        return dropped


@breaks("a_sandbox_in_two_networks")
class DetachesAll(RowNetwork):
    def detach(self, sandbox_id: str, network: str) -> None:
        for name in self.networks:
            super().detach(sandbox_id, name)


@breaks("ports_are_published_later")
class PublishesWhatIsTaken(RowNetwork):
    """Else as it should be."""

    flags = ("publish",)

    def publish(self, sandbox_id: str, network: str, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        row = self.members.get(f"{network}/{sandbox_id}")
        if row is None:
            raise NotFound(f"sandbox {sandbox_id!r}", "is not attached")
        if row.get("ports"):
            raise FailedPrecondition(f"sandbox {sandbox_id!r}", "publishes some already")
        granted = tuple(evolve(port, host_port=port.host_port or 40000) for port in ports)
        with self.state.change():
            row["ports"] = [asdict(port) for port in granted]
        return granted

    def attachment(self, row: dict) -> Attachment:  # type: ignore[type-arg]
        made = super().attachment(row)
        ports = tuple(Port(**port) for port in row.get("ports", ()))
        return evolve(made, reservation=evolve(made.reservation, ports=ports))


@breaks("threads_attach_side_by_side")
class GivesOneAddressTwice(RowNetwork):
    def address(self) -> str:
        return "10.9.0.2/16"


@breaks("some_network_is_there_or_can_be_made")
class HasNoneAndMakesNone(RowNetwork):
    def create(self, config: NetworkConfig) -> NetworkConfig:
        raise Invalid(f"network {config.name!r}", "this driver makes none")


@breaks("created_network_is_listed")
class DropsLabels(RowNetwork):
    def create(self, config: NetworkConfig) -> NetworkConfig:
        return super().create(evolve(config, labels={}))


@breaks("taken_name_is_refused")
class Overwrites(RowNetwork):
    def create(self, config: NetworkConfig) -> NetworkConfig:
        self.networks.pop(config.name, None)
        return super().create(config)


@breaks("remove_is_idempotent")
class RemovesOnce(RowNetwork):
    def remove(self, name: str) -> None:
        self.config(name)
        super().remove(name)


@breaks("network_in_use_is_kept")
class RemovesUsedNetworks(RowNetwork):
    def remove(self, name: str) -> None:
        self.networks.pop(name, None)


@breaks("inspect_lists_attachments")
class ListsReservations(RowNetwork):
    def of(self, network: str) -> list[Attachment]:
        return [self.attachment(row) for row in self.members.values()] * 2


@breaks("check_refuses_what_is_not_attached")
class ChecksNothing(RowNetwork):
    def check(self, sandbox_id: str, network: str) -> None:
        return


@breaks("networks_survive_reopening")
class RemembersNothing(RowNetwork):
    def __init__(self, config: NoConfig, context: Context) -> None:
        (context.root / "state.json").unlink(missing_ok=True)
        super().__init__(config, context)
