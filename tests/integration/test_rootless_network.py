"""Networks of an ordinary user: the bridges in a hub of that user's own, which pasta connects."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support import leaks
from support.engines import Wherry
from support.running import SLOW, until

IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/bin/ip,/usr/bin/busybox,/usr/bin/getent"
OUTSIDE = "198.51.100.7"
SERVER = "busybox mkdir /www; echo served > /www/index.html; exec busybox httpd -f -p 80 -h /www"
SECONDS = int(5 * SLOW)
pytestmark = [
    pytest.mark.parametrize("who", ["user"], indirect=True),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="there is no /dev/net/tun"),
]


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from outside\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def server_bind(self) -> None:  # without a look at the address's name, which nobody knows
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = OUTSIDE, self.server_address[1]


@pytest.fixture
def outside() -> Iterator[str]:
    """A server on an address of this network namespace, which has a route out and is the host to everybody else. Its URL."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=30 * SLOW, capture_output=True)

    ip("link", "add", "out0", "type", "veth", "peer", "name", "out1")
    try:
        for name in ("out0", "out1"):
            ip("link", "set", name, "up")
        ip("addr", "add", f"{OUTSIDE}/24", "dev", "out0")
        ip("route", "add", "default", "via", "198.51.100.1")
        server = Server((OUTSIDE, 0), Hello)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{OUTSIDE}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join(30 * SLOW)
    finally:
        ip("link", "delete", "out0")


def program(name: str) -> list[int]:
    """Processes of that name."""
    found = []
    for entry in leaks.processes():
        pid = int(entry.split()[0])
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip().startswith(name):
                found.append(pid)
        except OSError:
            continue
    return found


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30 * SLOW) as answer:
        text: str = answer.read().decode()
    return text


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def serve(wherry: Wherry, network: str, *more: str) -> None:
    wherry("run", "-d", "--name", "web", "--network", network, *more, IMAGE, "sh", "-c", SERVER)
    ask = ("exec", "web", "sh", "-c", f"busybox wget -T {SECONDS} -qO- http://127.0.0.1/")
    until(lambda: wherry(*ask, code=None).stdout == "served\n", 30)


def get(wherry: Wherry, network: str, url: str, *more: str) -> str:
    """What a container in a network is answered, or why not."""
    script = f"busybox wget -T {2 * SECONDS} -qO- {url} 2>&1"
    return wherry("run", "--rm", "--network", network, *more, IMAGE, "sh", "-c", script, code=None).stdout


def test_names_ports_and_the_way_out(wherry: Wherry, outside: str) -> None:
    wherry("network", "create", "one")
    wherry("network", "create", "two")
    wherry("network", "create", "--internal", "inner")
    serve(wherry, "one", "-p", "80", "--network-alias", "www")
    for name in ("web", "www"):
        assert get(wherry, "one", f"http://{name}/") == "served\n"
    assert "bad address" in get(wherry, "two", "http://web/")
    addresses = [
        line.split()[-1].rpartition(":") for line in wherry("port", "web").stdout.splitlines() if "0.0.0.0" in line
    ]
    for host in ("127.0.0.1", OUTSIDE):
        assert fetched(f"http://{host}:{addresses[0][2]}/") == "served\n"
    assert get(wherry, "one", outside) == "from outside\n"
    assert get(wherry, "bridge", outside) == "from outside\n"
    assert "from outside" not in get(wherry, "inner", outside)
    host = f"http://me:{outside.rpartition(':')[2]}"
    for network in ("one", "pasta"):
        assert get(wherry, network, host, "--add-host", "me:host-gateway") == "from outside\n"
    wherry("rm", "-f", "web")
    wherry("network", "rm", "one", "two", "inner")
    assert wherry("doctor").stdout == "all is well\n"


def test_a_container_is_not_in_the_hosts_network_and_hosts_have_no_link_of_it(wherry: Wherry) -> None:
    before = sorted(name for _index, name in socket.if_nameindex())
    wherry("network", "create", "one")
    serve(wherry, "one")
    pid = int(wherry("inspect", "-f", "{{.State.Pid}}", "web").stdout)
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert sorted(name for _index, name in socket.if_nameindex()) == before
    (pasta,) = program("pasta")
    assert os.stat(f"/proc/{pasta}").st_uid != 0
    wherry("rm", "-f", "web")


def test_a_killed_pasta_is_started_again(wherry: Wherry, outside: str) -> None:
    """At once, by the engine that has started it and by one that came later; nothing else has to happen first."""
    wherry("network", "create", "one")
    serve(wherry, "one")
    ask = ("exec", "web", "sh", "-c", f"busybox wget -T {SECONDS} -qO- {outside}")
    for _engine in range(2):
        (pasta,) = program("pasta")
        time.sleep(1.5)  # one that ends at once is left alone
        os.kill(pasta, signal.SIGKILL)
        until(lambda gone=pasta: len(program("pasta")) == 1 and gone not in program("pasta"), 30)
        until(lambda: wherry(*ask, code=None).stdout == "from outside\n", 30)
        wherry("engine", "restart")
        assert get(wherry, "one", "http://web/") == "served\n"  # the new one has looked
    assert get(wherry, "one", outside) == "from outside\n"
    assert len(program("pasta")) == 1
    wherry("rm", "-f", "web")


def test_a_lost_shim_and_engine_lose_no_network(wherry: Wherry, outside: str) -> None:
    port = free_port()
    wherry("network", "create", "one")
    serve(wherry, "one", "-p", f"127.0.0.1:{port}:80")
    info = json.loads(wherry("info", "--json").stdout)
    for name in ("shim", "engine"):
        os.kill(info[name]["pid"], signal.SIGKILL)
    until(lambda: not any(pid in program("python") for pid in (info["shim"]["pid"], info["engine"]["pid"])), 30)
    assert fetched(f"http://127.0.0.1:{port}/") == "served\n"
    assert get(wherry, "one", "http://web/") == "served\n"
    assert get(wherry, "one", outside) == "from outside\n"
    assert len(program("pasta")) == 1
    wherry("rm", "-f", "web")
    assert wherry("doctor").stdout == "all is well\n"


@pytest.mark.skipif(shutil.which("slirp4netns") is None, reason="slirp4netns is not installed")
def test_slirp4netns_where_there_is_no_pasta(wherry: Wherry, outside: str, place: Path) -> None:
    slirp = shutil.which("slirp4netns")
    assert slirp is not None
    (place / "slirp4netns").symlink_to(slirp)
    wherry("engine", "start", env={"PATH": str(place)})
    wherry("network", "create", "one")
    serve(wherry, "one")
    assert get(wherry, "one", outside) == "from outside\n"
    assert get(wherry, "one", "http://web/") == "served\n"
    assert (len(program("slirp4netns")), program("pasta")) == (1, [])
    wherry("rm", "-f", "web")


def test_a_network_of_its_own_by_pasta(wherry: Wherry, outside: str) -> None:
    done = wherry(
        "run",
        "--rm",
        "--network",
        "pasta",
        IMAGE,
        "sh",
        "-c",
        f"ip -o -4 addr show dev eth0; busybox wget -qO- {outside}",
    )
    assert "10.87." in done.stdout
    assert done.stdout.endswith("from outside\n")
    until(lambda: program("pasta") == [], 30)
