"""The engine's side of netd: starts it, tells it what there is, and starts it again with all of it when it was killed.

Whatever was told stays known here, with duplicates of the descriptors, until it is forgotten. An engine that is new asks a netd
that has lived on for both. So either of the two may die at any time; when both have, the caller brings everything again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from wherry import __version__
from wherry.api import Context, Error, FailedPrecondition, Port, Unavailable
from wherry.kit import framing
from wherry_plugins.network.bridge.netd.starting import Starter
from wherry_plugins.network.bridge.records import BridgeState, EndpointState

_RESOLVER = "resolver"
_PAGE = 100
_ATTEMPTS = (0.0, 0.0, 0.02, 0.1, 0.5, 2.0)  # seconds before each

Key = tuple[str, str]
Tagged = list[tuple[str, int]]


class _Disconnected(Exception):
    """The connection broke off, or nobody was there."""


class Netd:
    """netd of one hub: hub is the sandbox whose network namespace has the bridges, "" is the host's. Thread-safe.

    Calls raise Unavailable when netd can't be started or does not answer, FailedPrecondition when it refuses.
    """

    def __init__(self, context: Context, hub: str) -> None:
        self._starter = Starter(context, hub)
        self.table = self._starter.table
        self.path = self._starter.path
        self._lock = threading.RLock()
        self._networks: dict[str, dict[str, Any]] = {}
        self._endpoints: dict[Key, dict[str, Any]] = {}
        self._listeners: dict[Key, Tagged] = {}
        self._resolvers: dict[str, Tagged] = {}
        self._socket: socket.socket | None = None
        self._reader: framing.Reader | None = None
        self._watched: socket.socket | None = None  # the watcher's, which closes it
        self._connections = 0  # their number tells a watcher whether its own still counts
        self._asked = False  # whether a netd that lived on has been asked what it has

    # what it is told

    def network(self, network: BridgeState) -> None:
        """A network whose bridge is up; a repeat mends what others have done to its rules."""
        with self._lock:
            record = _plain(network)
            self._networks[network.name] = record
            try:
                self._call({"op": "network", "network": record})
            except FailedPrecondition:
                del self._networks[network.name]
                raise

    def forget_network(self, name: str) -> None:
        """Nothing happens when it is not known."""
        with self._lock:
            self._networks.pop(name, None)
            self._undo({"op": "forget_network", "name": name})

    def endpoint(
        self, endpoint: EndpointState, resolvers: Sequence[int] = (), listeners: Mapping[Port, Sequence[int]] = {}
    ) -> None:
        """A container's place in a network that is known.

        resolvers: bound sockets, UDP and TCP, of the container's namespace; listeners: of each port, those that are bound to it in
        the hub. They stay the caller's. Without any, those that came before, from this engine or the one before it, stay in use.
        """
        key = (endpoint.sandbox_id, endpoint.network)
        with self._lock:
            self._ask()
            before = self._endpoints.get(key)
            self._endpoints[key] = record = _plain(endpoint)
            tagged = self._keep(key, endpoint, resolvers, listeners)
            try:
                self._call(*self._telling(key, record, tagged))
            except FailedPrecondition:
                if before is None:
                    self._let_go(key)
                else:
                    self._endpoints[key] = before
                    if listeners:
                        _close(self._listeners.pop(key, []))
                raise

    def forget(self, sandbox_id: str, network: str) -> None:
        """Nothing happens when it is not known."""
        with self._lock:
            self._let_go((sandbox_id, network))
            self._undo({"op": "forget", "sandbox": sandbox_id, "network": network})

    # what it knows

    def known(self) -> dict[Key, tuple[int, int]]:
        """For each endpoint how many sockets of its resolver and of its listeners are held, by this engine or by netd."""
        with self._lock:
            self._ask()
            return {
                key: (len(self._resolvers.get(key[0], ())), len(self._listeners.get(key, ())))
                for key in self._endpoints
            }

    def check(self, sandbox_id: str = "", network: str = "") -> None:
        """FailedPrecondition says what differs: of an endpoint, and of all rules, which are mended then."""
        with self._lock:
            self._ask()
            if sandbox_id and (sandbox_id, network) not in self._endpoints:
                raise FailedPrecondition(f'sandbox "{sandbox_id}"', f'netd does not know it in network "{network}"')
            found = self._call({"op": "check"})[0] if self._endpoints or self._networks else []
        if found:
            raise FailedPrecondition("rules of the bridge networks", "; ".join(found), "they are made anew")

    # its life

    def sweep(self) -> None:
        """Ends what a killed netd has left, its table, when nothing is to be kept."""
        with self._lock:
            self._ask()
            if not self._endpoints and not self._networks:
                self.stop()

    def stop(self) -> None:
        """Ends netd, its rules and all that it is told; it rests until the next call."""
        with self._lock:
            try:
                if self.path.exists():
                    self._forget_all()
                    self._call({"op": "stop"})
            finally:
                self._rest()
            self._starter.await_end()

    def close(self) -> None:
        """This engine's end: netd goes on where there are containers."""
        with self._lock:
            self._rest()

    def _rest(self) -> None:
        self._forget_all()
        self._disconnect()
        self._connections += 1

    # descriptors

    def _keep(
        self, key: Key, endpoint: EndpointState, resolvers: Sequence[int], listeners: Mapping[Port, Sequence[int]]
    ) -> Tagged:
        """Duplicates, instead of those before them; what is to be lent."""
        lent: Tagged = []
        if resolvers:
            _close(self._resolvers.pop(key[0], []))
            self._resolvers[key[0]] = [(_RESOLVER, os.dup(fd)) for fd in resolvers]
            lent += self._resolvers[key[0]]
        if listeners:
            _close(self._listeners.pop(key, []))
            index = {port: str(number) for number, port in enumerate(endpoint.ports)}
            self._listeners[key] = [(index[port], os.dup(fd)) for port, fds in listeners.items() for fd in fds]
            lent += self._listeners[key]
        return lent

    def _let_go(self, key: Key) -> None:
        self._endpoints.pop(key, None)
        _close(self._listeners.pop(key, []))
        if not any(sandbox == key[0] for sandbox, _network in self._endpoints):
            _close(self._resolvers.pop(key[0], []))

    def _forget_all(self) -> None:
        for key in tuple(self._endpoints):
            self._let_go(key)
        self._networks.clear()

    @staticmethod
    def _telling(key: Key, record: dict[str, Any], tagged: Tagged) -> Iterator[dict[str, Any]]:
        """The requests that tell an endpoint and lend its descriptors, a page each; "_fds" is what travels along."""
        for at in range(0, max(1, len(tagged)), _PAGE):
            page = tagged[at : at + _PAGE]
            message: dict[str, Any] = {"tags": [tag for tag, _fd in page], "_fds": [fd for _tag, fd in page]}
            if at == 0:
                yield {"op": "endpoint", "endpoint": record, **message}
            else:
                yield {"op": "lend", "sandbox": key[0], "network": key[1], **message}

    # the connection

    def _call(self, *messages: dict[str, Any]) -> tuple[Any, list[int]]:
        """The answer to the last of some requests; netd is started where there is none.

        One that is about to end, or was killed a moment ago, may still take a connection and then reset it.
        """
        failure = ""
        for pause in _ATTEMPTS:
            time.sleep(pause)
            try:
                self._connect(start=True)
                return self._exchange(messages)
            except _Disconnected as error:
                self._disconnect()
                failure = str(error)
        raise Unavailable("netd", self._starter.last_words() or failure, f'see "{self._starter.log}"')

    def _undo(self, message: dict[str, Any]) -> None:
        """A request that takes something away: where no netd is, and none has been killed, there is nothing to take."""
        if self._socket is not None or self.path.exists():
            self._call(message)

    def _ask(self) -> None:
        """Learns from a netd that has lived on what it has, once."""
        if self._asked:
            return
        try:
            self._connect(start=False)
        except _Disconnected:
            self._disconnect()
        self._asked = True
        if self._endpoints and self._socket is None:  # it was of another version, and has ended
            self._call({"op": "hello"})

    def _exchange(self, messages: Sequence[dict[str, Any]]) -> tuple[Any, list[int]]:
        """All are sent before the first answer is read."""
        sock, reader = self._socket, self._reader
        assert sock is not None
        assert reader is not None
        refusal = ""
        value: Any = None
        fds: list[int] = []
        try:
            for message in messages:
                framing.send(sock, {k: v for k, v in message.items() if k != "_fds"}, message.get("_fds", ()))
            for _message in messages:
                frame = reader.next()
                if frame is None:
                    raise _Disconnected("it ended")
                answer, fds = frame
                value = answer.get("ok")
                refusal = refusal or answer.get("error", "")
        except (OSError, framing.FrameError) as error:
            raise _Disconnected(str(error)) from None
        if refusal:
            raise FailedPrecondition("netd", refusal, f'see "{self._starter.log}"')
        return value, fds

    def _connect(self, *, start: bool) -> None:
        """_Gone when nobody answers and none is to be started."""
        if self._socket is not None:
            return
        sock = self._starter.dial()
        if sock is None:
            if not start:
                raise _Disconnected("nobody answers")
            self._starter.spawn()
            sock = self._starter.dial()
            if sock is None:
                raise _Disconnected("it did not start")
        self._socket, self._reader = sock, framing.Reader(sock)
        self._connections += 1
        self._agree()
        self._asked = True
        self._watched = self._starter.dial()
        if self._watched is not None:
            threading.Thread(
                target=self._watch, args=(self._watched, self._connections), name="netd-watch", daemon=True
            ).start()

    def _disconnect(self) -> None:
        sock, self._socket = self._socket, None
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        if sock is not None:
            sock.close()
        watched, self._watched = self._watched, None
        if watched is not None:
            with contextlib.suppress(OSError):
                watched.shutdown(socket.SHUT_RDWR)

    def _agree(self) -> None:
        """Brings netd and this side together: what the other one lacks. One of another version is ended: _Gone."""
        version = self._exchange([{"op": "hello"}])[0]["version"]
        there = self._exchange([{"op": "state"}])[0]
        networks = {record["name"]: record for record in there["networks"]}
        endpoints = {(record["sandbox_id"], record["network"]): record for record in there["endpoints"]}
        if not self._asked:
            self._adopt(networks, endpoints)
        if version != __version__:
            self._asked = True
            self._exchange([{"op": "stop"}])
            raise _Disconnected(f"it was of version {version}")
        for key in endpoints.keys() - self._endpoints.keys():
            self._exchange([{"op": "forget", "sandbox": key[0], "network": key[1]}])
        for name in networks.keys() - self._networks.keys():
            self._exchange([{"op": "forget_network", "name": name}])
        for name, record in self._networks.items():
            if networks.get(name) != record:
                self._exchange([{"op": "network", "network": record}])
        lent: set[str] = set()
        for key, record in self._endpoints.items():
            if endpoints.get(key) != record:
                tagged = self._listeners.get(key, [])
                if key not in endpoints and key[0] not in lent:
                    lent.add(key[0])
                    tagged = [*self._resolvers.get(key[0], []), *tagged]
                self._exchange(list(self._telling(key, record, tagged)))

    def _adopt(self, networks: Mapping[str, dict[str, Any]], endpoints: Mapping[Key, dict[str, Any]]) -> None:
        """Takes over what an engine before this one has told."""
        for name, record in networks.items():
            self._networks.setdefault(name, record)
        for key, record in endpoints.items():
            self._endpoints.setdefault(key, record)
            if key not in self._listeners:
                self._listeners[key] = self._borrow(*key)
            if key[0] not in self._resolvers:
                self._resolvers[key[0]] = self._borrow(key[0], "")

    def _borrow(self, sandbox: str, network: str) -> Tagged:
        found: Tagged = []
        while True:
            request = {"op": "borrow", "sandbox": sandbox, "network": network, "from": len(found)}
            page, fds = self._exchange([request])
            found += zip(page["tags"], fds, strict=True)
            if not page["more"]:
                return found

    def _watch(self, sock: socket.socket, connection: int) -> None:
        """Waits for netd's end; where containers need it, it is started again."""
        with sock:
            sock.settimeout(None)
            with contextlib.suppress(OSError):
                sock.recv(1)
        for pause in (0.0, 0.1, 0.5, 2.0, 5.0):
            time.sleep(pause)
            with self._lock:
                if self._connections != connection:
                    return  # somebody else noticed, or it was stopped
                self._disconnect()
                if not self._endpoints:
                    return
                try:
                    self._connect(start=True)
                    return
                except (Error, OSError, _Disconnected):
                    self._disconnect()
                    connection = self._connections


def _plain(record: BridgeState | EndpointState) -> dict[str, Any]:
    """As JSON has it, so that what comes back from netd compares equal."""
    return {
        name: [attrs.asdict(item) if attrs.has(type(item)) else item for item in value]
        if isinstance(value, tuple)
        else value
        for name, value in attrs.asdict(record, recurse=False).items()
    }


def _close(tagged: Tagged) -> None:
    for _tag, fd in tagged:
        os.close(fd)


__all__ = ["Netd"]
