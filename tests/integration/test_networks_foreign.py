"""Containers in the networks cni, macvlan, pasta and slirp4netns, end to end, and an engine that is killed beside them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import wherry as package
from support.cni import need_plugins, no_rules
from support.drivers import HOST, uplink, veth
from support.engines import Wherry, clear
from support.running import execute, sh, until
from wherry.api import EndpointConfig, Engine, InUse, NetworkConfig, Port, RunRequest

IMAGE = "host:/bin/busybox,/bin/sh"
USERMODE = ("pasta", "slirp4netns")
DRIVERS = (*USERMODE, "cni", "macvlan")


def need(driver: str) -> None:
    if driver == "cni":
        need_plugins()
    elif (
        driver in USERMODE
        and subprocess.run(["which", driver], capture_output=True, timeout=60, check=False).returncode
    ):
        pytest.skip(f"{driver} is not installed")


@pytest.fixture(autouse=True)
def _way_out() -> Iterator[None]:
    with uplink(), veth("lan0", "lan1", ("10.91.0.1/24",)):
        yield
        with contextlib.suppress(FileNotFoundError):  # no nft, no rules
            no_rules()


WISHES = {
    "cni": NetworkConfig("lab", subnets=("10.92.0.0/24",)),
    "macvlan": NetworkConfig("lab", subnets=("10.91.0.0/24",), options={"parent": "lan0"}),
}


@contextlib.contextmanager
def network(engine: Engine, driver: str) -> Iterator[str]:
    """The name of a network of a driver."""
    need(driver)
    if driver not in WISHES:
        yield driver
        return
    engine.create_network(WISHES[driver], driver=driver)
    try:
        yield "lab"
    finally:
        engine.remove_network("lab")


@pytest.fixture
def engine(engine_dirs: object) -> Iterator[Engine]:
    with package.Engine(root=engine_dirs.root, run=engine_dirs.run) as made:  # type: ignore[attr-defined]
        yield made
        clear(made)


def serve(engine: Engine, name: str, network: str, **request: object) -> str:
    """A container that answers every connection at port 80 with its name; its id."""
    command = ("/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "echo", name)
    asked = RunRequest(IMAGE, command, name=name, network=network, **request)  # type: ignore[arg-type]
    return engine.run(asked).id


def answer(address: str, port: int) -> str:
    """What is said there; "" while nobody listens."""
    try:
        with socket.create_connection((address, port), timeout=10) as sock:
            said = b""
            while piece := sock.recv(64):
                said += piece
    except OSError:
        return ""
    return said.decode().strip()


@pytest.mark.parametrize("driver", DRIVERS)
def test_addresses_as_inspect_says(engine: Engine, driver: str) -> None:
    with network(engine, driver) as name:
        said = sh(engine, "/bin/busybox ip -o -4 address show eth0", image=IMAGE, network=name, timeout=60)
        assert said.code == 0, said.err
        id = serve(engine, "one", name)
        container = engine.container(id)
        inside = execute(engine, id, "/bin/busybox", "ip", "-o", "-4", "address", "show", "eth0").out
        assert container.addresses[0] in inside
        assert [one.reservation.request.sandbox_id for one in engine.network(name).attachments] == [id]
        engine.remove(id, force=True)
        assert not engine.network(name).attachments
    assert engine.doctor() == ()


def hosts(engine: Engine, container: str) -> str:
    return execute(engine, container, "/bin/busybox", "cat", "/etc/hosts").out


@pytest.mark.parametrize("driver", ["cni", "macvlan"])
def test_names_of_the_others(engine: Engine, driver: str) -> None:
    """Of those that are there when a container begins, and of those that come and go, without a loss of what it wrote itself."""
    with network(engine, driver) as name:
        serve(engine, "one", name, aliases=("uno",))
        assert execute(engine, "one", "/bin/sh", "-c", "echo 192.0.2.9 mine >>/etc/hosts").code == 0
        engine.run(RunRequest(IMAGE, ("/bin/busybox", "sleep", "1000"), name="two", network=name))
        for other in ("one", "uno", "one.lab", engine.container("one").id[:12]):
            assert f" {other}" in hosts(engine, "two").replace("\t", " ")
        ask = "/bin/busybox nc uno 80 </dev/null"
        until(lambda: execute(engine, "two", "/bin/sh", "-c", ask).out.strip() == "one", 30)
        address = engine.container("two").addresses[0].partition("/")[0]
        until(lambda: f"{address}\ttwo " in hosts(engine, "one"), 30)
        engine.remove("two", force=True)
        until(lambda: "two" not in hosts(engine, "one"), 30)
        assert "192.0.2.9 mine\n" in hosts(engine, "one")
        engine.remove("one", force=True)


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "macvlan"])
def test_a_published_port(engine: Engine, driver: str) -> None:
    with network(engine, driver) as name:
        id = serve(engine, "one", name, ports=(Port(80),))
        (port,) = engine.container(id).ports
        until(lambda: answer(HOST[0], port.host_port) == "one", 30)
        until(lambda: answer("127.0.0.1", port.host_port) == "one", 30)
        with pytest.raises(InUse, match=str(port.host_port)):
            serve(engine, "two", name, ports=(port,))
        engine.remove(id, force=True)
        assert answer("127.0.0.1", port.host_port) == ""
        id = serve(engine, "three", name, ports=(port,))
        until(lambda: answer("127.0.0.1", port.host_port) == "three", 30)
        engine.stop(id, timeout=0)
        engine.start(id)
        until(lambda: answer("127.0.0.1", port.host_port) == "three", 30)
        engine.remove(id, force=True)
    assert engine.doctor() == ()


@pytest.mark.parametrize("driver", ["cni", "macvlan"])
def test_neighbours_reach_each_other(engine: Engine, driver: str) -> None:
    with network(engine, driver) as name:
        one = serve(engine, "one", name)
        address = engine.container(one).addresses[0].partition("/")[0]

        def asks() -> bool:
            said = sh(engine, f"/bin/busybox nc -w 5 {address} 80 </dev/null", image=IMAGE, network=name, timeout=60)
            return said.out.strip() == "one"

        until(asks, 60)
        engine.remove(one, force=True)
    assert engine.doctor() == ()


def programs(engine: Wherry) -> list[str]:
    """Command lines of those that belong to an engine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(engine.dirs.run) in line and any(name in line for name in USERMODE):
                found.append(line)
    return found


def kill_engine(engine: Wherry) -> None:
    handle = os.pidfd_open(json.loads(engine("info", "--json").stdout)["engine"]["pid"])
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], 30)[0]
    finally:
        os.close(handle)


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "macvlan"])
def test_a_killed_engine_disturbs_nobody(wherry: Wherry, driver: str) -> None:
    """Ports go on to work, the next engine knows them, and nothing stays when the container goes."""
    need(driver)
    name = driver
    if driver == "cni":
        wherry("network", "create", "--driver", "cni", "--subnet", "10.92.0.0/24", "lab")
        name = "lab"
    command = ("/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "echo", "one")
    wherry("run", "-d", "--name", "one", "--network", name, "-p", "80", IMAGE, *command)
    port = int(wherry("port", "one", "80").stdout.split()[0].rpartition(":")[2])
    until(lambda: answer("127.0.0.1", port) == "one", 30)
    kill_engine(wherry)
    until(lambda: answer("127.0.0.1", port) == "one", 30)
    assert wherry("ps", "-q").stdout.split()
    until(lambda: answer("127.0.0.1", port) == "one", 30)
    said = wherry("run", "--rm", "--network", name, "-p", f"{port}:80", IMAGE, "/bin/busybox", "true", code=None)
    assert said.returncode == 125, said
    assert str(port) in said.stderr
    assert len(programs(wherry)) == (1 if driver in USERMODE else 0)
    wherry("rm", "-f", "one")
    assert not programs(wherry)
    if driver == "cni":
        wherry("network", "rm", "lab")
    wherry("doctor")


@pytest.mark.parametrize("driver", USERMODE)
def test_beside_a_bridge(engine: Engine, driver: str) -> None:
    """The first network leads out, whichever it is; ports go where they can."""
    need(driver)
    for first, second in (("bridge", driver), (driver, "bridge")):
        id = serve(engine, "one", first, networks=(EndpointConfig(second),), ports=(Port(80),))
        routes = execute(engine, id, "/bin/busybox", "ip", "route").out.splitlines()
        defaults = [line for line in routes if line.startswith("default")]
        assert len(defaults) == 2
        assert "dev eth0" in defaults[0], routes
        assert "dev eth1  metric 1" in defaults[1], routes
        (port,) = engine.container(id).ports
        until(lambda port=port: answer(HOST[0], port.host_port) == "one", 30)  # type: ignore[misc]
        engine.remove(id, force=True)
    assert engine.doctor() == ()


def test_a_killed_shim_disturbs_nobody(wherry: Wherry) -> None:
    """Its successor takes the program over, and ends it with the container."""
    need("pasta")
    command = ("/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "echo", "one")
    wherry("run", "-d", "--name", "one", "--network", "pasta", "-p", "80", IMAGE, *command)
    port = int(wherry("port", "one", "80").stdout.split()[0].rpartition(":")[2])
    handle = os.pidfd_open(json.loads(wherry("info", "--json").stdout)["shim"]["pid"])
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], 30)[0]
    finally:
        os.close(handle)
    until(lambda: answer("127.0.0.1", port) == "one", 30)
    assert wherry("ps", "-q").stdout.split()
    assert len(programs(wherry)) == 1
    wherry("rm", "-f", "one")
    assert not programs(wherry)
    wherry("doctor")


CONFIG = """\
version = 1
default = "standard"
[variant.standard]
store = "local"
snapshotter = ["overlayfs", "vfs"]
isolation = "namespaces"
network = "none"
[plugin.network.pasta]
process = true
[plugin.network.cni]
process = true
"""


@pytest.mark.parametrize("driver", ["pasta", "cni"])
def test_in_a_process_of_its_own(wherry: Wherry, driver: str, tmp_path: Path) -> None:
    need(driver)
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    name, env = driver, {"WHERRY_CONFIG": str(config)}
    if driver == "cni":
        wherry("network", "create", "--driver", "cni", "--subnet", "10.92.0.0/24", "lab", env=env)
        name = "lab"
    said = wherry("run", "--rm", "--network", name, "-p", "80", IMAGE, "/bin/busybox", "ip", "address", env=env)
    assert "inet 10." in said.stdout
    assert not programs(wherry)
    if driver == "cni":
        wherry("network", "rm", "lab", env=env)
    wherry("doctor", env=env)
