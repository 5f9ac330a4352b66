"""netd as a process: started when needed, ended when not, killed, left by its engine, and what it weighs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nets import BOUND, Machine, World, ask, inside, nft, until, world
from wherry.api import FailedPrecondition, Port, Sandbox, Unavailable
from wherry.linux import caps
from wherry_plugins.network.bridge.netd import client, starting
from wherry_plugins.network.bridge.netd.client import Netd
from wherry_plugins.network.bridge.records import BridgeState, EndpointState

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def here() -> Iterator[World]:
    with world(process=True) as made:
        yield made


def web(here: World, *ports: Port) -> tuple[BridgeState, Machine]:
    net = here.bridge("br-a", "10.77.1.1/24")
    machine = here.machine("web", net, "10.77.1.2/24")
    machine.serve(80)
    here.endpoint(machine, net, *(ports or (Port(80, "tcp", "127.0.0.1", 8080),)))
    return net, machine


def served(seconds: float = 1) -> bool:
    """While netd is away connections wait: whoever holds the listener is not netd alone."""
    try:
        with socket.socket() as sock:
            return ask(sock, "127.0.0.1", 8080, seconds) == "web,10.77.1.1"
    except OSError:
        return False


def resolves(machine: Machine, seconds: float = 1) -> bool:
    """Whether its resolver knows the name "web"."""
    question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01"
    try:
        with machine.open(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)
            sock.connect(("127.0.0.11", 53))
            sock.send(question)
            return sock.recv(500).endswith(bytes([10, 77, 1, 2]))
    except OSError:
        return False


def tables(here: World) -> bool:
    return here.netd.table in nft("list tables")


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_it_is_started_when_needed_and_ends_by_itself(here: World) -> None:
    assert not here.netd.path.exists()
    here.netd.forget("nobody", "nowhere")
    here.netd.forget_network("nowhere")
    here.netd.check()
    assert here.netd.known() == {}
    assert not here.netd.path.exists()
    net, machine = web(here)
    pid = here.pid()
    assert served(BOUND)
    assert resolves(machine, BOUND)
    assert here.netd.known() == {("box-web", net.name): (2, 1)}
    here.netd.forget("box-web", net.name)
    assert tables(here)
    here.netd.forget_network(net.name)
    until(lambda: gone(pid))
    assert not tables(here)
    assert not here.netd.path.exists()
    here.netd.network(net)
    assert here.pid() != pid


def test_stop_lets_it_rest(here: World) -> None:
    net, machine = web(here)
    pid = here.pid()
    here.netd.stop()
    assert gone(pid)
    assert not tables(here)
    assert not served()
    assert [task for task in here.shim.client.list() if task.status != "stopped"] == []
    here.netd.stop()
    here.netd.network(net)
    machine.resolves = False  # they are gone, as all that it was told
    here.endpoint(machine, net, Port(80, "tcp", "127.0.0.1", 8080))
    assert served(BOUND)


@pytest.mark.parametrize("beside", ["nothing", "a call"])
def test_killed_it_is_there_again(here: World, beside: str) -> None:
    net, machine = web(here)
    os.kill(here.pid(), signal.SIGKILL)
    if beside == "a call":
        here.netd.network(net)
    until(served)
    until(lambda: resolves(machine))
    here.netd.check("box-web", net.name)
    here.netd.forget("box-web", net.name)
    assert not served()
    here.netd.forget_network(net.name)
    until(lambda: not tables(here))


def test_twin_nobody_watches(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Netd, "_watch", lambda self, sock, _connection: sock.close())
    net, _machine = web(here)
    pid = here.pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    assert not served()
    here.netd.network(net)  # the next call
    assert served(BOUND)


def test_a_new_engine_finds_all_of_it(here: World) -> None:
    net, machine = web(here)
    pid = here.pid()
    here.netd.close()
    here.netd = new = here.client()
    assert served(BOUND)
    assert resolves(machine, BOUND)
    assert new.known() == {("box-web", net.name): (2, 1)}
    assert here.pid() == pid
    new.network(net)
    port = Port(80, "tcp", "127.0.0.1", 8080)
    new.endpoint(EndpointState("box-web", net.name, "hweb", ("10.77.1.2/24",), names=("web",), ports=(port,)))
    assert served(BOUND)
    os.kill(pid, signal.SIGKILL)  # what was got back is as good as what was given
    until(served)
    until(lambda: resolves(machine))


@pytest.mark.parametrize("first", ["a question", "a network"])
def test_an_engine_of_another_version_has_a_netd_of_its_own(
    here: World, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """It takes over what there is."""
    net, machine = web(here)
    pid = here.pid()
    here.netd.close()
    for module in (client, starting):
        monkeypatch.setattr(module, "__version__", "9.9.9")
    here.netd = new = here.client()
    if first == "a question":
        assert new.known() == {("box-web", net.name): (2, 1)}
    else:
        new.network(net)
    assert here.pid() != pid
    assert served(BOUND)
    assert resolves(machine, BOUND)
    new.check("box-web", net.name)


def both_killed(here: World) -> Netd:
    """A new engine's client, after netd and its engine were lost."""
    pid = here.pid()
    here.netd.close()
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    here.netd = here.client()
    return here.netd


def test_both_killed_is_told(here: World) -> None:
    net, _machine = web(here)
    new = both_killed(here)
    assert tables(here)
    assert new.known() == {}
    with pytest.raises(FailedPrecondition, match="netd does not know it"):
        new.check("box-web", net.name)
    new.sweep()
    assert not tables(here)
    assert not new.path.exists()


def test_a_killed_ones_table_is_swept_by_an_undo(here: World) -> None:
    net, _machine = web(here)
    new = both_killed(here)
    new.forget("box-web", net.name)
    until(lambda: not tables(here))


def test_without_containers_it_goes_with_its_engine(here: World) -> None:
    net, _machine = web(here)
    pid = here.pid()
    here.netd.forget("box-web", net.name)
    here.netd.close()
    until(lambda: gone(pid))
    assert not tables(here)


def test_with_a_container_it_stays(here: World) -> None:
    net, _machine = web(here)
    pid = here.pid()
    here.netd.close()
    assert served(BOUND)
    assert here.pid() == pid
    here.netd = here.client()
    here.netd.forget("box-web", net.name)
    here.netd.forget_network(net.name)
    until(lambda: gone(pid))


def test_in_a_hub(here: World) -> None:
    """A sandbox's network namespace, as for users who may not touch the host's."""
    here.shim.client.create_sandbox(Sandbox("hub"))
    fd = here.shim.client.namespace("hub", "net")
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    before = switch.read_text() if switch.exists() else ""
    netd = Netd(here.context, "hub")  # type: ignore[arg-type]
    try:
        netd.network(BridgeState("net", "br-x", ("10.77.9.0/24",), ("10.77.9.1",)))
        rules = subprocess.run(
            ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "nft", "list", "tables"],
            check=True, capture_output=True, text=True, timeout=30,
        ).stdout  # fmt: skip
        assert netd.table in rules
        assert netd.table not in nft("list tables")
        if before:  # the hub is ours alone, the host is not
            assert inside(fd, switch.read_text) == "0\n"
            assert switch.read_text() == before
        netd.stop()
        here.shim.client.remove_sandbox("hub")
    finally:
        netd.stop()
        os.close(fd)


def test_a_second_listener_for_a_changed_port(here: World) -> None:
    net, machine = web(here)
    machine.serve(81)
    port = Port(81, "tcp", "127.0.0.1", 8081)
    here.endpoint(machine, net, port)
    assert not served()
    with socket.socket() as sock:
        assert ask(sock, "127.0.0.1", 8081) == "web,10.77.1.1"


def test_what_it_weighs(here: World) -> None:
    web(here)
    status = Path(f"/proc/{here.pid()}/status").read_text()
    (rss,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert rss < 26 << 10, f"{rss} KiB"
    assert "Threads:\t1\n" in status


def test_what_it_may_do(here: World) -> None:
    """Whoever broke it by what a container may send would not have all that root has."""
    _net, machine = web(here)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{here.pid()}/status").read_text().splitlines() if "\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == caps.mask(["CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"])
    assert int(status["CapInh"], 16) == 0
    assert served(BOUND)
    assert resolves(machine, BOUND)


def test_its_process_loads_no_more_than_it_uses() -> None:
    places = starting.places()
    code = starting.BOOT.replace(".main import main\n", ".main import main as _\n").replace(
        "main(version, table, path, hub)", ""
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code + "print(*sorted(sys.modules))", *places, "0", "t", "p", ""],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = set(done.stdout.split())
    assert "wherry_plugins.network.bridge.netd.server" in found
    heavy = {
        "asyncio",
        "attr",
        "attrs",
        "cattrs",
        "inspect",
        "logging",
        "loguru",
        "pluggy",
        "pyroute2",
        "ssl",
        "subprocess",
    }
    assert {name.partition(".")[0] for name in found} & heavy == set()
    parts = {name.removeprefix("wherry.linux.") for name in found if name.startswith("wherry.linux.")}
    assert parts <= {"caps", "channel", "framing", "loop", "pidfd", "process", "syscall"}
    kit = {name.removeprefix("wherry.kit.") for name in found if name.startswith("wherry.kit.")}
    assert kit <= {"framing", "loop", "networks", "networks.netlink", "processes"}
    assert {name for name in found if name.startswith("wherry.")} == {
        "wherry.linux",
        "wherry.kit",
        *(f"wherry.linux.{part}" for part in parts),
        *(f"wherry.kit.{part}" for part in kit),
    }


class Dying:
    """Takes connections and resets them, as a process does that was killed a moment ago."""

    def __init__(self, here: World, times: int) -> None:
        self._real = here.netd._starter.dial
        self._left = times

    def dial(self) -> socket.socket | None:
        if not self._left:
            return self._real()
        self._left -= 1
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours


def test_one_that_is_about_to_end_takes_a_connection(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.netd._starter, "dial", Dying(here, 3).dial)
    web(here)
    assert served(BOUND)


def test_twin_without_another_try(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ATTEMPTS", (0.0, 0.0))
    monkeypatch.setattr(here.netd._starter, "dial", Dying(here, 3).dial)
    with pytest.raises(Unavailable):
        here.bridge("br-a", "10.77.1.1/24")


def test_one_that_can_not_start_says_why(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ATTEMPTS", (0.0, 0.1))
    here.netd._starter.log.write_text("what one before it said\n")
    monkeypatch.setattr(starting, "BOOT", "raise SystemExit()")
    with pytest.raises(Unavailable) as caught:
        here.netd.network(BridgeState("n", "br-n", ("10.77.1.0/24",)))
    assert "what one before it said" not in str(caught.value)
    monkeypatch.setattr(starting, "BOOT", "raise SystemExit('libnftables.so.1 is missing')")
    with pytest.raises(Unavailable, match=r"netd: libnftables\.so\.1 is missing; see "):
        here.netd.network(BridgeState("n", "br-n", ("10.77.1.0/24",)))
    here.netd.path.unlink()


#: Put before netd's own start: the process is gone at one of its steps, before or after a transaction or an answer; once.
KILLED = """
import os
from wherry_plugins.network.bridge.netd import elements, libnftables, server

def dying():
    try:
        left = int(open(path + ".step").read())
        os.unlink(path + ".step")
    except FileNotFoundError:
        return
    def step():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
    def around(owner, name):
        real = getattr(owner, name)
        def stepping(*arguments):
            step()
            value = real(*arguments)
            step()
            return value
        setattr(owner, name, stepping)
    around(libnftables.Nft, "run")
    around(elements.Elements, "_change")
    around(server.EngineConnection, "_answer")
dying()
"""


@pytest.mark.parametrize(
    "step", range(1, 41) if os.environ.get("WHERRY_TESTS_ALL") else (1, 3, 6, 9, 12, 15, 18, 21, 25)
)
def test_killed_at_a_step(here: World, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Whoever tells netd something does not notice, and nothing is lost or left."""
    boot = starting.BOOT.replace("from wherry_plugins", f"{KILLED}from wherry_plugins", 1)
    monkeypatch.setattr(starting, "BOOT", boot)
    Path(f"{here.netd.path}.step").write_text(str(step))
    net, machine = web(here)
    other = here.machine("oth", net, "10.77.1.3/24")
    here.endpoint(other, net, Port(80, "tcp", "", 8081))
    here.netd.check("box-web", net.name)
    here.netd.forget("box-oth", net.name)
    until(served)
    until(lambda: resolves(machine))
    here.netd.check("box-web", net.name)
    assert "8081" not in nft(f"list table inet {here.netd.table}")
    here.netd.forget("box-web", net.name)
    here.netd.forget_network(net.name)
    here.netd.stop()
    assert not tables(here)
    assert not here.netd.path.exists()
    assert len([task for task in here.shim.client.list() if ".netd." in task.id]) == 2, "it was not killed"


def test_the_shim_is_killed(here: World) -> None:
    """netd goes on, and the next shim knows when it ends."""
    net, _machine = web(here)
    pid = here.pid()
    os.kill(here.shim.client.pid, signal.SIGKILL)
    here.netd.network(net)
    assert served(BOUND)
    assert here.pid() == pid
    here.netd.stop()
    assert gone(pid)
    here.shim.listen_again()
