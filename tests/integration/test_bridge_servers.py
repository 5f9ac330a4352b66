"""Real servers on user-defined networks, with clients in other containers that reach them by name, and on published ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running import execute, run, until
from wherry.api import Bind, EndpointConfig, Engine, NetworkConfig, Port, RunRequest

BOUND = 60
CLIENT = "host:/bin/busybox,/bin/sh"
NGINX = """
daemon off;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; listen [::]:80; location / { return 200 "from nginx to $remote_addr\\n"; } }
}
"""
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), Path("/nowhere")).parent


def need(*programs: str | Path) -> None:
    for program in programs:
        if not os.access(program, os.X_OK):
            pytest.skip(f"{program} is not installed")


@pytest.fixture
def net(engine: Engine) -> Iterator[str]:
    yield engine.create_network(NetworkConfig("app", ipv6=True)).config.name
    for container in engine.containers(all=True):
        engine.remove(container.id, force=True)
    engine.remove_network("app")


def test_redis(engine: Engine, net: str) -> None:
    need("/usr/bin/redis-server", "/usr/bin/redis-cli")
    image = "host:/usr/bin/redis-server,/usr/bin/redis-cli,/bin/sh"
    command = ("redis-server", "--save", "", "--protected-mode", "no")
    made = engine.run(RunRequest(image, command, name="cache", network=net, ports=(Port(6379),)))

    def said(*words: str) -> str:
        return run(engine, "redis-cli", "-h", "cache", *words, image=image, network=net).out.strip()

    until(lambda: said("ping") == "PONG", BOUND)
    assert said("set", "key", "value") == "OK"
    assert said("get", "key") == "value"
    with socket.create_connection(("127.0.0.1", made.ports[0].host_port), BOUND) as sock:
        sock.sendall(b"GET key\r\n")
        assert sock.recv(100) == b"$5\r\nvalue\r\n"


def test_nginx(engine: Engine, net: str, tmp_path: Path) -> None:
    need("/usr/sbin/nginx")
    (tmp_path / "nginx.conf").write_text(NGINX)
    (tmp_path / "nginx.conf").chmod(0o644)
    (tmp_path / "passwd").write_text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    (tmp_path / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    binds = (
        Bind("bind", str(tmp_path / "nginx.conf"), "/nginx.conf", ("ro",)),
        Bind("bind", str(tmp_path / "passwd"), "/etc/passwd", ("ro",)),
        Bind("bind", str(tmp_path / "group"), "/etc/group", ("ro",)),
        Bind("tmpfs", "tmpfs", "/tmp"),
        Bind("tmpfs", "tmpfs", "/var/log/nginx"),
        Bind("tmpfs", "tmpfs", "/var/lib/nginx"),
    )
    request = RunRequest(
        "host:/usr/sbin/nginx", ("nginx", "-c", "/nginx.conf", "-g", "user nobody nogroup;"), name="web", network=net,
        aliases=("www",), ports=(Port(80),), mounts=binds,
    )  # fmt: skip
    made = engine.run(request)
    client = engine.run(RunRequest(CLIENT, ("/bin/busybox", "sleep", "1000"), name="client", network=net)).id

    def got(where: str) -> str:
        return execute(engine, client, "/bin/busybox", "wget", "-q", "-T", "10", "-O", "-", f"http://{where}/").out

    until(lambda: got("www").startswith("from nginx to "), BOUND)
    mine = {address.partition("/")[0] for address in engine.container(client).addresses}
    assert got("www").split()[-1] in mine
    for address in made.addresses:
        bare = address.partition("/")[0]
        assert got(f"[{bare}]" if ":" in bare else bare).split()[-1] in mine
    for where in ("127.0.0.1", "::1"):
        with socket.create_connection((where, made.ports[0].host_port), BOUND) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while piece := sock.recv(4096):
                said += piece
        assert b"from nginx to " in said


def test_postgres(engine: Engine, net: str, tmp_path: Path) -> None:
    need(POSTGRES / "initdb", POSTGRES / "postgres", POSTGRES / "psql", "/bin/busybox")
    version = POSTGRES.parent.name
    share = Path(f"/usr/share/postgresql/{version}")
    programs = ",".join(str(POSTGRES / name) for name in ("initdb", "postgres", "psql"))
    image = f"host:{programs},/bin/sh,/usr/bin/env"
    (tmp_path / "passwd").write_text("root:x:0:0:root:/:/bin/sh\nadmin:x:1000:1000::/data:/bin/sh\n")
    binds = (
        Bind("bind", str(tmp_path / "passwd"), "/etc/passwd", ("ro",)),
        Bind("bind", str(share), str(share), ("ro",)),
        Bind("bind", str(POSTGRES.parent / "lib"), str(POSTGRES.parent / "lib"), ("ro",)),
        Bind("tmpfs", "tmpfs", "/data", ("mode=1777",)),
    )
    script = (
        f"{POSTGRES}/initdb -D /data/db -U admin -A trust --no-sync --no-locale && "
        "echo 'host all all all trust' >>/data/db/pg_hba.conf && "
        f"exec {POSTGRES}/postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories= -c fsync=off -c max_connections=10"
    )
    wish = {"user": "1000", "mounts": binds, "env": ("HOME=/data",)}
    engine.run(RunRequest(image, ("/bin/sh", "-c", script), name="db", network=net, **wish))  # type: ignore[arg-type]

    def said(sql: str) -> str:
        psql = (str(POSTGRES / "psql"), "-h", "db", "-U", "admin", "-d", "postgres", "-At", "-c", sql)
        return run(engine, *psql, image=image, network=net, **wish).out.strip()

    until(lambda: said("select 40 + 2") == "42", BOUND)


def test_a_front_and_a_back(engine: Engine, net: str) -> None:
    """The usual three: what is in front reaches what is behind by a network that clients are not in."""
    engine.create_network(NetworkConfig("back", internal=True))
    serve = "/bin/busybox mkdir /www; echo {0} >/www/index.html; exec /bin/busybox httpd -f -p 80 -h /www"

    def start(name: str, script: str, *networks: str) -> str:
        joins = tuple(map(EndpointConfig, networks[1:]))
        return engine.run(
            RunRequest(CLIENT, ("/bin/sh", "-c", script), name=name, network=networks[0], networks=joins, remove=True)
        ).id

    start("store", serve.format("rows"), "back")
    front = start("front", serve.format("pages"), net, "back")
    client = start("client", "exec /bin/busybox sleep 1000", net)

    def got(id: str, name: str) -> str:
        return execute(engine, id, "/bin/busybox", "wget", "-q", "-T", "5", "-O", "-", f"http://{name}/").out.strip()

    until(lambda: (got(front, "store"), got(client, "front")) == ("rows", "pages"), BOUND)
    assert got(client, "store") == ""
    for name in ("store", "front", "client"):
        engine.remove(name, force=True)
    engine.remove_network("back")
