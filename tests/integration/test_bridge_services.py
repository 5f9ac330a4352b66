"""Names, published ports, ways out and walls between networks: what containers on bridges can reach, and what they can't."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import dnslib
import pytest

import wherry
from support.engines import clear, engine_of_a_module
from support.outside import HOST, HOST6, OUTSIDE, OUTSIDE6, Outside, outside
from support.running import execute, until
from wherry.api import Container, EndpointConfig, Engine, InUse, Invalid, NetworkConfig, Port, RunRequest
from wherry_plugins.network.bridge.driver import BridgeNetwork

pytestmark = pytest.mark.shared
IMAGE = "host:/bin/busybox,/bin/sh"
BOUND = 30
SERVE = "mkdir -p /www; echo {0} >/www/index.html; exec /bin/busybox httpd -f -p {1} -h /www"


@pytest.fixture(scope="module")
def machine() -> Iterator[Outside]:
    with outside() as made:
        yield made


@pytest.fixture(scope="module")
def engine(machine: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        made.create_network(NetworkConfig("six", ipv6=True))
        made.create_network(NetworkConfig("lab"))
        yield made


@pytest.fixture(autouse=True)
def _nothing_stays(engine: Engine) -> Iterator[None]:
    yield
    clear(engine)
    assert engine.doctor() == ()


def start(engine: Engine, name: str, script: str = "exec /bin/busybox sleep 1000", **wishes: object) -> Container:
    script = script.replace("mkdir", "/bin/busybox mkdir")
    return engine.run(RunRequest(IMAGE, ("/bin/sh", "-c", script), name=name, remove=True, **wishes))  # type: ignore[arg-type]


def web(engine: Engine, name: str, number: int = 80, **wishes: object) -> Container:
    """A server that says its name, and listens when this returns."""
    made = start(engine, name, SERVE.format(name, number), **wishes)
    until(lambda: execute(engine, name, *get(f"127.0.0.1:{number}")).code == 0, BOUND)
    return made


def get(where: str, seconds: int = 10) -> tuple[str, ...]:
    return ("/bin/busybox", "wget", "-q", "-T", str(seconds), "-O", "-", f"http://{where}/")


def fetched(engine: Engine, client: str, where: str) -> str:
    """What a client gets."""
    return execute(engine, client, *get(where)).out.strip()


def refused(engine: Engine, client: str, where: str) -> bool:
    """Whether a client gets nothing, which after a second counts as never."""
    said = execute(engine, client, *get(where, 1))
    return said.code != 0 and not said.out


def host_gets(where: str, number: int) -> str:
    """What a process of the host gets by HTTP."""
    try:
        with socket.create_connection((where, number), BOUND) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while piece := sock.recv(4096):
                said += piece
    except OSError:
        return ""
    return said.rpartition(b"\r\n\r\n")[2].decode().strip()


def outside_gets(machine: Outside, where: str, seconds: int = 10) -> str:
    return machine.run(*get(where, seconds)).stdout.strip()


def port_of(container: Container) -> int:
    (port,) = container.ports
    return port.host_port


# names


def test_names_and_aliases(engine: Engine) -> None:
    web(engine, "server", network="lab", aliases=("db",))
    client = start(engine, "client", network="lab")
    short = engine.container("server").id[:12]
    assert [fetched(engine, client.id, name) for name in ("server", "db", short, "SERVER")] == ["server"] * 4
    assert refused(engine, client.id, "nobody")
    address = engine.container("server").addresses[0].partition("/")[0]
    said = execute(engine, client.id, "/bin/busybox", "nslookup", address).out
    assert "name = server" in said
    resolv = execute(engine, client.id, "/bin/busybox", "cat", "/etc/resolv.conf").out
    assert resolv.startswith("nameserver 127.0.0.11\n")


def test_a_name_goes_with_its_container(engine: Engine) -> None:
    web(engine, "server", network="lab")
    client = start(engine, "client", network="lab")
    assert fetched(engine, client.id, "server") == "server"
    engine.remove("server", force=True)
    assert execute(engine, client.id, "/bin/busybox", "nslookup", "server").code != 0


def test_names_are_those_of_shared_networks(engine: Engine) -> None:
    web(engine, "server", network="six")
    apart, both = (
        start(engine, "apart", network="lab"),
        start(engine, "both", network="lab", networks=(EndpointConfig("six"),)),
    )
    assert refused(engine, apart.id, "server")
    assert fetched(engine, both.id, "server") == "server"
    engine.disconnect("both", "six")
    assert refused(engine, both.id, "server")
    engine.connect("apart", EndpointConfig("six"))
    assert fetched(engine, apart.id, "server") == "server"


def test_port_53_is_the_containers(engine: Engine) -> None:
    """A server of its own may listen there on every address, whatever it sets; names are known all the same."""
    web(engine, "server", network="lab")
    client = start(engine, "client", network="lab")
    shim = engine.state.shim  # type: ignore[attr-defined]
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(fileno=shim.socket(client.id, socket.AF_INET, kind | socket.SOCK_CLOEXEC, 0)) as own:
            own.bind(("0.0.0.0", 53))
            if kind == socket.SOCK_STREAM:
                own.listen()
            assert fetched(engine, client.id, "server") == "server"


def test_names_by_tcp(engine: Engine) -> None:
    """What does not fit a datagram is asked again by TCP."""
    address = web(engine, "server", network="lab").addresses[0].partition("/")[0]
    client = start(engine, "client", network="lab")
    shim = engine.state.shim  # type: ignore[attr-defined]
    question = dnslib.DNSRecord.question("server").pack()
    with socket.socket(
        fileno=shim.socket(client.id, socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    ) as sock:
        sock.settimeout(BOUND)
        sock.connect(("127.0.0.11", 53))
        sock.sendall(len(question).to_bytes(2, "big") + question)
        length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
        answer = dnslib.DNSRecord.parse(sock.recv(length, socket.MSG_WAITALL))
    assert [str(record.rdata) for record in answer.rr] == [address]


def test_names_where_the_first_network_has_none(engine: Engine) -> None:
    """As docker's: a container of the built-in network that is put in another one knows the names there, at once."""
    web(engine, "server", network="lab")
    client = start(engine, "client", network="bridge")
    assert "127.0.0.11" not in execute(engine, client.id, "/bin/busybox", "cat", "/etc/resolv.conf").out
    engine.connect("client", EndpointConfig("lab"))
    assert fetched(engine, client.id, "server") == "server"


SERVER = """
import sys
from dnslib import RR
from dnslib.server import BaseResolver, DNSServer
class One(BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        if str(request.q.qname) == "far.example.":
            reply.add_answer(*RR.fromZone("far.example. 60 A 192.0.2.7"))
        else:
            reply.header.rcode = 3
        return reply
DNSServer(One(), address=sys.argv[1], port=53).start()
"""


def test_other_names_are_asked_elsewhere(engine: Engine, machine: Outside) -> None:
    """By netd, at the server that the user names, from the host; for an internal network by nobody."""
    with machine.running(sys.executable, "-c", SERVER, OUTSIDE):
        client = start(engine, "client", network="lab", dns=(OUTSIDE,))
        until(lambda: "192.0.2.7" in execute(engine, client.id, "/bin/busybox", "nslookup", "far.example").out, BOUND)
        engine.create_network(NetworkConfig("cellar", internal=True))
        inner = start(engine, "inner", network="cellar", dns=(OUTSIDE,))
        assert "192.0.2.7" not in execute(engine, inner.id, "/bin/busybox", "nslookup", "far.example").out
        engine.connect("inner", EndpointConfig("bridge"))  # which has no names, but a way out
        assert "192.0.2.7" in execute(engine, inner.id, "/bin/busybox", "nslookup", "far.example").out
        engine.disconnect("inner", "bridge")
        assert "192.0.2.7" not in execute(engine, inner.id, "/bin/busybox", "nslookup", "far.example").out
        engine.remove("inner", force=True)
        engine.remove_network("cellar")


# published ports


@pytest.mark.parametrize("network", ["bridge", "lab"])
def test_a_published_port_is_to_be_had_from_everywhere(engine: Engine, machine: Outside, network: str) -> None:
    number = port_of(web(engine, "server", network=network, ports=(Port(80),)))
    assert host_gets("127.0.0.1", number) == "server"
    assert host_gets("::1", number) == "server"
    assert host_gets(HOST, number) == "server"
    assert outside_gets(machine, f"{HOST}:{number}") == "server"
    for name in ("bridge", "lab"):
        client = start(engine, f"client-{name}", network=name)
        assert fetched(engine, client.id, f"{HOST}:{number}") == "server", name
    assert fetched(engine, "server", f"{HOST}:{number}") == "server", "itself"


def test_a_published_port_by_ipv6(engine: Engine, machine: Outside) -> None:
    number = port_of(web(engine, "server", network="six", ports=(Port(80),)))
    assert host_gets("::1", number) == "server"
    assert host_gets(HOST6, number) == "server"
    assert outside_gets(machine, f"[{HOST6}]:{number}") == "server"
    assert outside_gets(machine, f"{HOST}:{number}") == "server"


def test_a_loopback_publish_is_for_the_host_alone(engine: Engine, machine: Outside) -> None:
    number = port_of(web(engine, "server", network="lab", ports=(Port(80, host_ip="127.0.0.1"),)))
    assert host_gets("127.0.0.1", number) == "server"
    assert host_gets(HOST, number) == ""
    assert outside_gets(machine, f"{HOST}:{number}", 1) == ""
    assert machine.run("ip", "route", "add", "127.0.0.0/9", "via", HOST, "dev", "wan0").returncode == 0
    assert outside_gets(machine, f"127.0.0.1:{number}", 1) == ""
    assert machine.run("ip", "route", "delete", "127.0.0.0/9").returncode == 0


def test_one_address_of_the_host(engine: Engine, machine: Outside) -> None:
    number = port_of(web(engine, "server", network="lab", ports=(Port(80, host_ip=HOST),)))
    assert host_gets(HOST, number) == outside_gets(machine, f"{HOST}:{number}") == "server"
    assert host_gets("127.0.0.1", number) == ""
    with pytest.raises(Invalid, match=r"203\.0\.113\.9"):
        start(engine, "other", network="lab", ports=(Port(80, host_ip="203.0.113.9"),))


def in_netns(engine: Engine, container: Container) -> socket.socket:
    """A UDP socket of the container's network namespace."""
    shim = engine.state.shim  # type: ignore[attr-defined]
    return socket.socket(fileno=shim.socket(container.id, socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0))


def test_udp(engine: Engine) -> None:
    """From loopback, by the host's address, and from another container; answers come from where the question went."""
    server = start(engine, "server", network="lab", ports=(Port(7, "udp"),))
    client = start(engine, "client", network="bridge")
    number = port_of(server)
    with (
        in_netns(engine, server) as service,
        in_netns(engine, client) as other,
        socket.socket(type=socket.SOCK_DGRAM) as own,
    ):
        service.bind(("0.0.0.0", 7))
        for sock, where in ((own, "127.0.0.1"), (own, HOST), (other, HOST)):
            service.settimeout(BOUND)
            sock.settimeout(BOUND)
            for said in (b"one", b"two", b"x" * 1400):
                sock.sendto(said, (where, number))
                heard, peer = service.recvfrom(2000)
                assert heard == said
                service.sendto(heard[::-1], peer)
                assert sock.recvfrom(2000) == (said[::-1], (where, number))


def test_a_taken_port_is_told_before_anything_starts(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        for host_ip in ("", "127.0.0.1"):
            with pytest.raises(InUse, match=str(number)):
                start(engine, "server", network="lab", ports=(Port(80, host_ip=host_ip, host_port=number),))
    assert engine.containers(all=True) == ()
    made = start(engine, "server", network="lab", ports=(Port(80, host_port=number),))
    assert port_of(made) == number
    with pytest.raises(InUse, match=str(number)):
        start(engine, "second", network="lab", ports=(Port(80, host_port=number),))
    with pytest.raises(InUse):
        start(engine, "third", network="lab", ports=(Port(80, "udp", "", 7777), Port(81, "udp", "", 7777)))
    engine.remove("server", force=True)
    assert port_of(start(engine, "second", network="lab", ports=(Port(80, host_port=number),))) == number


def test_ports_are_published_where_they_can_be(engine: Engine) -> None:
    engine.create_network(NetworkConfig("cellar", internal=True))
    with pytest.raises(Invalid, match="internal"):
        start(engine, "server", network="cellar", ports=(Port(80),))
    number = port_of(web(engine, "server", network="cellar", networks=(EndpointConfig("lab"),), ports=(Port(80),)))
    assert host_gets("127.0.0.1", number) == "server"
    engine.remove("server", force=True)
    engine.remove_network("cellar")


def test_ports_move_with_a_disconnect_and_back(engine: Engine) -> None:
    """The host's port stays the same, as whoever uses it knows it; TCP, UDP and IPv6."""
    wish = (Port(80), Port(81, "udp"), Port(80, host_ip="::1"))
    server = web(engine, "server", network="lab", networks=(EndpointConfig("bridge"),), ports=wish)
    number = server.ports[0].host_port
    assert host_gets("127.0.0.1", number) == "server"
    engine.disconnect("server", "lab")
    assert engine.container("server").ports == server.ports
    assert engine.network("lab").attachments == ()
    assert host_gets("127.0.0.1", number) == host_gets("::1", server.ports[2].host_port) == "server"
    assert engine.doctor() == ()
    engine.connect("server", EndpointConfig("lab"))  # that changes nothing: they stay where they are
    assert engine.container("server").ports == server.ports
    engine.disconnect("server", "bridge")
    assert engine.container("server").ports == server.ports
    assert host_gets("127.0.0.1", number) == "server"
    engine.disconnect("server", "lab")  # nothing is left that could publish them
    assert engine.container("server").ports == ()
    engine.connect("server", EndpointConfig("lab"))
    again = engine.container("server").ports
    assert len(again) == 3
    assert host_gets("127.0.0.1", again[0].host_port) == "server"


def test_a_port_that_is_taken_while_it_moves(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container has left the network all the same, and the error says that its port is lost."""
    server = web(engine, "server", network="lab", networks=(EndpointConfig("bridge"),), ports=(Port(80),))
    detach, takers = BridgeNetwork.detach, []

    def snatched(self: BridgeNetwork, sandbox_id: str, network: str) -> None:
        detach(self, sandbox_id, network)
        if network == "lab" and not takers:
            takers.append(socket.create_server(("", port_of(server))))

    monkeypatch.setattr(BridgeNetwork, "detach", snatched)
    with pytest.raises(InUse, match="is published no longer"):
        engine.disconnect("server", "lab")
    for taker in takers:
        taker.close()
    assert engine.container("server").networks == ("bridge",)
    assert engine.container("server").ports == ()
    assert engine.network("bridge").attachments[0].reservation.ports == ()
    assert engine.doctor() == ()


def test_ports_of_network_none_wait_for_another(engine: Engine) -> None:
    server = web(engine, "server", network="none", ports=(Port(80),))
    assert server.ports == ()
    engine.connect("server", EndpointConfig("lab"))
    assert host_gets("127.0.0.1", port_of(engine.container("server"))) == "server"


# ways out, and walls


def test_out_by_the_hosts_address(engine: Engine, machine: Outside) -> None:
    client = start(engine, "client", network="six")
    said = execute(engine, client.id, "/bin/busybox", "ping", "-c", "1", "-W", "10", OUTSIDE)
    assert said.code == 0, said.out
    assert execute(engine, client.id, "/bin/busybox", "ping", "-c", "1", "-W", "10", OUTSIDE6).code == 0


def greet(server: socket.socket) -> None:
    peer, _address = server.accept()
    with peer:
        peer.sendall(b"the host\n")


def test_host_gateway_leads_to_the_host(engine: Engine) -> None:
    """From an internal network too, by its bridge; and never to the container itself."""
    engine.create_network(NetworkConfig("cellar", internal=True))
    with socket.create_server(("", 0)) as server:
        server.settimeout(BOUND)
        for network in ("lab", "six", "bridge", "cellar"):
            client = start(engine, network, network=network, extra_hosts=("me:host-gateway",))
            thread = threading.Thread(target=greet, args=(server,), daemon=True)
            thread.start()
            ask = f"/bin/busybox nc me {server.getsockname()[1]} </dev/null"
            assert execute(engine, client.id, "/bin/sh", "-c", ask).out == "the host\n"
            thread.join(BOUND)
    alone = start(engine, "alone", network="none", extra_hosts=("me:host-gateway",))
    hosts = execute(engine, alone.id, "/bin/busybox", "cat", "/etc/hosts").out
    assert "203.0.113.1\tme\n" in hosts
    engine.remove("cellar", force=True)
    engine.remove_network("cellar")


def test_networks_are_apart(engine: Engine) -> None:
    server = web(engine, "server", network="six")
    client = start(engine, "client", network="lab")
    for address in server.addresses:
        bare = address.partition("/")[0]
        assert refused(engine, client.id, f"[{bare}]" if ":" in bare else bare)
        assert execute(engine, client.id, "/bin/busybox", "ping", "-c", "1", "-W", "1", bare).code != 0


def test_an_internal_network_is_closed(engine: Engine, machine: Outside) -> None:
    engine.create_network(NetworkConfig("cellar", internal=True))
    web(engine, "server", network="cellar")
    client, other = start(engine, "client", network="cellar"), start(engine, "other", network="lab")
    assert fetched(engine, client.id, "server") == "server"
    add = f"/bin/busybox ip route add default via {engine.network('cellar').config.gateways[0]}"
    engine.exec(client.id, wherry.api.ExecRequest(("/bin/sh", "-c", add), privileged=True))
    until(lambda: "default" in execute(engine, client.id, "/bin/busybox", "ip", "route").out, BOUND)
    assert execute(engine, client.id, "/bin/busybox", "ping", "-c", "1", "-W", "1", OUTSIDE).code != 0
    address = engine.container("server").addresses[0].partition("/")[0]
    assert refused(engine, other.id, address)
    for container in ("client", "server"):
        engine.remove(container, force=True)
    engine.remove_network("cellar")


def test_no_talk_between_containers_where_none_is_wished(engine: Engine) -> None:
    engine.create_network(NetworkConfig("mute", options={"icc": "false"}))
    web(engine, "server", network="mute")
    client = start(engine, "client", network="mute")
    assert refused(engine, client.id, "server")
    for container in ("client", "server"):
        engine.remove(container, force=True)
    engine.remove_network("mute")
