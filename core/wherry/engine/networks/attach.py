"""A container's networks: reserved before its sandbox is made, attached before its process is let go.

What it wishes is in its request, in order: the first network, then those besides it. Each is an interface of its own, eth0, eth1 and
so on. Ports are published where that can be: by the first network whose driver can and that is not internal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial

import attrs

from wherry.api import (
    AlreadyExists,
    Attachment,
    AttachRequest,
    EndpointConfig,
    FailedPrecondition,
    Invalid,
    Network,
    Port,
    Reservation,
    RunRequest,
    Unavailable,
)
from wherry.engine.containers import bundles, hostfiles, userns
from wherry.engine.containers.create import ContainerDraft, Creator, must_not_be_removing
from wherry.engine.containers.records import ContainerRecord
from wherry.engine.containers.sandboxes import note_gone, take_down
from wherry.engine.networks.endpoints import SandboxEndpoint, endpoint_of
from wherry.engine.state.state import State
from wherry.engine.state.undo import Undo, attempt
from wherry.kit import threads


@attrs.define
class PendingEndpoint:
    """One network of a start, on its way to a Place."""

    driver_id: str
    driver: Network
    reservation: Reservation
    attachment: Attachment | None = None

    @property
    def network(self) -> str:
        return self.reservation.request.network


@attrs.define
class EndpointSet:
    """A start's networks: what was reserved, and how it went on. kind: "own", "host" or "shared".

    kept: the sandbox and its places are those of an earlier start, as another container has stayed in them.
    """

    kind: str = "own"
    hostname: str = ""
    netns: str = ""
    seats: list[PendingEndpoint] = attrs.field(factory=list)
    kept: tuple[SandboxEndpoint, ...] = ()
    made: Callable[[], object] = lambda: None
    """Waits until the sandbox is there."""

    @property
    def places(self) -> tuple[SandboxEndpoint, ...]:
        return self.kept or tuple(
            endpoint_of(seat.driver_id, seat.attachment) for seat in self.seats if seat.attachment is not None
        )

    @property
    def ports(self) -> tuple[Port, ...]:
        """Those that were granted."""
        return tuple(port for seat in self.seats for port in seat.reservation.ports)


def joins(request: RunRequest) -> tuple[EndpointConfig, ...]:
    """The networks that a container is to be in."""
    return (EndpointConfig(request.network, request.aliases, request.addresses, request.mac), *request.networks)


def with_joins(request: RunRequest, wished: Sequence[EndpointConfig]) -> RunRequest:
    """The request with other networks; without any it is network none."""
    first = wished[0] if wished else EndpointConfig("none")
    return attrs.evolve(
        request,
        network=first.network,
        aliases=first.aliases,
        addresses=first.addresses,
        mac=first.mac,
        networks=tuple(wished[1:]),
    )


class Attacher:
    def __init__(self, state: State, creation: Creator) -> None:
        self._state = state
        self._creation = creation

    # before the process

    def reserve(self, created: ContainerDraft, *, undo: Undo) -> EndpointSet:
        """Its places in the networks, and the sandbox, which the shim makes meanwhile. On any error the caller runs undo."""
        must_not_be_removing(created.record)
        state, record, request = self._state, created.record, created.request
        state.sweeping.wait()
        state.memberships.enter(record)
        if record.sandbox_id != record.id:
            undo.add("sandbox", lambda: self._leave(record, ()))
            members = state.registry.members(record.sandbox_id)
            # One that runs now leaves the sandbox after this container has entered it, so the sandbox stays.
            if not request.sandbox_id and not any(other is not record and other.live for other in members):
                raise FailedPrecondition(
                    f'network "{request.network}"', "that container is not running", "start it first"
                )
            return EndpointSet(kind="shared", hostname=self._creation.hostname(created, False))
        begun: list[SandboxEndpoint] = []
        undo.add("sandbox", lambda: self._leave(record, begun))
        if kept := state.attached.get(record.id):
            host = self.can(kept[0].driver, "host-netns")
            return EndpointSet("host" if host else "own", self._creation.hostname(created, host), kept=kept)
        net = EndpointSet()
        for join, ports in self._shares(created):
            seat = self.seat(created, join, f"eth{len(net.seats)}", ports, begun)
            if net.seats and (seat.reservation.netns or net.netns):
                raise Invalid(
                    f'network "{seat.network}"', f'it can\'t be had together with network "{net.seats[0].network}"'
                )
            net.netns = seat.reservation.netns
            net.seats.append(seat)
        net.kind = "host" if net.netns == "host" else "own"
        net.hostname = self._creation.hostname(created, net.kind == "host")
        net.made = state.shim.create_sandbox_soon(state.sandbox(record, net.netns, net.hostname))
        return net

    def _shares(self, created: ContainerDraft) -> list[tuple[EndpointConfig, tuple[Port, ...]]]:
        """Each network with the ports that it is to publish."""
        request = created.request
        wished = joins(request)
        publishing = 0
        if request.ports and len(wished) > 1:
            found = [self._state.find_network(join.network, created.drivers) for join in wished]
            publishing = next((number for number, one in enumerate(found) if self.publishes(*one)), 0)
        elif request.network == "none":
            publishing = -1  # they wait for a network that can
        return [(join, request.ports if number == publishing else ()) for number, join in enumerate(wished)]

    def publishes(self, network: str, driver_id: str, driver: Network, flag: str = "ports") -> bool:
        """Whether ports can be published by a network; with the flag "publish", once the container is in it."""
        return self.can(driver_id, flag) and not driver.inspect(network)[0].internal

    def can(self, driver_id: str, flag: str) -> bool:
        """Whether a network driver has a capability."""
        return flag in self._state.kernel.capabilities("network", driver_id).provides

    def seat(
        self,
        begun: ContainerDraft,
        join: EndpointConfig,
        interface: str,
        ports: tuple[Port, ...],
        places: list[SandboxEndpoint],
    ) -> PendingEndpoint:
        """Reserves in one network. places gets what has to be detached, whether this succeeds or not. AlreadyExists for a network
        that it is in already."""
        record, request = begun.record, begun.request
        name, driver_id, driver = self._state.find_network(join.network, begun.drivers)
        if any(place.network == name for place in places):
            raise AlreadyExists(f'network "{name}"', f'container "{record.name}" is in it already')
        places.append(SandboxEndpoint(name, driver_id))
        wish = AttachRequest(
            sandbox_id=record.id,
            network=name,
            interface=interface,
            names=tuple(dict.fromkeys((record.name, *join.aliases))),
            addresses=join.addresses,
            mac=join.mac,
            ports=ports,
            nameservers=request.dns,
            search=request.dns_search,
        )
        return PendingEndpoint(driver_id, driver, driver.reserve(wish))

    def _leave(self, record: ContainerRecord, begun: Sequence[SandboxEndpoint]) -> None:
        """The undo of a place in a sandbox: the last one takes it down. begun: where this start has reserved."""
        state = self._state
        if not state.memberships.leave(record):
            return
        failures: list[tuple[str, Exception]] = []
        try:
            attached = state.attached.get(record.sandbox_id, ())
            pending: list[Callable[[], None]] = []
            if begun or attached:
                known = {(place.network, place.driver): place for place in (*begun, *attached)}
                take_down(state, record, tuple(known.values()), failures, pending)
            for step in pending:
                attempt(failures, "shim.remove_sandbox", step)
            if attached:
                with state.database.transaction(durable=False) as tx:
                    note_gone(tx, record, attached)
        finally:
            state.memberships.down(record)
        state.report(failures, f"undo of start of container {record.id[:12]}")

    # between create and start

    def begin(self, created: ContainerDraft, net: EndpointSet) -> Callable[[], None]:
        """Attaches, once the sandbox is there, and tells the container of the places that it was given: what takes long while the
        container's process is made ready, anything else at once. What comes back waits until that is done, and raises what it
        raised. Whoever takes back what it did has waited for it first."""
        if not self.takes_long(net):
            self._attach(created, net)
            return lambda: None
        attach = partial(self._attach, created, net)
        failed: list[BaseException] = []
        inside = copy_context()

        def work() -> None:
            try:
                inside.run(attach)
            except BaseException as error:
                failed.append(error)

        try:
            thread = threads.start(work, "wherry-attach")
        except Unavailable:
            attach()
            return lambda: None

        def attached() -> None:
            thread.join()
            if failed:
                raise failed[0]

        return attached

    @staticmethod
    def takes_long(net: EndpointSet) -> bool:
        """Whether attaching is worth a thread: only then is there something to do between create and start."""
        return any(seat.reservation.addresses or seat.reservation.ports for seat in net.seats)

    def _attach(self, created: ContainerDraft, net: EndpointSet) -> None:
        for seat in net.seats:
            self.attach_seat(created.record, seat, net.netns, net.hostname)
        if any(place.addresses or place.nameservers for place in net.places):
            self.files(created, net)

    def attach_seat(self, record: ContainerRecord, seat: PendingEndpoint, netns: str, hostname: str) -> None:
        sandbox = self._state.sandbox(record, netns, hostname)
        seat.attachment = seat.driver.attach(seat.reservation, sandbox)

    def files(self, created: ContainerDraft, net: EndpointSet) -> None:
        """hosts, hostname and resolv.conf, in place."""
        self.write_files(created.record, created.request, net.hostname, net.kind == "host", net.places)

    def write_files(
        self, record: ContainerRecord, request: RunRequest, hostname: str, host: bool, places: Sequence[SandboxEndpoint]
    ) -> None:
        with self._state.peers.known(record.id, places) as peers:
            made = hostfiles.make(request, hostname=hostname, host=host, places=places, peers=peers)
            bundles.write(str(self._state.bundle(record)), made.files(), userns.root_of(record.idmap))
