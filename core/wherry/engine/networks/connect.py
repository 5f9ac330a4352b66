"""network connect and disconnect: a container's networks are changed, in its request and, while it runs, in its sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import cast

from attrs import evolve

from wherry.api import (
    AlreadyExists,
    Container,
    EndpointConfig,
    Error,
    FailedPrecondition,
    Invalid,
    NotFound,
    Port,
    PublishingNetwork,
)
from wherry.engine.containers.create import ContainerDraft, Creator, must_not_be_removing
from wherry.engine.containers.records import ContainerRecord, pack_request
from wherry.engine.networks.attach import Attacher, joins, with_joins
from wherry.engine.networks.endpoints import SandboxEndpoint, endpoint_of, keep_endpoints, published, settle_endpoints
from wherry.engine.state.state import State
from wherry.engine.state.undo import attempt


class Connector:
    def __init__(self, state: State, creation: Creator, attaching: Attacher) -> None:
        self._state = state
        self._creation = creation
        self._attaching = attaching

    def connect(self, container: str, join: EndpointConfig) -> Container:
        """In the request, so that each later start has it; in the sandbox, where there is one."""
        record = self._state.registry.find(container)
        with record.lock:
            begun = self._begun(record)
            name, driver_id, _driver = self._state.find_network(join.network, begun.drivers)
            if self._attaching.can(driver_id, "loopback-only"):
                raise Invalid(
                    f'network "{name}"', "has nothing to give", "wherry network disconnect takes a network away"
                )
            join = evolve(join, network=name)
            if name in self._names(begun):
                raise AlreadyExists(f'network "{name}"', f'container "{record.name}" is in it already')
            # One that has no network but "none" leaves that: it has nothing to give.
            wished = [*(one for one in joins(begun.request) if one.network != "none"), join]
            if record.live:
                self._state.kernel.together(self._plug, begun, join, wished)
            else:
                self._wish(begun, wished)
            return record.view()

    def disconnect(self, container: str, network: str, force: bool) -> Container:
        record = self._state.registry.find(container)
        with record.lock:
            begun = self._begun(record)
            name, _id, _driver = self._state.find_network(network, begun.drivers)
            if name not in self._names(begun):
                if force:
                    return record.view()
                raise NotFound(f'network "{name}"', f'container "{record.name}" is not in it')
            wished = [one for one in joins(begun.request) if self._named(one, begun) != name]
            if record.live:
                self._state.kernel.together(self._unplug, begun, name, wished)
            else:
                self._wish(begun, wished)
            return record.view()

    def _begun(self, record: ContainerRecord) -> ContainerDraft:
        """FailedPrecondition for a container whose networks are not its own."""
        must_not_be_removing(record)
        state, what = self._state, f'container "{record.name}"'
        if record.status == "creating":
            raise FailedPrecondition(what, "is being created", "try again")
        if record.sandbox_id != record.id:
            raise FailedPrecondition(what, "is in the network of another container", "do it with that one")
        request = state.request_of(record)
        begun = ContainerDraft(record, request, state.drivers(record), "")
        if self._in_hosts_network(begun):
            raise FailedPrecondition(what, "is in the host's network", "start it with another --network")
        return begun

    def _in_hosts_network(self, begun: ContainerDraft) -> bool:
        drivers = [place.driver for place in self._state.attached.get(begun.record.id, ())]
        for join in () if drivers else joins(begun.request):
            with suppress(NotFound):  # a network that is gone can still be taken from the request
                drivers.append(self._state.find_network(join.network, begun.drivers)[1])
        return any(self._attaching.can(driver, "host-netns") for driver in drivers)

    def _named(self, join: EndpointConfig, begun: ContainerDraft) -> str:
        return self._state.find_network(join.network, begun.drivers)[0] if not join.network else join.network

    def _names(self, begun: ContainerDraft) -> set[str]:
        return {self._named(join, begun) for join in joins(begun.request)}

    def _plug(self, begun: ContainerDraft, join: EndpointConfig, wished: Sequence[EndpointConfig]) -> None:
        state, record = self._state, begun.record
        state.sweeping.wait()
        places = state.attached.get(record.id, ())
        number = next(number for number in range(len(places) + 1) if all(p.interface != f"eth{number}" for p in places))
        # The driver has it no later than the database: what is attached is what the end of the container gives back.
        name, driver_id, driver = state.find_network(join.network, begun.drivers)
        keep_endpoints(state, record.id, (*places, SandboxEndpoint(name, driver_id, pending=True)))
        made: list[SandboxEndpoint] = []
        try:
            wish = begun.request.ports if self._attaching.publishes(name, driver_id, driver) else ()
            # Those that a network publishes stay there, as an address that somebody uses already.
            ports = () if record.ports else wish
            seat = self._attaching.seat(begun, join, f"eth{number}", ports, made)
            if seat.reservation.netns:
                raise Invalid(f'network "{join.network}"', "can't be had together with another one")
            hostname = self._creation.hostname(begun, False)
            self._attaching.attach_seat(record, seat, "", hostname)
            assert seat.attachment is not None
            ports = (*record.ports, *seat.reservation.ports)
            self._settle(begun, (*places, endpoint_of(seat.driver_id, seat.attachment)), wished, ports)
        except BaseException:
            failures: list[tuple[str, Exception]] = []
            for place in made:
                detach = partial(state.network(place.driver, record).detach, record.id, place.network)
                attempt(failures, "network.detach", detach)
            if not failures:
                keep_endpoints(state, record.id, places)
            state.report(failures, f"undo of connect of container {record.id[:12]}")
            raise
        tell = {"network": join.network, "driver": seat.driver_id}
        state.tell("network.attached", record.id, tell)

    def _unplug(self, begun: ContainerDraft, name: str, wished: Sequence[EndpointConfig]) -> None:
        state, record = self._state, begun.record
        places = state.attached.get(record.id, ())
        going = [place for place in places if place.network == name]
        staying = tuple(place for place in places if place.network != name)
        if going:  # an engine after this one is to know that it may be gone
            keep_endpoints(state, record.id, (*staying, *(evolve(place, pending=True) for place in going)))
        lost: tuple[Port, ...] = ()
        for place in going:
            driver = state.network(place.driver, record)
            lost = published(driver, record.id, name) if record.ports else ()
            driver.detach(record.id, place.network)
        ports = tuple(port for port in record.ports if port not in lost)
        failure: Error | None = None
        if wanted := lost or (() if ports else begun.request.ports):
            try:
                ports += self._move(record, staying, wanted)
            except Error as error:
                failure = error
        self._settle(begun, staying, wished, ports)
        for place in going:
            state.tell("network.detached", record.id, {"network": place.network, "driver": place.driver})
        if failure is not None:
            said = f'{failure.cause}; container "{record.name}" has left network "{name}", and what it published there'
            raise type(failure)(failure.what, f"{said} is published no longer", "restart it")

    def _move(
        self, record: ContainerRecord, places: tuple[SandboxEndpoint, ...], ports: tuple[Port, ...]
    ) -> tuple[Port, ...]:
        """Ports that a network published, by the first other one that can; () where none can, until the next start."""
        for place in places:
            driver = self._state.network(place.driver, record)
            if self._attaching.publishes(place.network, place.driver, driver, "publish"):
                return cast("PublishingNetwork", driver).publish(record.id, place.network, ports)
        return ()

    def _settle(
        self,
        begun: ContainerDraft,
        places: tuple[SandboxEndpoint, ...],
        wished: Sequence[EndpointConfig],
        ports: tuple[Port, ...],
    ) -> None:
        """Writes down where a running container is now and what it publishes, here and in its own files."""
        request = with_joins(begun.request, wished)
        settle_endpoints(self._state, begun.record, places, ports, request)
        hostname = self._creation.hostname(begun, False)
        self._attaching.write_files(begun.record, request, hostname, False, places)

    def _wish(self, begun: ContainerDraft, wished: Sequence[EndpointConfig]) -> None:
        """Of one that does not run: from its next start on. What it is attached to, as others may still run there, stays as it is."""
        request = with_joins(begun.request, wished)
        with self._state.database.transaction() as tx:
            tx.execute("UPDATE containers SET request = ? WHERE id = ?", (pack_request(request), begun.record.id))
        begun.record.request = request
