"""netd's requests: what the engine tells and asks, as frames (wherry.linux.framing) in the order they are answered.

{"op": "...", ...} is answered by {"ok": value} or {"error": text}. "hello", "state", "borrow" and "stop" are for engines of other
versions, too: such a one takes over all that there is, ends netd and starts its own. Descriptors travel in pages with a tag each,
since a container may publish thousands of ports.

While an engine is connected netd stays for as long as there is a network, without one as long as there is a container.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from wherry.kit import framing
from wherry.kit.loop import IN
from wherry_plugins.network.bridge.netd import conntrack, forwarding, rules, tcp, udp
from wherry_plugins.network.bridge.netd.dns import Answers
from wherry_plugins.network.bridge.netd.libnftables import NftError
from wherry_plugins.network.bridge.netd.names import Names
from wherry_plugins.network.bridge.netd.resolver import Resolver
from wherry_plugins.network.bridge.netd.ruleset import Ruleset
from wherry_plugins.network.bridge.netd.shares import Shares
from wherry_plugins.network.bridge.netd.state import Endpoint, Network
from wherry_plugins.network.bridge.netd.tcp import TcpPort
from wherry_plugins.network.bridge.netd.udp import UdpPort
from wherry_plugins.network.bridge.netd.upstream import Upstream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from wherry.kit.loop import Loop, Timer

#: How long netd waits with nothing to do before it ends, in seconds.
IDLE = 2.0
#: The tag of a resolver's descriptor; that of a listener's is the index of its port.
RESOLVER = "resolver"
PAGE = 100


class RequestRefused(Exception):
    """A request that can't be fulfilled; the text is the answer."""


class Listeners:
    """The listeners of an endpoint, by tag."""

    def __init__(self) -> None:
        self.open: list[tuple[str, TcpPort | UdpPort]] = []

    def close(self) -> None:
        for _tag, port in self.open:
            port.close()
        self.open.clear()


class NetdServer:
    """All that the process has."""

    def __init__(self, loop: Loop, listener: socket.socket, version: str, table: str, path: str) -> None:
        self._loop = loop
        self._listener = listener
        self._version = version
        self._path = path
        self._ruleset = Ruleset(loop, table)
        self._names = Names()
        self._upstream = Upstream(loop)
        self._connections = Shares(tcp.MOST, tcp.MOST_OF_ONE, tcp.ALWAYS)
        self._senders = Shares(udp.MOST, udp.MOST_OF_ONE, udp.ALWAYS)
        self._answers = Answers(self._names, self._upstream)
        self._networks: dict[str, Network] = {}
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._published: dict[tuple[str, str], Listeners] = {}
        self._resolvers: dict[str, list[Resolver]] = {}
        self._engines: set[EngineConnection] = set()
        self._idle: Timer | None = None
        self._ended = False
        listener.setblocking(False)
        loop.add(listener.fileno(), IN, self._accept)
        self.settle()

    def _accept(self, _events: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # what else it may be, as EMFILE, lasts: the loop lets this handler rest
        _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        self._engines.add(EngineConnection(self, self._loop, sock))

    def gone(self, engine: EngineConnection) -> None:
        self._engines.discard(engine)
        if self._engines or self._endpoints:
            self.settle()
        else:
            self.end()

    def settle(self) -> None:
        """Ends after a while without anything to do, at once when nobody is there who might bring something."""
        if self._ended:
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._endpoints or (self._engines and self._networks):
            return
        self._idle = self._loop.later(IDLE, self.end)

    def end(self) -> None:
        """Leaves nothing behind. The socket goes first: whoever comes now starts another netd."""
        if self._ended:
            return
        self._ended = True
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        for published in self._published.values():
            published.close()
        for resolvers in self._resolvers.values():
            for resolver in resolvers:
                resolver.close()
        self._upstream.close()
        self._ruleset.close()
        self._loop.later(0, self._leave)  # who told it to stop gets an answer first

    def _leave(self) -> None:
        for engine in tuple(self._engines):
            engine.close()
        self._loop.stop()

    # requests

    def answer(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, list[int]]:
        """(value, descriptors that go with it, which stay ours). fds are the callee's; it takes what it keeps out of the list."""
        method = _OPS.get(message.get("op", ""))
        if method is None:
            raise RequestRefused(f"no such op {message.get('op')!r}")
        return method(self, message, fds)

    def _hello(self, _message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        return {"version": self._version, "pid": os.getpid()}, []

    def _network(self, message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        network = Network(message["network"])
        before = self._networks.get(network.name)
        forwarding.believe_no_router(network.interface)  # each time: the bridge may be a new one
        if before is None or before.record != network.record:
            if not network.internal:
                forwarding.enable(network.subnets)
            self._ruleset.add(rules.of_network(network))
            if before is not None:
                self._ruleset.delete(rules.of_network(before))
            self._networks[network.name] = network
            self._names.network(network)
            self.settle()
        self._ruleset.mend()
        return None, []

    def _forget_network(self, message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        network = self._networks.pop(message["name"], None)
        if network is not None:
            self._ruleset.delete(rules.of_network(network))
            self._names.forget_network(network.name)
            self.settle()
        return None, []

    def _endpoint(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, list[int]]:
        """A new one, or one that has changed; its listeners stay unless the ports are others, or new ones are lent with it.

        Those are in the same frame, so that an engine that dies in between leaves no endpoint without them.
        """
        endpoint = Endpoint(message["endpoint"])
        before = self._endpoints.get(endpoint.key)
        if before is None or before.record != endpoint.record:
            self._change(endpoint, before)
        tags = message["tags"]
        if any(tag != RESOLVER for tag in tags):
            self._published.pop(endpoint.key, Listeners()).close()
        if RESOLVER in tags:
            for resolver in self._resolvers.pop(endpoint.sandbox, []):
                resolver.close()
        self._take(endpoint, tags, fds)
        return None, []

    def _change(self, endpoint: Endpoint, before: Endpoint | None) -> None:
        self._ruleset.add(rules.of_endpoint(endpoint))
        if before is not None:
            self._ruleset.delete(rules.of_endpoint(before))
            if before.record["ports"] != endpoint.record["ports"]:
                self._published.pop(endpoint.key, Listeners()).close()
        self._endpoints[endpoint.key] = endpoint
        # Of one that had them before, and went while no netd was there: its senders would go on speaking to it.
        own = endpoint.addresses
        _forget_flows(endpoint, lambda flow: flow.asked != flow.answerer and flow.answerer not in own)
        self._names.add(endpoint)
        self.settle()

    def _lend(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, list[int]]:
        """More descriptors of an endpoint than its own frame had room for."""
        key = (message["sandbox"], message["network"])
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            raise RequestRefused(f"no endpoint of {key[0]} in {key[1]}")
        self._take(endpoint, message["tags"], fds)
        return None, []

    def _take(self, endpoint: Endpoint, tags: list[str], fds: list[int]) -> None:
        for tag in tags:
            fd = fds.pop(0)
            if tag == RESOLVER:
                held = self._resolvers.setdefault(endpoint.sandbox, [])
                held.append(Resolver(self._loop, self._answers, endpoint.sandbox, fd))
            else:
                published = self._published.setdefault(endpoint.key, Listeners())
                published.open.append((tag, self._listen(endpoint, int(tag), fd)))

    def _listen(self, endpoint: Endpoint, index: int, fd: int) -> TcpPort | UdpPort:
        port = endpoint.ports[index]
        key = endpoint.key

        def target(version: int) -> tuple[str, int]:
            """As the endpoint is now."""
            now = self._endpoints.get(key, endpoint)
            return now.address(version) or now.address(10 - version), port.container_port

        if port.protocol == "udp":
            return UdpPort(self._loop, fd, target, self._names.internal, self._senders, endpoint.sandbox)
        return TcpPort(self._loop, fd, target, self._names.internal, self._connections, endpoint.sandbox)

    def _forget(self, message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        key = (message["sandbox"], message["network"])
        endpoint = self._endpoints.pop(key, None)
        if endpoint is not None:
            self._ruleset.delete(rules.of_endpoint(endpoint))
            self._names.remove(endpoint)
            _forget_flows(endpoint, lambda flow: flow.answerer in endpoint.addresses)
            self._published.pop(key, Listeners()).close()
            if not any(sandbox == key[0] for sandbox, _network in self._endpoints):
                for resolver in self._resolvers.pop(key[0], []):
                    resolver.close()
            self.settle()
        return None, []

    def _state(self, _message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        """All networks and endpoints, as they were told."""
        return {
            "networks": [network.record for network in self._networks.values()],
            "endpoints": [endpoint.record for endpoint in self._endpoints.values()],
        }, []

    def _borrow(self, message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        """A page of the descriptors of an endpoint's listeners, or with network "" of a sandbox's resolvers, with their tags."""
        key = (message["sandbox"], message["network"])
        if key[1]:
            held = [(tag, port.socket.fileno()) for tag, port in self._published.get(key, Listeners()).open]
        else:
            held = [(RESOLVER, resolver.socket.fileno()) for resolver in self._resolvers.get(key[0], ())]
        page = held[message["from"] : message["from"] + PAGE]
        return {"tags": [tag for tag, _fd in page], "more": len(held) > message["from"] + PAGE}, [
            fd for _tag, fd in page
        ]

    def _check(self, _message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        """What differs in the packet filter from what should be there; it is then mended."""
        routed = [subnet for network in self._networks.values() if not network.internal for subnet in network.subnets]
        found = [*forwarding.missing(routed), *self._ruleset.differences()]
        if found:
            forwarding.enable(routed)
            self._ruleset.mend()
        return found, []

    def _stop(self, _message: dict[str, Any], _fds: list[int]) -> tuple[Any, list[int]]:
        self.end()
        return None, []


def _forget_flows(endpoint: Endpoint, wanted: Callable[[conntrack.Flow], bool]) -> None:
    """Those of them that were sent to the UDP ports that it publishes."""
    udp = {port.host_port for port in endpoint.ports if port.protocol == "udp"}
    if udp:
        conntrack.forget(lambda flow: flow.to_port in udp and wanted(flow))


_OPS = {
    "hello": NetdServer._hello,
    "network": NetdServer._network,
    "forget_network": NetdServer._forget_network,
    "endpoint": NetdServer._endpoint,
    "lend": NetdServer._lend,
    "forget": NetdServer._forget,
    "state": NetdServer._state,
    "borrow": NetdServer._borrow,
    "check": NetdServer._check,
    "stop": NetdServer._stop,
}


class EngineConnection:
    """A connection of one. An engine that takes no answers is dropped when too much waits for it; nobody else waits."""

    def __init__(self, server: NetdServer, loop: Loop, sock: socket.socket) -> None:
        self._server = server
        self._channel = framing.FrameChannel(loop, sock, self._answer, self._gone)

    def _answer(self, channel: framing.FrameChannel, message: dict[str, Any], fds: list[int]) -> None:
        lent: list[int] = []
        try:
            value, lent = self._server.answer(message, fds)
            answer = {"ok": value}
        except Exception as error:
            if not isinstance(error, RequestRefused | NftError):
                sys.excepthook(type(error), error, error.__traceback__)
            answer = {"error": str(error) or type(error).__name__}
        finally:
            for fd in fds:
                os.close(fd)
        channel.send(answer, lent)

    def _gone(self, _channel: framing.FrameChannel) -> None:
        self._server.gone(self)

    def close(self) -> None:
        self._channel.drain()
        self._channel.close()
