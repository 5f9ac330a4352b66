"""Option values and the texts of tables."""

from __future__ import annotations

import time

import pytest

from support.cli import container
from wherry.api import Bind, Port
from wherry_plugins.frontend.cli import human, values


def at_home(path: str) -> str:
    return path if path.startswith("/") else f"/home/me/{path}".replace("/./", "/")


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("64m", 64 << 20), ("1.5g", 3 << 29), ("2KiB", 2048), ("3 mb", 3 << 20), ("7b", 7), ("1T", 1 << 40)],
)
def test_size(text: str, count: int) -> None:
    assert values.size(text) == count


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1mm", "0x10", "1e3"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        values.size(text)


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400), ("0", 0)])
def test_duration(text: str, seconds: float) -> None:
    assert values.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "10y", "-5s", "s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        values.duration(text)


def test_moments() -> None:
    assert values.moment("1700000000") == 1_700_000_000 * 10**9
    assert values.moment("1700000000.5") == 1_700_000_000_500_000_000
    assert values.moment("2023-11-14T22:13:20Z") == 1_700_000_000 * 10**9
    assert values.moment("2023-11-14T22:13:20.123456789Z") == 1_700_000_000_123_456_000
    assert abs(values.moment("10m") - (time.time_ns() - 600 * 10**9)) < 10**9
    with pytest.raises(ValueError, match="neither a time"):
        values.moment("yesterday")


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("/a:/b", Bind("bind", "/a", "/b", ("rbind",), create=True)),
        ("./a:/b:ro", Bind("bind", "/home/me/a", "/b", ("rbind", "ro"), create=True)),
        ("/a:/b:rw,z,rslave", Bind("bind", "/a", "/b", ("rbind", "rslave"), create=True)),
        ("data:/b", Bind("volume", "data", "/b")),
        ("/b", Bind("volume", "", "/b")),
    ],
)
def test_volume(text: str, bind: Bind) -> None:
    assert values.volume(text, at_home) == bind


@pytest.mark.parametrize("text", ["a:b", "/a:", ":/a", "/a:/b:wat", "a/b:/c", "/a:/", "/a:/b:ro:x", ""])
def test_no_volume(text: str) -> None:
    with pytest.raises(ValueError):
        values.volume(text, at_home)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("type=bind,source=/a,target=/b", Bind("bind", "/a", "/b", ("rbind",))),
        ("type=bind,src=./a,dst=/b,readonly", Bind("bind", "/home/me/a", "/b", ("rbind", "ro"))),
        ("type=bind,src=/a,dst=/b,ro,bind-recursive=writable", Bind("bind", "/a", "/b", ("rbind", "ro", "writable"))),
        ("type=bind,src=/a,dst=/b,bind-recursive=disabled", Bind("bind", "/a", "/b", ("bind",))),
        ("type=bind,src=/a,dst=/b,bind-propagation=rshared,ro=false", Bind("bind", "/a", "/b", ("rbind", "rshared"))),
        (
            "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777",
            Bind("tmpfs", "tmpfs", "/t", ("nosuid", "nodev", "noexec", "size=1048576", "mode=1777")),
        ),
        ("source=data,target=/b", Bind("volume", "data", "/b")),
    ],
)
def test_mount(text: str, bind: Bind) -> None:
    assert values.mount(text, at_home) == bind


@pytest.mark.parametrize(
    "text",
    [
        "type=bind,target=/b",
        "type=nfs,source=a,target=/b",
        "type=bind,source=/a",
        "type=tmpfs,src=x,dst=/t",
        "colour=red,target=/x",
    ],
)
def test_no_mount(text: str) -> None:
    with pytest.raises(ValueError):
        values.mount(text, at_home)


def test_tmpfs_is_safe_unless_told() -> None:
    assert values.tmpfs("/run") == Bind("tmpfs", "tmpfs", "/run", ("nosuid", "nodev", "noexec"))
    assert values.tmpfs("/run:rw,exec,size=64m") == Bind("tmpfs", "tmpfs", "/run", ("nosuid", "nodev", "size=64m"))


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", (Port(80),)),
        ("8080:80", (Port(80, "tcp", "", 8080),)),
        ("53:53/udp", (Port(53, "udp", "", 53),)),
        ("127.0.0.1:8080:80", (Port(80, "tcp", "127.0.0.1", 8080),)),
        ("127.0.0.1::80", (Port(80, "tcp", "127.0.0.1", 0),)),
        ("[::1]:8080:80", (Port(80, "tcp", "::1", 8080),)),
        ("::1:8080:80", (Port(80, "tcp", "::1", 8080),)),
        ("fd00::1::80", (Port(80, "tcp", "fd00::1", 0),)),
        ("0:80", (Port(80),)),
        ("127.0.0.1:0:80/TCP", (Port(80, "tcp", "127.0.0.1", 0),)),
        ("8000-8001:80-81", (Port(80, "tcp", "", 8000), Port(81, "tcp", "", 8001))),
        ("8000-8002:80", (Port(80, "tcp", "", 8000, 8002),)),
    ],
)
def test_port(text: str, ports: tuple[Port, ...]) -> None:
    assert values.port(text) == ports


@pytest.mark.parametrize(
    "text", ["", "x", "0", "70000", "80/sctp", "1:2:3", "::80:80", "8080:0", "8000-8002:80-81", "80-79"]
)
def test_no_port(text: str) -> None:
    with pytest.raises(ValueError):
        values.port(text)


def test_ulimit() -> None:
    assert values.ulimit("nofile=1024") == ("nofile", 1024, 1024)
    assert values.ulimit("nofile=1024:2048") == ("nofile", 1024, 2048)
    assert values.ulimit("core=-1") == ("core", -1, -1)
    for text in ("nofile", "nofile=2:1", "=1", "nofile=x"):
        with pytest.raises(ValueError):
            values.ulimit(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"), (1, "1 second"), (45, "45 seconds"), (61, "About a minute"), (150, "2 minutes"),
        (3600, "About an hour"), (7200, "2 hours"), (86400 * 3, "3 days"), (86400 * 20, "2 weeks"), (86400 * 100, "3 months"),
        (86400 * 800, "2 years"),
    ],
)  # fmt: skip
def test_human_duration(seconds: float, text: str) -> None:
    assert human.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (4_261_550, "4.26MB"), (1_234_567_890, "1.23GB"), (78_100_000, "78.1MB")],
)
def test_human_size(count: int, text: str) -> None:
    assert human.size(count) == text


def test_status_as_docker_says_it() -> None:
    now = 1_700_000_010 * 10**9
    assert human.status(container(), now) == "Up 9 seconds"
    assert human.status(container(status="paused"), now) == "Up 9 seconds (Paused)"
    stopped = container(status="stopped", finished=1_700_000_005 * 10**9, exit_code=137)
    assert human.status(stopped, now) == "Exited (137) 5 seconds ago"
    assert human.status(container(status="stopped", finished=now, exit_code=None), now).startswith("Exited (unknown) ")
    assert human.status(container(status="created", started=0), now) == "Created"


def test_iso() -> None:
    assert human.iso(1_700_000_000_123_000_000) == "2023-11-14T22:13:20.123Z"
    assert human.iso(0) == "0001-01-01T00:00:00Z"
