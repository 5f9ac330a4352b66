"""A network driver over a real shim, and programs in the network namespaces of its sandboxes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from wherry.testing.network import NetworkHarness

BOUND = 30.0


class Driven(NetworkHarness):
    """A harness with a look inside."""

    def inside(
        self, sandbox_id: str, *argv: str, check: bool = True, input: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a program in a sandbox's network namespace (nsenter(1))."""
        fd = self.shim.namespace(sandbox_id, "net")
        try:
            command = ["nsenter", f"--net=/proc/self/fd/{fd}", *argv]
            done = subprocess.run(command, capture_output=True, timeout=60, pass_fds=[fd], input=input, check=False)
        finally:
            os.close(fd)
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def socket(
        self,
        sandbox_id: str,
        family: socket.AddressFamily = socket.AF_INET,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> socket.socket:
        """A socket of a sandbox's network namespace."""
        made = socket.socket(family, kind, 0, self.shim.socket(sandbox_id, family, kind, 0))
        made.settimeout(BOUND)
        return made

    def addresses(self, sandbox_id: str, interface: str = "eth0") -> set[str]:
        said = self.inside(sandbox_id, "ip", "-j", "address", "show", "dev", interface).stdout
        return {f"{one['local']}/{one['prefixlen']}" for link in json.loads(said) for one in link["addr_info"]}


def echo(server: socket.socket, client: socket.socket, bound: tuple[str, int], address: tuple[str, int]) -> str:
    """server listens at bound, client connects to address and gets its own bytes back; whom the server saw. OSError when it can't."""
    with server, client:
        server.settimeout(BOUND)
        client.settimeout(BOUND)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(bound)
        if server.type == socket.SOCK_DGRAM:
            return _echo_datagram(server, client, address)
        server.listen()
        client.connect(address)
        accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(BOUND)
            client.sendall(b"word")
            accepted.sendall(accepted.recv(64))
        assert client.recv(64) == b"word"
        return str(peer[0])


def _echo_datagram(server: socket.socket, client: socket.socket, address: tuple[str, int]) -> str:
    """Datagrams may be lost: it asks again each second."""
    client.connect(address)
    server.settimeout(1)
    client.settimeout(1)
    end = time.monotonic() + BOUND
    while True:
        try:
            client.send(b"word")
            data, peer = server.recvfrom(64)
            server.sendto(data, peer)
            assert client.recv(64) == b"word"
            return str(peer[0])
        except OSError:  # also a refusal of one before it
            if time.monotonic() > end:
                raise


@contextlib.contextmanager
def driven(id: str, options: Mapping[str, Any] = {}) -> Iterator[Driven]:
    """A network driver by its id; skips where its probe refuses."""
    registration = importlib.import_module(f"wherry_plugins.network.{id}").wherry_network()
    directory = Path(tempfile.mkdtemp(prefix="wherry-", dir="/tmp"))
    directory.chmod(0o755)
    made = Driven(directory, "network", registration, options, with_shim=True)
    try:
        if reason := made.reason():
            pytest.skip(f"network.{id}: {reason}")
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def ip(*words: str) -> None:
    """ip(8) in the test's own namespace."""
    subprocess.run(["ip", *words], check=True, timeout=60)


@contextlib.contextmanager
def veth(name: str, peer: str, addresses: Sequence[str] = ()) -> Iterator[None]:
    """A pair that is up; addresses are the peer's."""
    ip("link", "add", name, "type", "veth", "peer", "name", peer)
    try:
        ip("link", "set", name, "up")
        ip("link", "set", peer, "up")
        for address in addresses:
            ip("address", "add", address, "dev", peer, *(["nodad"] if ":" in address else []))
        yield
    finally:
        ip("link", "del", name)


#: Two addresses of the host, by family; routers that nobody is lead out.
HOST, OUTSIDE = ("192.0.2.10", "2001:db8::10"), ("192.0.2.1", "2001:db8::1")


@contextlib.contextmanager
def uplink(*, six: bool = True) -> Iterator[None]:
    """Default routes in the test's namespace, over a veth pair; nobody is at their end."""
    with veth("up0", "up1", [f"{OUTSIDE[0]}/24", *([f"{OUTSIDE[1]}/64"] if six else [])]):
        ip("address", "add", f"{HOST[0]}/24", "dev", "up0")
        ip("route", "add", "default", "via", "192.0.2.254")
        if six:
            ip("address", "add", f"{HOST[1]}/64", "dev", "up0", "nodad")
            ip("-6", "route", "add", "default", "via", "2001:db8::254")
        yield


class Died(BaseException):
    """The engine is gone: nothing that follows happens either."""


def dying(patch: pytest.MonkeyPatch, wanted: int, steps: Sequence[tuple[Any, str]]) -> None:
    """kill -9 at the step wanted: from then on none of these happens.

    A step is the moment before a call of one of them (owner, name), or after it; they change something outside of the engine's memory.
    """
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen >= wanted:
            raise Died

    def stepping(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **keywords: Any) -> Any:
            count()
            answer = real(*arguments, **keywords)
            count()
            return answer

        return step

    for owner, name in steps:
        patch.setattr(owner, name, stepping(getattr(owner, name)))


def killed_everywhere(
    life: Callable[[], None], after: Callable[[int], None], steps: Sequence[tuple[Any, str]], every: int
) -> int:
    """Runs a life and kills it at each step, or at each of every so many, with after(step) following; how many steps there are."""
    step = 1
    while True:
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step, steps)
            try:
                life()
                return step
            except Died:
                pass
        after(step)
        step += 1 if os.environ.get("WHERRY_TESTS_ALL") else every
