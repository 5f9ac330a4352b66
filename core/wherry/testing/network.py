"""What every network driver must do: networks, reservations and attachments, and never a word to the host's own netns."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from wherry.errors import AlreadyExists, Error, FailedPrecondition, InUse, Invalid, NotFound
from wherry.interfaces.network import Attachment, AttachRequest, Network, NetworkConfig, Port, PublishingNetwork
from wherry.interfaces.process import Sandbox
from wherry.testing.contract import Contract
from wherry.testing.harness import Harness


class NetworkHarness(Harness[Network]):
    """Adds sandboxes and a network to attach them to."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._sandboxes: list[str] = []

    def network(self) -> str:
        """A network to attach to: a built-in one, else a new one."""
        for config in self.open().list():
            return config.name
        return self.open().create(NetworkConfig("test-net")).name

    def makes_networks(self) -> bool:
        """Whether the driver takes a new network; one with built-in networks only answers Invalid."""
        try:
            self.open().create(NetworkConfig("probe-net"))
        except Invalid:
            return False
        self.open().remove("probe-net")
        return True

    def need_networks(self) -> None:
        if not self.makes_networks():
            pytest.skip(f"{self.context.id}: has only its built-in networks")

    def attached(self, network: str, sandbox_id: str = "", **wishes: Any) -> Attachment:
        """Reserves, makes the sandbox from the reservation and attaches it, as a run does."""
        sandbox_id = sandbox_id or f"s-{uuid4().hex[:10]}"
        reservation = self.open().reserve(AttachRequest(sandbox_id, network, names=(sandbox_id,), **wishes))
        return self.open().attach(reservation, self.sandbox(sandbox_id, reservation.netns))

    def sandbox(self, sandbox_id: str, netns: str) -> Sandbox:
        sandbox = Sandbox(sandbox_id, netns)
        if self.with_shim and sandbox_id not in self._sandboxes:
            self._sandboxes.append(sandbox_id)
            sandbox = self.shim.create_sandbox(sandbox)
        return sandbox

    def close(self) -> None:
        self.open().gc(())
        for config in list(self.open().list()):
            try:
                self.open().remove(config.name)
            except Error:
                continue  # a built-in one
        for sandbox_id in self._sandboxes:
            self.shim.remove_sandbox(sandbox_id)
        super().close()


def in_thread(call: Callable[[], Any]) -> tuple[str, str]:
    """Calls on a new thread; the network namespace of that thread before and after."""
    seen: list[str] = []
    failures: list[BaseException] = []

    def body() -> None:
        own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        seen.append(os.readlink(own))
        try:
            call()
        except BaseException as error:
            failures.append(error)
        seen.append(os.readlink(own))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return seen[0], seen[1]


def host_links() -> set[str]:
    """Names of the links in the namespace of this thread."""
    table = Path("/proc/thread-self/net/dev").read_text()
    return {line.partition(":")[0].strip() for line in table.splitlines() if ":" in line}


def host_routes() -> set[str]:
    """Lines of the IPv4 routing table of this thread's namespace."""
    return set(Path("/proc/thread-self/net/route").read_text().splitlines())


class NetworkContract(Contract):
    """The clauses of the network kind. See ``wherry.interfaces.network``."""

    family = "network"
    with_shim = True

    def make_harness(self, directory: Path) -> NetworkHarness:
        return NetworkHarness(directory, self.family, self.register(), self.options, with_shim=self.with_shim)

    # reserve, attach, detach

    def test_reservation_answers_the_request(self, harness: NetworkHarness) -> None:
        request = AttachRequest("s-1", harness.network(), names=("one", "alias"))
        reservation = harness.open().reserve(request)
        assert reservation.request == request
        assert reservation.netns in {"", "host"} or Path(reservation.netns).exists()
        harness.open().detach("s-1", request.network)

    def test_attach_answers_a_result(self, harness: NetworkHarness) -> None:
        made = harness.attached(harness.network(), "s-1")
        assert isinstance(made, Attachment)
        assert made.reservation.request.sandbox_id == "s-1"
        assert all("/" in address for address in made.addresses), "addresses are CIDR"
        assert set(made.reservation.addresses) <= set(made.addresses)

    def test_attach_is_idempotent(self, harness: NetworkHarness) -> None:
        made = harness.attached(harness.network(), "s-1")
        assert harness.open().attach(made.reservation, harness.sandbox("s-1", made.reservation.netns)) == made

    def test_detach_is_idempotent(self, harness: NetworkHarness) -> None:
        network = harness.network()
        harness.open().detach("never-was", network)
        harness.attached(network, "s-1")
        harness.open().detach("s-1", network)
        harness.open().detach("s-1", network)
        harness.open().detach("s-1", "no-such-network")

    def test_a_sandbox_can_come_back(self, harness: NetworkHarness) -> None:
        network = harness.network()
        for _ in range(3):
            harness.attached(network, "s-1")
            harness.open().detach("s-1", network)

    def test_unknown_network_is_not_found(self, harness: NetworkHarness) -> None:
        harness.network()
        with pytest.raises(NotFound):
            harness.open().reserve(AttachRequest("s-1", "no-such-network"))
        with pytest.raises(NotFound):
            harness.open().inspect("no-such-network")

    def test_check_accepts_an_attached_one(self, harness: NetworkHarness) -> None:
        network = harness.network()
        harness.attached(network, "s-1")
        harness.open().check("s-1", network)

    def test_gc_takes_any_set(self, harness: NetworkHarness) -> None:
        network = harness.network()
        harness.attached(network, "s-1")
        assert harness.open().gc(["s-1"]) == 0
        harness.open().check("s-1", network)
        assert harness.open().gc([]) >= 0
        assert harness.open().gc([]) == 0, "what was dropped is not dropped again"

    def test_callers_stay_in_their_namespace(self, harness: NetworkHarness) -> None:
        """attach works from the engine's threads, which never change namespaces; nor is the container in the host's."""
        network = harness.network()

        def life() -> None:
            made = harness.attached(network, "s-1")
            harness.open().check("s-1", network)
            if harness.shim is not None and made.reservation.netns != "host":
                fd = harness.shim.namespace("s-1", "net")
                inside = os.fstat(fd).st_ino
                os.close(fd)
                assert inside != Path("/proc/self/ns/net").stat().st_ino
            harness.open().detach("s-1", network)

        before, after = in_thread(life)
        assert before == after

    def test_host_links_stay(self, harness: NetworkHarness) -> None:
        """The links and routes that the host had are there afterwards."""
        network = harness.network()
        links, routes = host_links(), host_routes()
        harness.attached(network, "s-1")
        assert links <= host_links()
        assert routes <= host_routes()
        harness.open().detach("s-1", network)
        assert links <= host_links()
        assert routes <= host_routes()

    def test_ports_are_granted_or_refused(self, harness: NetworkHarness) -> None:
        """With the flag "ports" a taken port is InUse; without it a published port is Invalid, never dropped silently."""
        network = harness.network()
        wish = (Port(80, host_ip="127.0.0.1", host_port=0),)
        if "ports" not in harness.provides():
            with pytest.raises(Invalid):
                harness.open().reserve(AttachRequest("s-1", network, ports=wish))
            return
        first = harness.open().reserve(AttachRequest("s-1", network, ports=wish))
        (port,) = first.ports
        assert port.host_port > 0
        with pytest.raises(InUse):
            harness.open().reserve(AttachRequest("s-2", network, ports=(port,)))
        harness.open().detach("s-1", network)
        harness.open().reserve(AttachRequest("s-2", network, ports=(port,)))

    def test_ports_are_published_later(self, harness: NetworkHarness) -> None:
        """With the flag "publish": of a sandbox that is attached, as if wished at reserve. A taken one changes nothing."""
        if "publish" not in harness.provides():
            pytest.skip(f"{harness.context.id}: publishes ports at reserve only, if at all")
        network = harness.network()
        driver = cast("PublishingNetwork", harness.open())
        for name in ("s-1", "s-2"):
            harness.attached(network, name)

        def held(name: str) -> tuple[Port, ...]:
            places = [one.reservation for one in driver.inspect(network)[1]]
            return next(place.ports for place in places if place.request.sandbox_id == name)

        (port,) = driver.publish("s-1", network, (Port(80, host_ip="127.0.0.1"),))
        assert port.host_port > 0
        assert held("s-1") == (port,)
        driver.check("s-1", network)
        with pytest.raises(InUse):
            driver.publish("s-2", network, (Port(81, host_ip="127.0.0.1"), port))
        assert held("s-2") == ()
        driver.detach("s-1", network)
        assert driver.publish("s-2", network, (port,)) == held("s-2") == (port,)
        with pytest.raises(FailedPrecondition):
            driver.publish("s-2", network, (Port(82),))
        with pytest.raises(NotFound):
            driver.publish("never-was", network, (Port(80),))

    def test_wishes_are_granted_or_refused(self, harness: NetworkHarness) -> None:
        """A wished address or hardware address is the one that is given, or the wish is an error: never another one in its place."""
        network = harness.network()
        for wish in ({"addresses": ("192.0.2.99",)}, {"mac": "02:00:00:00:00:63"}):
            try:
                made = harness.attached(network, "s-1", **wish)
            except Error:  # Invalid, or what a foreign program says
                harness.open().detach("s-1", network)
                continue
            given = {address.partition("/")[0] for address in made.addresses} | {made.mac}
            assert {*wish.get("addresses", ()), wish.get("mac", made.mac)} <= given
            harness.open().detach("s-1", network)

    def test_a_fixed_address_is_given_once(self, harness: NetworkHarness) -> None:
        """In a network whose subnet holds it: to one sandbox, until that is detached."""
        harness.need_networks()
        try:
            made = harness.open().create(NetworkConfig("blue", subnets=("10.55.0.0/24",)))
        except Invalid:
            pytest.skip(f"{harness.context.id}: chooses the subnets itself")
        wish = {"addresses": ("10.55.0.77",)}
        try:
            first = harness.attached(made.name, "s-1", **wish)
        except Invalid:
            pytest.skip(f"{harness.context.id}: grants no addresses")
        assert "10.55.0.77/24" in first.addresses
        with pytest.raises(Error):  # InUse, or what a foreign program says
            harness.attached(made.name, "s-2", **wish)
        harness.open().detach("s-2", made.name)
        harness.open().detach("s-1", made.name)
        harness.open().detach("s-1", made.name)
        assert "10.55.0.77/24" in harness.attached(made.name, "s-3", **wish).addresses

    def test_never_the_hosts_namespace(self, harness: NetworkHarness) -> None:
        """A sandbox that shares the host's network where its own was reserved is refused, and the host's links stay as they are."""
        network = harness.network()
        reservation = harness.open().reserve(AttachRequest("s-1", network, names=("s-1",)))
        if reservation.netns == "host":
            pytest.skip(f"{harness.context.id}: is the host's network")
        links = host_links()
        with pytest.raises(FailedPrecondition):
            harness.open().attach(reservation, harness.sandbox("s-1", "host"))
        assert host_links() == links
        harness.open().detach("s-1", network)

    def test_a_reservation_is_given_back(self, harness: NetworkHarness) -> None:
        """One that came to nothing: by detach, and by gc where nobody lives to detach it."""
        network = harness.network()
        for give_back in (lambda: harness.open().detach("s-1", network), lambda: harness.open().gc(())):
            harness.open().reserve(AttachRequest("s-1", network, names=("s-1",)))
            give_back()
        harness.attached(network, "s-1")
        harness.open().check("s-1", network)

    def test_a_sandbox_in_two_networks(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        for name in ("blue", "green"):
            try:
                harness.open().create(NetworkConfig(name))
            except InUse as refusal:  # one network for each interface of the host, for instance
                pytest.skip(f"{harness.context.id}: {refusal}")
        for number, name in enumerate(("blue", "green")):
            harness.attached(name, "s-1", interface=f"eth{number}")
        for name in ("blue", "green"):
            harness.open().check("s-1", name)
        harness.open().detach("s-1", "blue")
        harness.open().check("s-1", "green")
        assert harness.open().inspect("blue")[1] == ()
        assert len(harness.open().inspect("green")[1]) == 1

    def test_threads_attach_side_by_side(self, harness: NetworkHarness) -> None:
        network = harness.network()
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda index: harness.attached(network, f"s-{index}"), range(8)))
        addresses = [address for attachment in made for address in attachment.addresses]
        assert len(addresses) == len(set(addresses)), "two sandboxes got one address"
        assert [item.reservation.request.sandbox_id for item in made] == [f"s-{index}" for index in range(8)]

    # networks

    def test_some_network_is_there_or_can_be_made(self, harness: NetworkHarness) -> None:
        names = [config.name for config in harness.open().list()]
        assert len(names) == len(set(names))
        assert names or harness.makes_networks()
        for name in names:
            assert harness.open().inspect(name)[0].name == name

    def test_created_network_is_listed(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        made = harness.open().create(NetworkConfig("blue", labels={"a": "b"}))
        assert (made.name, dict(made.labels)) == ("blue", {"a": "b"})
        assert made in list(harness.open().list())
        assert harness.open().inspect("blue") == (made, ())

    def test_taken_name_is_refused(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        made = harness.open().create(NetworkConfig("blue"))
        with pytest.raises(AlreadyExists):
            harness.open().create(NetworkConfig("blue", labels={"other": "1"}))
        assert harness.open().inspect("blue")[0] == made

    def test_remove_is_idempotent(self, harness: NetworkHarness) -> None:
        harness.open().remove("never-was")
        harness.need_networks()
        harness.open().create(NetworkConfig("blue"))
        harness.open().remove("blue")
        harness.open().remove("blue")
        with pytest.raises(NotFound):
            harness.open().inspect("blue")
        assert "blue" not in {config.name for config in harness.open().list()}

    def test_network_in_use_is_kept(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        harness.open().create(NetworkConfig("blue"))
        harness.attached("blue", "s-1")
        with pytest.raises(InUse):
            harness.open().remove("blue")
        harness.open().check("s-1", "blue")
        harness.open().detach("s-1", "blue")
        harness.open().remove("blue")

    def test_inspect_lists_attachments(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        harness.open().create(NetworkConfig("blue"))
        made = [harness.attached("blue", name) for name in ("s-1", "s-2")]
        found = harness.open().inspect("blue")[1]
        assert sorted(item.reservation.request.sandbox_id for item in found) == ["s-1", "s-2"]
        assert all(item in made for item in found)
        harness.open().detach("s-1", "blue")
        assert [item.reservation.request.sandbox_id for item in harness.open().inspect("blue")[1]] == ["s-2"]

    def test_check_refuses_what_is_not_attached(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        harness.open().create(NetworkConfig("blue"))
        with pytest.raises((FailedPrecondition, NotFound)):
            harness.open().check("s-1", "blue")
        harness.attached("blue", "s-1")
        harness.open().detach("s-1", "blue")
        with pytest.raises((FailedPrecondition, NotFound)):
            harness.open().check("s-1", "blue")

    def test_gc_drops_the_dead(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        harness.open().create(NetworkConfig("blue"))
        for name in ("s-1", "s-2", "s-3"):
            harness.attached("blue", name)
        assert harness.open().gc({"s-2"}) == 2
        assert [item.reservation.request.sandbox_id for item in harness.open().inspect("blue")[1]] == ["s-2"]

    def test_networks_survive_reopening(self, harness: NetworkHarness) -> None:
        harness.need_networks()
        made = harness.open().create(NetworkConfig("blue", labels={"a": "b"}))
        attachment = harness.attached("blue", "s-1")
        driver = harness.reopen()
        assert driver.inspect("blue") == (made, (attachment,))
        driver.detach("s-1", "blue")
        driver.remove("blue")
