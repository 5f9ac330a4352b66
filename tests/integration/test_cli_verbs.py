"""The command line against a real engine: containers in the background, exec, terminals, images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.running import until
from support.terminal import Terminal

pytestmark = pytest.mark.twice
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/usr/bin/stty,/usr/bin/id"


@pytest.fixture
def terminal(wherry: Any) -> Iterator[Any]:
    opened: list[Terminal] = []

    def open_one(*argv: str) -> Terminal:
        user = wherry.dirs.user
        ids = (user.uid, user.gid) if user else None
        opened.append(Terminal([str(wherry.program), *argv], wherry.dirs.environ, ids=ids))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_a_life_in_the_background(wherry: Any) -> None:
    identifier = wherry(
        "run", "-d", "--name", "web", IMAGE, "sh", "-c", "echo out; echo err >&2; sleep 100"
    ).stdout.strip()
    assert len(identifier) == 64
    assert wherry("run", "-d", "--name", "web", IMAGE, "sh", code=125).stderr.startswith("wherry: container name ")
    assert wherry("ps", "-q", "--no-trunc").stdout.strip() == identifier
    row = wherry("ps").stdout.splitlines()[1]
    assert row.startswith(identifier[:12])
    assert row.endswith("web")
    done = wherry("logs", "web")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert wherry("inspect", "-f", "{{.State.Status}} {{.Name}}", identifier[:12]).stdout == "running /web\n"
    assert wherry("stop", "-t", "0", "web").stdout == "web\n"
    assert "Exited (137)" in wherry("ps", "-a").stdout
    assert wherry("ps", "-q").stdout == ""
    assert wherry("wait", "web").stdout == "137\n"
    assert wherry("start", "web").stdout == "web\n"
    assert wherry("restart", "-t", "0", "web").stdout == "web\n"
    assert wherry("kill", "web").stdout == "web\n"
    assert wherry("rm", "web").stdout == "web\n"
    assert wherry("rm", "web", code=1).stderr.startswith("wherry: container ")
    assert wherry("rm", "-f", "web").stdout == ""


def test_rename_top_and_update(wherry: Any) -> None:
    wherry("run", "-d", "--name", "one", "--network", "none", IMAGE, "sh", "-c", "sleep 1000 & wait")
    assert wherry("rename", "one", "two").stdout == ""
    assert wherry("ps", "--format", "{{.Names}}", "--filter", "name=^two$").stdout == "two\n"
    seen: list[list[str]] = []

    def both() -> bool:
        seen[:] = [line.split() for line in wherry("top", "two", "-o", "pid,ppid,args").stdout.splitlines()]
        return ["sleep", "1000"] in [row[2:] for row in seen]

    until(both, 30)
    head, shell, sleep = seen[0], *sorted(seen[1:], key=lambda row: row[2:])
    assert head == ["PID", "PPID", "COMMAND"]
    assert shell[2:] == ["sh", "-c", "sleep", "1000", "&", "wait"]
    assert sleep[1] == shell[0]
    if "memory" in wherry("info").stdout and not wherry.dirs.user:
        assert wherry("update", "--memory", "96m", "--pids-limit", "50", "two").stdout == "two\n"
        counted = json.loads(wherry("stats", "--json", "two").stdout)["two"]
        assert (counted["memory.max"], counted["pids.max"]) == (96 << 20, 50)
    line = wherry("stats", "--no-stream", "--format", "{{.Name}} {{.NetIO}}", "two").stdout
    assert line == "two 0B / 0B\n"
    wherry("rm", "-f", "two")


def test_create_then_start_attached(wherry: Any) -> None:
    wherry("create", "-i", "--name", "job", IMAGE, "sh", "-c", "cat; exit 3")
    assert wherry("ps", "-a", "--format", "{{.Status}}").stdout == "Created\n"
    done = wherry("start", "-ai", "job", input="text\n", code=3)
    assert done.stdout == "text\n"
    wherry("rm", "job")


def test_exec(wherry: Any) -> None:
    wherry("run", "-d", "--name", "web", IMAGE, "sleep", "100")
    done = wherry(
        "exec",
        "-i",
        "-e",
        "A=1",
        "-w",
        "/etc",
        "-u",
        "5",
        "web",
        "sh",
        "-c",
        'cat; echo "$A $PWD $(id -u)"; exit 6',
        input="x\n",
        code=6,
    )
    assert done.stdout == "x\n1 /etc 5\n"
    assert wherry("exec", "web", "nope", code=127).stderr.count("\n") == 1
    wherry("stop", "-t", "0", "web")
    assert wherry("exec", "web", "sh", code=1).stderr.startswith("wherry: container ")
    wherry("rm", "web")


def test_pause(wherry: Any) -> None:
    wherry("run", "-d", "--name", "web", IMAGE, "sleep", "100")
    if wherry.dirs.user and "cgroup2" not in wherry("info").stdout:
        assert "without a control group" in wherry("pause", "web", code=1).stderr
        wherry("rm", "-f", "web")
        return
    assert wherry("pause", "web").stdout == "web\n"
    assert "(Paused)" in wherry("ps").stdout
    assert wherry("unpause", "web").stdout == "web\n"
    assert "(Paused)" not in wherry("ps").stdout
    wherry("rm", "-f", "web")


def test_a_shell_on_a_terminal(wherry: Any, terminal: Any) -> None:
    shell = terminal("run", "-it", "--rm", IMAGE, "sh")
    shell.expect("# ")
    shell.type("stty size\r")
    assert "30 100" in shell.expect("# ")
    shell.resize(40, 120)
    shell.type("sleep 0.3; stty size\r")
    assert "40 120" in shell.expect("# ")
    shell.type("cat\r")
    shell.expect("cat\r\n")
    shell.type("typed\r")
    shell.expect("typed\r\ntyped\r\n")
    shell.type("\x03")
    shell.expect("# ")
    shell.type("exit 3\r")
    assert shell.wait() == 3
    assert wherry("ps", "-aq").stdout == ""


def test_exec_and_attach_on_a_terminal(wherry: Any, terminal: Any) -> None:
    wherry("run", "-dit", "--name", "tty", IMAGE, "sh")
    shell = terminal("exec", "-it", "tty", "sh", "-c", "stty size; exit 4")
    assert shell.wait() == 4
    assert "30 100" in shell.output
    shell = terminal("attach", "tty")
    shell.type("echo at''tached\r")
    shell.expect("attached")
    shell.type("exit 5\r")
    assert shell.wait() == 5
    wherry("rm", "tty")


def test_an_error_on_a_terminal_leaves_it_cooked(wherry: Any, terminal: Any) -> None:
    shell = terminal("run", "-it", "--rm", IMAGE, "nope")
    assert shell.wait() == 127
    assert shell.output.endswith("\r\n")
    assert "executable file not found" in shell.output


def test_images(wherry: Any, busybox_archive: Path) -> None:
    loaded = wherry("load", "-i", busybox_archive.name, cwd=busybox_archive.parent).stdout
    assert loaded.startswith("Loaded image: ")
    name = loaded.split(": ", 1)[1].strip().splitlines()[0]
    with busybox_archive.open("rb") as archive:
        done = subprocess.run(
            [wherry.program, "load", "-q"],
            stdin=archive,
            capture_output=True,
            text=True,
            env=wherry.dirs.environ,
            check=True,
            timeout=60,
            **wherry.identity,
        )
    assert done.stdout.strip().splitlines()[0] == f"Loaded image: {name}"
    rows = wherry("images").stdout.splitlines()
    assert len(rows) == 2
    assert rows[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    wherry("tag", name, "other:1")
    assert len(set(wherry("images", "-q").stdout.split())) == 1
    document = json.loads(wherry("image", "inspect", "other:1").stdout)[0]
    assert document["Id"].startswith("sha256:")
    assert document["Os"] == "linux"
    assert wherry("run", "--rm", "other:1", "echo", "from busybox").stdout == "from busybox\n"
    assert "Untagged" in wherry("rmi", "other:1").stdout
    assert "Deleted" in wherry("rmi", name).stdout
    assert wherry("images", "-q").stdout == ""
    wherry("gc")
    assert wherry("doctor").stdout == "all is well\n"


def test_explain_names_who_set_a_field(wherry: Any) -> None:
    wherry("create", "--name", "who", "--memory", "64m", "--hostname", "box", IMAGE, "sh")
    rows = {line.split()[0]: line.split()[-1] for line in wherry("inspect", "--explain", "who").stdout.splitlines()}
    assert rows["/hostname"] == "request"
    assert rows["/linux/resources/memory/limit"] == "request"
    assert rows["/ociVersion"] == "defaults"
    wherry("rm", "who")


def test_events_are_replayed(wherry: Any) -> None:
    wherry("run", "--rm", "--name", "seen", IMAGE, "sh", "-c", "exit 4", code=4)
    events = [
        json.loads(line) for line in wherry("events", "--after", "0", "--no-follow", "--json").stdout.splitlines()
    ]
    assert [event["sequence"] for event in events] == sorted(event["sequence"] for event in events)
    assert any(event["topic"].endswith(".exited") for event in events)


def test_info_plugins_config(wherry: Any) -> None:
    info = json.loads(wherry("info", "--json").stdout)
    assert info["run"] == str(wherry.dirs.run)
    assert info["chosen"]["standard"]["store"] == "local"
    assert "variant standard:" in wherry("info").stdout
    plugins = wherry("plugins", "--format", "{{.Kind}}.{{.ID}} {{.State}}").stdout.splitlines()
    assert "frontend.cli ready" in plugins
    origins = json.loads(wherry("config", "show", "--json").stdout)
    assert any(one["key"] == "variant.standard.store" for one in origins)
    assert {"key": "plugin.network.pasta.subnet", "value": "10.87.0.0/16", "origin": "defaults"} in origins


def test_system_reset(wherry: Any) -> None:
    wherry("run", "-d", IMAGE, "sleep", "100")
    assert wherry("system", "reset", code=1).stderr.endswith("confirm it with --force\n")
    assert len(wherry("ps", "-q").stdout.split()) == 1
    wherry("system", "reset", "--force")
    assert wherry("ps", "-aq").stdout == ""
    assert wherry("images", "-q").stdout == ""


def test_detach_keys(wherry: Any, terminal: Any) -> None:
    shell = terminal("run", "-it", "--name", "kept", IMAGE, "sh")
    shell.expect("# ")
    shell.type("\x10")  # half of the sequence waits, and goes on when something else follows
    shell.type("\x7fecho te''xt\r")  # erased
    shell.expect("text")
    shell.type("\x10\x11")
    assert shell.wait() == 0
    assert wherry("ps", "--format", "{{.Names}}").stdout == "kept\n"
    shell = terminal("attach", "--detach-keys", "ctrl-]", "kept")
    shell.type("echo back''again\r")
    shell.expect("backagain")
    shell.type("\x1d")
    assert shell.wait() == 0
    assert wherry("exec", "kept", "sh", "-c", "exit 3", code=3).stdout == ""
    wherry("rm", "-f", "kept")
