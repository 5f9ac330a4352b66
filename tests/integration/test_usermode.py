"""network/pasta and network/slirp4netns: ways out and in, and what is left when something dies."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.drivers import HOST, OUTSIDE, Died, Driven, driven, echo, killed_everywhere, uplink
from support.shims import eventually
from wherry.api import AttachRequest, FailedPrecondition, InUse, Invalid, NotFound, Port, Sandbox
from wherry.kit.networks.ports import PortClaims
from wherry.kit.programs import Programs

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture(params=["pasta", "slirp4netns"])
def made(request: pytest.FixtureRequest) -> Iterator[Driven]:
    with uplink(), driven(request.param) as made:
        yield made


def network(made: Driven) -> str:
    return made.registration.id


def attach(made: Driven, id: str = "s-1", *ports: Port, **wishes: object) -> str:
    """The first address of a new sandbox."""
    return made.attached(network(made), id, ports=ports, **wishes).addresses[0].partition("/")[0]


def programs(made: Driven) -> list[int]:
    """Pids of those that run."""
    owner = f"{made.context.id}.program"
    return [task.pid for task in made.shim.list(owner) if task.status == "running"]


def published(made: Driven) -> tuple[Port, ...]:
    """Of the sandbox s-1, as it was granted."""
    return made.open().inspect(network(made))[1][0].reservation.ports


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_out(made: Driven, kind: socket.SocketKind) -> None:
    """The host sees itself connect."""
    attach(made)
    server = socket.socket(socket.AF_INET, kind)
    seen = echo(server, made.socket("s-1", kind=kind), (OUTSIDE[0], 7010), (OUTSIDE[0], 7010))
    assert seen in {HOST[0], OUTSIDE[0]}


def test_out_by_ipv6(made: Driven) -> None:
    attach(made)
    (one,) = made.open().inspect(network(made))[1]
    assert [":" in each for each in (*one.addresses, *one.gateways)] == [False, True, False, True]
    made.open().check("s-1", network(made))
    six = socket.AF_INET6
    seen = echo(socket.socket(six), made.socket("s-1", six), (OUTSIDE[1], 7010), (OUTSIDE[1], 7010))
    assert seen in {HOST[1], OUTSIDE[1]}


def test_no_ipv6_where_the_host_has_none() -> None:
    with uplink(six=False), driven("slirp4netns") as made:
        attach(made)
        (one,) = made.open().inspect("slirp4netns")[1]
        assert not any(":" in each for each in (*one.addresses, *one.gateways))


@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize("by", ["127.0.0.1", HOST[0]])
def test_in_by_a_published_port(made: Driven, kind: socket.SocketKind, by: str) -> None:
    protocol = "tcp" if kind == TCP else "udp"
    if (network(made), kind, by) == ("slirp4netns", UDP, "127.0.0.1"):
        with pytest.raises(Invalid, match="answers no UDP on the host's loopback"):
            attach(made, "s-1", Port(80, "udp", "127.0.0.1"))
        return
    attach(made, "s-1", Port(80, protocol))  # type: ignore[arg-type]
    (port,) = published(made)
    assert port.host_port > 0
    echo(made.socket("s-1", kind=kind), socket.socket(socket.AF_INET, kind), ("0.0.0.0", 80), (by, port.host_port))


def test_in_by_ipv6() -> None:
    with uplink(), driven("pasta") as made:
        attach(made, "s-1", Port(80), Port(81, host_ip="::1"))
        every, local = published(made)
        six = socket.AF_INET6
        for address, port in ((HOST[1], every), ("::1", every), ("::1", local)):
            server, client = made.socket("s-1", six), socket.socket(six)
            echo(server, client, ("::", port.container_port), (address, port.host_port))


def test_a_loopback_port_is_closed_to_others(made: Driven) -> None:
    attach(made, "s-1", Port(80, host_ip="127.0.0.1"))
    (port,) = published(made)
    echo(made.socket("s-1"), socket.socket(), ("0.0.0.0", 80), ("127.0.0.1", port.host_port))
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.settimeout(30)
        client.connect((HOST[0], port.host_port))


def test_the_hosts_loopback_is_not_theirs(made: Driven) -> None:
    """Neither as their own 127.0.0.1 nor by the gateway's address."""
    attach(made)
    gateways = made.open().inspect(network(made))[1][0].gateways
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for address in ("127.0.0.1", gateways[0]):
            with made.socket("s-1") as client, pytest.raises(OSError):
                client.settimeout(3)
                client.connect((address, server.getsockname()[1]))


def test_sandboxes_are_apart(made: Driven) -> None:
    first, _second = attach(made, "s-1"), attach(made, "s-2")
    with made.socket("s-1") as server, made.socket("s-2") as client, pytest.raises(OSError):
        server.bind(("0.0.0.0", 80))
        server.listen()
        client.settimeout(3)
        client.connect((first, 80))


def test_a_taken_port_is_found_at_reserve(made: Driven) -> None:
    driver, name = made.open(), network(made)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        wish = Port(80, host_ip="127.0.0.1", host_port=other.getsockname()[1])
        with pytest.raises(InUse, match=str(wish.host_port)):
            driver.reserve(AttachRequest("s-1", name, ports=(Port(81), wish)))
    attach(made, "s-1", wish)
    with pytest.raises(InUse, match=str(wish.host_port)):
        driver.reserve(AttachRequest("s-2", name, ports=(wish,)))
    with pytest.raises(InUse):
        made.reopen().reserve(AttachRequest("s-2", name, ports=(wish,)))
    made.open().detach("s-1", name)
    attach(made, "s-2", wish)


def test_a_port_can_be_had_again_at_once(made: Driven) -> None:
    """Connections that the program closed first are in TIME_WAIT."""
    attach(made, "s-1", Port(80, host_ip="127.0.0.1"))
    (port,) = published(made)
    with made.socket("s-1") as server, socket.socket() as client:
        server.bind(("0.0.0.0", 80))
        server.listen()
        client.settimeout(30)
        client.connect(("127.0.0.1", port.host_port))
        accepted, _peer = server.accept()
        with accepted:
            accepted.sendall(b"bye")
        assert client.recv(3) + client.recv(1) == b"bye"
    made.open().detach("s-1", network(made))
    attach(made, "s-2", port)


def test_wishes(made: Driven) -> None:
    attached = made.attached(network(made), "s-1", mac="02:00:00:00:00:99")
    assert attached.mac == "02:00:00:00:00:99"
    assert set(attached.addresses) <= made.addresses("s-1")
    assert attached.nameservers
    driver = made.open()
    for text in ("192.0.2.77", "nonsense"):
        with pytest.raises(Invalid):
            driver.reserve(AttachRequest("s-2", network(made), addresses=(text,)))
    with pytest.raises(Invalid):
        driver.reserve(AttachRequest("s-2", network(made), ports=(Port(80, host_ip="192.0.2.200"),)))
    with pytest.raises(Invalid):
        driver.reserve(AttachRequest("../up", network(made)))
    assert not driver.gc(["s-1"])


def test_a_fixed_address() -> None:
    with uplink(), driven("pasta") as made:
        assert "10.87.3.4/16" in made.attached("pasta", "s-1", addresses=("10.87.3.4",)).addresses
        with pytest.raises(InUse):
            made.open().reserve(AttachRequest("s-2", "pasta", addresses=("10.87.3.4",)))


def test_it_ends_with_its_sandbox(made: Driven) -> None:
    attach(made)
    (pid,) = programs(made)
    made.open().detach("s-1", network(made))
    assert not os.path.exists(f"/proc/{pid}/exe")
    assert not list((made.context.run / "programs").iterdir())
    assert not list((made.context.run / "attached").iterdir())


def test_check_tells_of_one_that_died(made: Driven) -> None:
    attach(made)
    made.open().check("s-1", network(made))
    (pid,) = programs(made)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not programs(made), 30)
    with pytest.raises(FailedPrecondition, match="has ended"):
        made.open().check("s-1", network(made))
    made.open().detach("s-1", network(made))


def test_gc_of_the_next_engine(made: Driven) -> None:
    """Places, programs and ports of the dead go, those of the living stay and work."""
    attach(made, "s-1", Port(80))
    attach(made, "s-2")
    ports = published(made)
    made.open().reserve(AttachRequest("s-3", network(made)))
    driver = made.reopen()
    assert driver.gc({"s-1"}) == 2
    assert len(programs(made)) == 1
    driver.check("s-1", network(made))
    echo(made.socket("s-1"), socket.socket(), ("0.0.0.0", 80), ("127.0.0.1", ports[0].host_port))
    assert driver.gc(()) == 1
    assert not programs(made)


def test_gc_finds_a_program_that_no_record_names(made: Driven) -> None:
    attach(made)
    for path in (made.context.run / "attached").iterdir():
        path.unlink()
    made.reopen().gc({"s-1"})
    assert not programs(made)


def test_one_that_the_shim_has_lost(made: Driven) -> None:
    """Shim and logger killed: nobody knows it but the record."""
    attach(made)
    (pid,) = programs(made)
    shim = made.shim.pid
    family = [int(name) for name in Path(f"/proc/{shim}/task/{shim}/children").read_text().split()]
    handles = [os.pidfd_open(one) for one in (shim, *family) if one != pid]
    try:
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        eventually(lambda: len(select.select(handles, [], [], 0)[0]) == len(handles), 30)
    finally:
        for handle in handles:
            os.close(handle)
    assert os.path.exists(f"/proc/{pid}/exe")
    made.reopen().gc(())
    eventually(lambda: not os.path.exists(f"/proc/{pid}/exe"), 30)


def test_an_attach_that_was_broken_off_is_done_again(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine dies when the program runs and no result is written."""
    reservation = made.open().reserve(AttachRequest("s-1", network(made)))
    sandbox = made.sandbox("s-1", "")

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(made.open()), "_look", die)
        patch.setattr(type(made.open()), "_end", lambda self, data: None)
        with pytest.raises(KeyboardInterrupt):
            made.open().attach(reservation, sandbox)
    assert len(programs(made)) == 1
    assert made.reopen().attach(reservation, sandbox).addresses
    assert len(programs(made)) == 1


def test_never_in_the_hosts_namespace(made: Driven) -> None:
    reservation = made.open().reserve(AttachRequest("s-1", network(made)))
    made.sandbox("s-1", "host")
    before = sorted(name for _, name in socket.if_nameindex())
    for sandbox in (Sandbox("s-1", "host"), Sandbox("s-1")):
        with pytest.raises((FailedPrecondition, NotFound)):
            made.open().attach(reservation, sandbox)
    assert sorted(name for _, name in socket.if_nameindex()) == before
    assert not programs(made)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo no luck today >&2; exit 3", "ended at once: no luck today"),
        ("exec sleep 1000", "was not ready within 1 seconds"),
    ],
)
@pytest.mark.parametrize("id", ["pasta", "slirp4netns"])
def test_a_program_that_fails(id: str, script: str, says: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    patience = 1.0 if "not ready" in says else 60.0
    with uplink(), driven(id, {"program": str(program), "patience": patience}) as made:
        with pytest.raises(FailedPrecondition, match=says):
            attach(made)
        assert not programs(made)
        made.open().detach("s-1", id)


@pytest.mark.parametrize("id", ["pasta", "slirp4netns"])
def test_where_it_is_not_installed(id: str) -> None:
    with pytest.raises(pytest.skip.Exception, match="is not installed"):
        with driven(id, {"program": "/no/such/program"}):
            raise AssertionError


STEPS = ((os, "rename"), (os, "unlink"), (Programs, "start"), (Programs, "end"), (PortClaims, "release"))


def life(made: Driven) -> None:
    driver = made.open()
    wish = AttachRequest("s-1", network(made), ports=(Port(80, host_ip="127.0.0.1"),))
    driver.attach(driver.reserve(wish), made.sandbox("s-1", ""))
    driver.detach("s-1", network(made))


def test_killed_at_every_step(made: Driven) -> None:
    def after(step: int) -> None:
        made.reopen().gc(())
        assert not programs(made), step
        assert not list((made.context.run / "attached").glob("*.json")), step
        assert not list((made.context.run / "programs").iterdir()), step

    assert killed_everywhere(lambda: life(made), after, STEPS, 2) > 12


def test_a_step_less_and_it_leaks(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a sweep that keeps what no record names."""
    monkeypatch.setattr(Programs, "sweep", lambda self, keep=tuple: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made.open()), "_look", lambda *_arguments: os.abort())
        patch.setattr(os, "abort", lambda: (_ for _ in ()).throw(Died()))
        patch.setattr(Programs, "end", lambda *_arguments: None)
        with pytest.raises(Died):
            life(made)
    for path in (made.context.run / "attached").iterdir():
        path.unlink()
    made.reopen().gc(())
    assert len(programs(made)) == 1
    monkeypatch.undo()
    made.open().gc(())
    assert not programs(made)
    assert not list((made.context.run / "programs").iterdir())


def test_names_are_asked_of_the_hosts_resolver(made: Driven, tmp_path: Path) -> None:
    """By the nameserver that is reported, whatever the host's is: this one listens where no sandbox would reach it."""
    config = tmp_path / "resolv.conf"
    config.write_text(f"nameserver {OUTSIDE[0]}\n")
    target = os.path.realpath("/etc/resolv.conf")
    subprocess.run(["mount", "--bind", config, target], check=True, timeout=60)
    try:
        (nameserver,) = made.attached(network(made), "s-1").nameservers
        echo(socket.socket(type=UDP), made.socket("s-1", kind=UDP), (OUTSIDE[0], 53), (nameserver, 53))
    finally:
        subprocess.run(["umount", target], check=True, timeout=60)


def attach_beside_gc(made: Driven, monkeypatch: pytest.MonkeyPatch) -> int:
    """Attaches at the worst moment, when gc has just read which programs are known; how many run afterwards."""
    driver = made.open()
    real = type(driver)._known
    due = [True]

    def known(self: Any) -> set[str]:
        found = real(self)
        if due:
            due.clear()
            attach(made)
        return found

    monkeypatch.setattr(type(driver), "_known", known)
    driver.gc({"s-1"})
    return len(programs(made))


def test_gc_beside_an_attach(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attach_beside_gc(made, monkeypatch) == 1
    made.open().check("s-1", network(made))


def test_gc_that_asks_too_early(made: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: what is to be kept is asked before it is looked which programs there are."""
    real = Programs.sweep

    def sweep(self: Programs, keep: Any = tuple) -> int:
        kept = set(keep())
        return real(self, lambda: kept)

    monkeypatch.setattr(Programs, "sweep", sweep)
    assert attach_beside_gc(made, monkeypatch) == 0
