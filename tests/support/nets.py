"""Network namespaces made by hand: bridges of "the host" (this process's own namespace), containers on them, a neighbour outside."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from support.shims import Shimmed, shimmed
from wherry.api import Plan, Port, Sandbox, Stdio
from wherry.linux import namespaces
from wherry.linux.loop import Loop
from wherry_plugins.network.bridge.netd.client import Netd
from wherry_plugins.network.bridge.netd.server import NetdServer
from wherry_plugins.network.bridge.records import BridgeState, EndpointState

T = TypeVar("T")
BOUND = 30.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=BOUND)


def nft(command: str) -> str:
    done = subprocess.run(["nft", command], check=True, capture_output=True, text=True, timeout=BOUND)
    return done.stdout


def until(condition: Callable[[], Any]) -> Any:
    """Waits for condition to hold; what it answered."""
    end = time.monotonic() + BOUND
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
    return found


def inside(fd: int, function: Callable[[], T]) -> T:
    """What function answers in a thread that has entered a network namespace."""
    found: list[Any] = []

    def work() -> None:
        try:
            namespaces.setns(fd, namespaces.NEWNET)
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(BOUND * 2)
    assert found, "it hangs"
    value, error = found[0]
    if error is not None:
        raise error
    return value


class Machine:
    """A namespace with addresses: a container, or a neighbour of the host."""

    def __init__(self, name: str, ns: int, addresses: Sequence[str]) -> None:
        self.name = name
        self.ns = ns
        self.addresses = tuple(addresses)
        self.interface = f"v{name}"
        self.servers: list[Echo] = []
        self.resolves = False  # whether it has sockets of a resolver

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.ns}"

    def ip(self, *words: str) -> None:
        subprocess.run(
            ["nsenter", f"--net={self.path}", "ip", *words], check=True, capture_output=True, text=True, timeout=BOUND
        )

    def open(self, family: int, kind: int) -> socket.socket:
        made = inside(self.ns, lambda: socket.socket(family, kind))
        made.settimeout(BOUND)
        return made

    def bound(self, kind: int, address: str, port: int) -> socket.socket:
        sock = self.open(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        return sock

    def serve(self, port: int, kind: int = socket.SOCK_STREAM, address: str = "::") -> Echo:
        """Says its name and who asks to whoever comes."""
        server = Echo(self, self.bound(kind, address, port))
        self.servers.append(server)
        return server

    def ask(self, address: str, port: int, kind: int = socket.SOCK_STREAM, seconds: float = BOUND) -> str:
        """ "NAME of the server, address that it saw". OSError."""
        with self.open(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
            return ask(sock, address, port, seconds)

    def reaches(self, address: str, port: int, kind: int = socket.SOCK_STREAM, seconds: float = 0.5) -> bool:
        try:
            self.ask(address, port, kind, seconds)
        except OSError:
            return False
        return True


def ask(sock: socket.socket, address: str, port: int, seconds: float = BOUND) -> str:
    sock.settimeout(seconds)
    sock.connect((address, port))
    sock.send(b"?")
    return sock.recv(200).decode()


class Echo:
    """In a thread of its own."""

    def __init__(self, machine: Machine, sock: socket.socket) -> None:
        self._machine = machine
        self._socket = sock
        self.seen: list[str] = []
        self._stream = sock.type == socket.SOCK_STREAM
        if self._stream:
            sock.listen(200)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._socket.settimeout(0.1)
        self._closed = False
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed:
            try:
                if self._stream:
                    client, address = self._socket.accept()
                    with client:
                        client.settimeout(BOUND)
                        client.recv(100)
                        client.send(self._text(address[0]))
                else:
                    _data, address = self._socket.recvfrom(100)
                    self._socket.sendto(self._text(address[0]), address)
            except OSError:
                continue

    def _text(self, address: str) -> bytes:
        address = address.removeprefix("::ffff:")
        self.seen.append(address)
        return f"{self._machine.name},{address}".encode()

    def close(self) -> None:
        self._closed = True
        self._thread.join(BOUND)
        self._socket.close()


class Threads:
    """A shim whose netd is a thread of the test's own process, so that a test can take a step out of it."""

    def __init__(self, shim: Any) -> None:
        self._shim = shim
        self._threads: dict[str, threading.Thread] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shim, name)

    def spawn(self, id: str, _exec_id: str, plan: Plan, _stdio: Stdio) -> None:
        listener = socket.socket(fileno=os.dup(plan.fds[0]))
        version, table, path, _hub = plan.argv[-4:]

        def run() -> None:
            loop = Loop()
            NetdServer(loop, listener, version, table, path)
            loop.run()
            loop.close()

        self._threads[id] = thread = threading.Thread(target=run, name=id, daemon=True)
        thread.start()

    def list(self, id: str = "") -> Any:
        if id in self._threads:
            return [SimpleNamespace(status="running" if self._threads[id].is_alive() else "stopped")]
        return self._shim.list(id)

    def join(self) -> None:
        for thread in self._threads.values():
            thread.join(BOUND)
            assert not thread.is_alive(), "netd does not end"


class World:
    """A host with a shim and netd, which is a thread of this process or, as in real life, a process of its own."""

    def __init__(self, shim: Shimmed, threads: Threads | None) -> None:
        self.shim = shim
        self.threads = threads
        directory = shim.run / "network/bridge"
        directory.mkdir(parents=True)
        self.context = SimpleNamespace(id="network.bridge", run=directory, shim=threads or shim.client)
        self.netd = self.client()
        self.machines: dict[str, Machine] = {}
        self.bridges: list[str] = []
        self._open: list[socket.socket] = []

    def client(self) -> Netd:
        return Netd(self.context, "")  # type: ignore[arg-type]

    def bridge(self, name: str, *gateways: str, tell: bool = True, **options: Any) -> BridgeState:
        """gateways with prefix length."""
        ip("link", "add", name, "type", "bridge")
        self.bridges.append(name)
        for gateway in gateways:
            ip("address", "add", gateway, "dev", name, "nodad") if ":" in gateway else ip(
                "address", "add", gateway, "dev", name
            )
        ip("link", "set", name, "up")
        state = BridgeState(
            name=f"net-{name}", interface=name, subnets=tuple(map(subnet, gateways)),
            gateways=tuple(gateway.partition("/")[0] for gateway in gateways), **options,
        )  # fmt: skip
        if tell:
            self.netd.network(state)
        return state

    def machine(self, name: str, bridge: BridgeState | None, *addresses: str) -> Machine:
        """On a bridge, or with a link of its own to the host; the gateways, or the first address of the subnet, are its way out."""
        made = self.shim.client.create_sandbox(Sandbox(f"box-{name}"))
        machine = Machine(name, self.shim.client.namespace(made.id, "net"), [a.partition("/")[0] for a in addresses])
        self.machines[name] = machine
        ip("link", "add", f"h{name}", "type", "veth", "peer", "name", f"v{name}", "netns", machine.path)
        if bridge is not None:
            ip("link", "set", f"h{name}", "master", bridge.interface)
            # where frames of bridges pass the packet filter (br_netfilter), what is translated goes straight back
            ip("link", "set", "dev", f"h{name}", "type", "bridge_slave", "hairpin", "on")
        ip("link", "set", f"h{name}", "up")
        machine.ip("link", "set", f"v{name}", "up")
        for address in addresses:
            six = ["nodad"] if ":" in address else []
            machine.ip("address", "add", address, "dev", f"v{name}", *six)
        for gateway in bridge.gateways if bridge is not None else ():
            machine.ip("route", "add", "default", "via", gateway)
        return machine

    def endpoint(self, machine: Machine, bridge: BridgeState, *ports: Port, **options: Any) -> EndpointState:
        """Tells netd, with listeners for the ports and, the first time, the sockets of a resolver."""
        state = EndpointState(
            sandbox_id=f"box-{machine.name}", network=bridge.name, interface=f"h{machine.name}",
            addresses=tuple(f"{address}/24" for address in machine.addresses),
            names=options.pop("names", (machine.name,)), ports=ports, **options,
        )  # fmt: skip
        listeners = {port: tuple(sock.fileno() for sock in self.listeners(port)) for port in ports}
        self.netd.endpoint(state, () if machine.resolves else self.resolvers(machine), listeners)
        machine.resolves = True
        self.let_go()
        return state

    def listeners(self, port: Port) -> list[socket.socket]:
        kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
        made = []
        for address in [port.host_ip] if port.host_ip else ["0.0.0.0", "::"]:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            if ":" in address:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port.protocol == "tcp":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port.host_port))
            made.append(sock)
        self._open += made
        return made

    def resolvers(self, machine: Machine) -> tuple[int, ...]:
        made = [machine.bound(kind, "127.0.0.11", 53) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        self._open += made
        return tuple(sock.fileno() for sock in made)

    def let_go(self) -> None:
        for sock in self._open:
            sock.close()
        self._open.clear()

    def close(self) -> None:
        self.let_go()
        for machine in self.machines.values():
            for server in machine.servers:
                server.close()
        self.netd.stop()
        if self.threads is not None:
            self.threads.join()
        for machine in self.machines.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "delete", f"h{machine.name}")
            os.close(machine.ns)
        for bridge in self.bridges:
            ip("link", "delete", bridge)

    def outside(self, name: str = "out") -> Machine:
        """A neighbour of the host, 192.0.2.2 and 2001:db8::2; the host is .1 there."""
        machine = self.machine(name, None, "192.0.2.2/24", "2001:db8::2/64")
        ip("address", "add", "192.0.2.1/24", "dev", f"h{name}")
        ip("address", "add", "2001:db8::1/64", "dev", f"h{name}", "nodad")
        return machine

    def pid(self) -> int:
        """netd's."""
        (task,) = [task for task in self.shim.client.list() if ".netd." in task.id and task.status != "stopped"]
        return task.pid

    def log(self) -> str:
        path = Path(self.context.run / "netd.log")
        return path.read_text() if path.exists() else ""


def subnet(address: str) -> str:
    return str(ipaddress.ip_interface(address).network)


@contextlib.contextmanager
def world(*, process: bool = False) -> Iterator[World]:
    """process: netd is one of its own."""
    with shimmed() as shim:
        made = World(shim, None if process else Threads(shim.client))
        try:
            yield made
        finally:
            made.close()
        assert "Traceback" not in made.log(), made.log()
