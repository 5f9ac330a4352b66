"""wherry network, wherry port and the network options of run, against a real engine."""

from __future__ import annotations

import json
import socket
from typing import Any

from support.running import until

IMAGE = "host:/bin/busybox,/bin/sh"
SLEEP = (IMAGE, "/bin/busybox", "sleep", "1000")


def test_a_networks_life(wherry: Any) -> None:
    identifier = wherry(
        "network", "create", "--subnet", "10.70.0.0/24", "--ip-range", "10.70.0.128/25", "--label", "team=a", "-o", "mtu=1400", "lab"
    ).stdout.strip()  # fmt: skip
    assert len(identifier) == 64
    assert wherry("network", "create", "lab", code=1).stderr.startswith('wherry: network "lab": ')
    rows = [line.split() for line in wherry("network", "ls").stdout.splitlines()]
    assert rows[0] == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [identifier[:12], "lab", "bridge", "local"] in rows
    assert wherry("network", "ls", "-q", "--filter", "label=team=a").stdout == identifier[:12] + "\n"
    assert wherry("network", "ls", "--filter", "name=la", "--format", "{{.Name}} {{.Driver}}").stdout == "lab bridge\n"
    (shown,) = json.loads(wherry("network", "inspect", "lab").stdout)
    created = wherry("network", "ls", "--filter", "name=lab", "--format", "{{.CreatedAt}}").stdout
    assert created[:10] == shown["Created"][:10] > "2020"
    assert (shown["Id"], shown["Driver"], shown["Internal"]) == (identifier, "bridge", False)
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.70.0.0/24", "Gateway": "10.70.0.1", "IPRange": "10.70.0.128/25"}]
    wherry("run", "-d", "--name", "one", "--network", "lab", "--network-alias", "uno", "--ip", "10.70.0.200", *SLEEP)
    assert wherry(
        "network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}", "lab"
    ).stdout == ("one 10.70.0.200/24\n")
    assert 'is used by container "one"; ' in wherry("network", "rm", "lab", code=1).stderr
    wherry("network", "create", "side")
    wherry("network", "connect", "--alias", "due", "side", "one")
    names = json.loads(wherry("inspect", "-f", "{{json .NetworkSettings.Networks}}", "one").stdout)
    assert names["side"]["Aliases"] == ["due"]
    assert names["lab"]["IPAddress"] == "10.70.0.200"
    wherry("network", "disconnect", "lab", "one")
    assert wherry("ps", "--format", "{{.Names}} {{.Networks}}").stdout == "one side\n"
    for filters in ("until=24h", "label=other", "label!=team"):
        assert wherry("network", "prune", "-f", "--filter", filters).stdout == ""
    assert 'did you mean "until"?' in wherry("network", "prune", "-f", "--filter", "untl=24h", code=1).stderr
    assert wherry("network", "prune", "-f").stdout == "Deleted Networks:\nlab\n"
    wherry("rm", "-f", "one")
    assert wherry("network", "rm", "side").stdout == "side\n"
    assert wherry("network", "rm", "side", code=1).stderr.startswith('wherry: network "side": ')
    wherry("network", "rm", "-f", "side")
    assert "built in" in wherry("network", "rm", "bridge", code=1).stderr


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number: int = sock.getsockname()[1]
        return number


def test_ports(wherry: Any) -> None:
    number = free()
    script = "/bin/busybox mkdir /www; echo hi >/www/index.html; exec /bin/busybox httpd -f -p 80 -h /www"
    wherry(
        "run", "-d", "--name", "web", "-p", f"127.0.0.1:{number}:80", "-p", "53/udp", "-p", "[::1]::81", IMAGE, "/bin/sh", "-c", script
    )  # fmt: skip
    assert wherry("port", "web", "80").stdout == f"127.0.0.1:{number}\n"
    lines = wherry("port", "web").stdout.splitlines()
    assert [line.split(" -> ")[0] for line in lines] == ["80/tcp", "53/udp", "53/udp", "81/tcp"]
    assert lines[3].split(" -> ")[1].startswith("[::1]:")
    assert wherry("port", "web", "99", code=1).stderr.startswith('wherry: port "99": ')
    assert f"127.0.0.1:{number}->80/tcp" in wherry("ps", "--format", "{{.Ports}}").stdout

    def served() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", number), 30) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"200 OK" in sock.recv(4096)
        except OSError:
            return False

    until(served, 30)
    taken = wherry("run", "--rm", "-p", f"{number}:80", *SLEEP, code=125).stderr
    assert taken.startswith(f'wherry: port "{number}/tcp": is taken on the host')
    wherry("stop", "-t", "0", "web")
    assert wherry("port", "web").stdout == ""
    assert wherry("ps", "-a", "--format", "{{.Ports}}").stdout == "\n"
    wherry("rm", "web")


def test_networks_by_options(wherry: Any) -> None:
    wherry("network", "create", "lab")
    wherry("network", "create", "--ipv6", "six")
    show = "/bin/busybox ip -o address show; /bin/busybox cat /etc/hosts /etc/resolv.conf"
    said = wherry(
        "run", "--rm", "--network", "lab", "--network", "name=six,alias=both", "--mac-address", "02:00:00:00:00:33",
        "--add-host", "far:192.0.2.1", "--add-host", "me:host-gateway", "--dns", "192.0.2.53", "--dns-search", "a.example",
        "--dns-option", "ndots:2", "--hostname", "here", IMAGE, "/bin/sh", "-c", show,
    ).stdout  # fmt: skip
    assert "eth0" in said
    assert "eth1" in said
    assert "inet6 fd" in said
    assert "192.0.2.1\tfar\n" in said
    (gateway,) = json.loads(wherry("network", "inspect", "-f", "{{json .IPAM.Config}}", "lab").stdout)
    assert f"{gateway['Gateway']}\tme\n" in said
    assert "nameserver 127.0.0.11\nsearch a.example\noptions ndots:2\n" in said
    plain = wherry("run", "--rm", "--dns", "192.0.2.53", IMAGE, "/bin/busybox", "cat", "/etc/resolv.conf").stdout
    assert plain.startswith("nameserver 192.0.2.53\n")
    assert wherry("run", "--rm", "--network", "nolan", *SLEEP, code=125).stderr.startswith('wherry: network "nolan": ')
    assert "unknown key" in wherry("run", "--rm", "--network", "name=lab,color=red", *SLEEP, code=125).stderr
    for name in ("lab", "six"):
        wherry("network", "rm", name)
