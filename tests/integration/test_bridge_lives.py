"""Names, ports and addresses over restarts and losses of engine, shim and netd."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

import wherry
from support.engines import EngineDirs
from support.running import execute, until
from wherry.api import (
    Container,
    EndpointConfig,
    Engine,
    FailedPrecondition,
    Finding,
    InUse,
    NetworkConfig,
    Port,
    RunRequest,
)
from wherry.engine.networks import connect

IMAGE = "host:/bin/busybox,/bin/sh"
BOUND = 30
SERVE = "/bin/busybox mkdir -p /www; echo served >/www/index.html; exec /bin/busybox httpd -f -p 80 -h /www"


def start(engine: Engine, name: str, script: str, **wishes: object) -> Container:
    return engine.run(RunRequest(IMAGE, ("/bin/sh", "-c", script), name=name, network="lab", **wishes))  # type: ignore[arg-type]


def reached(number: int) -> bool:
    """Whether the published port serves."""
    try:
        with socket.create_connection(("127.0.0.1", number), BOUND) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"200 OK" in sock.recv(4096)
    except OSError:
        return False


def knows(engine: Engine, container: str, name: str) -> bool:
    return (
        execute(engine, container, "/bin/busybox", "wget", "-q", "-T", "5", "-O", "-", f"http://{name}/").out
        == "served\n"
    )


def netd(run: Path) -> int:
    """The pid of netd, 0 when there is none."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(run / "network/bridge").encode() in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    return 0


@pytest.mark.parametrize("lost", ["nothing", "netd", "shim", "both"])
def test_all_goes_on_with_a_new_engine(engine_dirs: EngineDirs, lost: str) -> None:
    with wherry.Engine(root=engine_dirs.root, run=engine_dirs.run) as first:
        first.create_network(NetworkConfig("lab"))
        server = start(first, "server", SERVE, ports=(Port(80),))
        client = start(first, "client", "exec /bin/busybox sleep 1000")
        number = server.ports[0].host_port
        until(lambda: reached(number) and knows(first, "client", "server"), BOUND)
        shim = first.state.shim.pid
    assert reached(number), "while no engine is there"
    pid = netd(engine_dirs.run)
    assert pid
    if lost in ("netd", "both"):
        os.kill(pid, signal.SIGKILL)
    if lost in ("shim", "both"):
        os.kill(shim, signal.SIGKILL)
    with wherry.Engine(root=engine_dirs.root, run=engine_dirs.run) as second:
        until(lambda: reached(number) and knows(second, "client", "server"), BOUND)
        assert {one.addresses[0] for one in second.network("lab").attachments} == {
            server.addresses[0],
            client.addresses[0],
        }
        third = start(second, "third", "exec /bin/busybox sleep 1000")
        assert third.addresses[0] not in (server.addresses[0], client.addresses[0])
        assert knows(second, "third", "server")
        with pytest.raises(InUse):
            start(second, "fourth", SERVE, ports=(Port(80, host_port=number),))
        for container in second.containers(all=True):
            second.remove(container.id, force=True)
        assert not reached(number)
        second.remove_network("lab")
        assert second.doctor() == ()
    assert netd(engine_dirs.run) == 0


def test_netd_is_there_again_beside_its_engine(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab"))
    number = start(engine, "server", SERVE, ports=(Port(80),)).ports[0].host_port
    start(engine, "client", "exec /bin/busybox sleep 1000")
    until(lambda: reached(number) and knows(engine, "client", "server"), BOUND)
    os.kill(netd(engine.run_directory), signal.SIGKILL)  # type: ignore[attr-defined]
    until(lambda: reached(number) and knows(engine, "client", "server"), BOUND)
    for name in ("server", "client"):
        engine.remove(name, force=True)
    engine.remove_network("lab")


def test_restarted_container_has_its_port_and_name_again(engine: Engine) -> None:
    engine.create_network(NetworkConfig("lab"))
    start(engine, "client", "exec /bin/busybox sleep 1000")
    made = start(engine, "server", SERVE, ports=(Port(80),))
    until(lambda: reached(made.ports[0].host_port), BOUND)
    engine.stop("server", 0)
    assert not reached(made.ports[0].host_port)
    number = engine.start("server").ports[0].host_port
    until(lambda: reached(number) and knows(engine, "client", "server"), BOUND)
    for name in ("server", "client"):
        engine.remove(name, force=True)
    engine.remove_network("lab")


def broken_off(engine_dirs: EngineDirs, monkeypatch: pytest.MonkeyPatch) -> tuple[Container, tuple[Finding, ...]]:
    """A container, and what doctor says, after an engine ended in the middle of a disconnect."""

    def ends(*_arguments: object) -> None:
        raise FailedPrecondition("engine", "it ends here")

    with wherry.Engine(root=engine_dirs.root, run=engine_dirs.run) as first:
        for name in ("lab", "side"):
            first.create_network(NetworkConfig(name))
        start(first, "one", "exec /bin/busybox sleep 1000", networks=(EndpointConfig("side"),), ports=(Port(80),))
        with monkeypatch.context() as patched:
            patched.setattr(connect, "settle_endpoints", ends)
            with pytest.raises(FailedPrecondition, match="it ends here"):
                first.disconnect("one", "lab")
    with wherry.Engine(root=engine_dirs.root, run=engine_dirs.run) as second:
        found = second.doctor()
        made = second.container("one")
        second.disconnect("one", "lab")  # again: in the request it is still
        assert [place.reservation.ports for place in second.network("side").attachments] == [made.ports]
        second.remove("one", force=True)
        for name in ("lab", "side"):
            second.remove_network(name)
        assert second.doctor() == ()
    return made, found


def test_a_disconnect_that_was_broken_off_is_done_by_the_next_engine(
    engine_dirs: EngineDirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, found = broken_off(engine_dirs, monkeypatch)
    assert found == ()
    assert made.networks == ("side",)
    assert [port.container_port for port in made.ports] == [80]


def test_twin_nobody_notes_that_a_disconnect_begins(engine_dirs: EngineDirs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "keep_endpoints", lambda _state, _id, _places: None)
    made, found = broken_off(engine_dirs, monkeypatch)
    assert found
    assert made.networks == ("lab", "side")
