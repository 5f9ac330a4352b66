"""The command line against a real engine: runs in the foreground, streams, signals, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.twice
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/usr/bin/id,/usr/bin/env,/usr/bin/head"


def test_hello_world(wherry: Any) -> None:
    done = wherry("run", "--rm", IMAGE, "sh", "-c", "echo hello from PID $$; echo and this >&2")
    assert (done.stdout, done.stderr) == ("hello from PID 1\n", "and this\n")
    assert wherry("ps", "-aq").stdout == ""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 0"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$; exit 3"], 3),
        (["nope"], 127),
        (["/bin"], 126),
    ],
)
def test_exit_codes(wherry: Any, command: list[str], code: int) -> None:
    done = wherry("run", "--rm", IMAGE, *command, code=code)
    assert done.stderr.count("\n") == (1 if code > 125 else 0)
    assert wherry("ps", "-aq").stdout == ""


def test_killed_is_128_and_the_signal(wherry: Any) -> None:
    assert wherry("run", "--rm", IMAGE, "sh", "-c", "sh -c 'kill -9 $$'", code=137).stdout == ""


def test_an_image_that_is_not_there(wherry: Any) -> None:
    done = wherry("run", "--rm", "nosuch", code=125)
    assert done.stderr.startswith('wherry: image "nosuch:latest": ')
    assert wherry("ps", "-aq").stdout == ""


def test_stdin_with_its_end(wherry: Any) -> None:
    data = "line\n" * 200_000
    done = wherry("run", "-i", "--rm", IMAGE, "sh", "-c", "cat; echo end", input=data)
    assert done.stdout == data + "end\n"


def test_without_interactive_stdin_is_empty(wherry: Any) -> None:
    assert wherry("run", "--rm", IMAGE, "sh", "-c", "cat; echo end", input="not passed\n").stdout == "end\n"


def test_environment_directory_user_name(wherry: Any) -> None:
    script = 'echo "$A $B $PWD $(id -u):$(id -g) $(cat /etc/hostname)"'
    options = ["-e", "A=1", "-e", "B", "-w", "/etc", "-u", "7:8", "-h", "box"]
    done = wherry("run", "--rm", *options, IMAGE, "sh", "-c", script, env={"B": "client's"})
    assert done.stdout == "1 client's /etc 7:8 box\n"


def test_binds_are_relative_to_the_client(wherry: Any, place: Path) -> None:
    (place / "in").write_text("from outside\n")
    wherry("run", "--rm", "-v", "./:/data", IMAGE, "sh", "-c", "cat /data/in > /data/out", cwd=place)
    assert (place / "out").read_text() == "from outside\n"
    done = wherry("run", "--rm", "-v", "./:/data:ro", IMAGE, "sh", "-c", "echo x > /data/out", cwd=place, code=None)
    assert done.returncode != 0
    assert (place / "out").read_text() == "from outside\n"


def test_signals_are_passed_on(wherry: Any) -> None:
    script = "trap 'echo got INT; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    child = wherry.popen("run", "--rm", IMAGE, "sh", "-c", script, stdout=subprocess.PIPE)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.read() == "got INT\n"
    assert child.wait(20) == 9
    child.stdout.close()


def test_a_killed_client_leaves_the_container(wherry: Any) -> None:
    child = wherry.popen("run", "--name", "left", IMAGE, "sh", "-c", "echo ready; sleep 100", stdout=subprocess.PIPE)
    assert child.stdout.readline() == "ready\n"
    child.kill()
    child.wait(20)
    assert child.stdout.read() == ""  # nobody else holds the client's stdout
    child.stdout.close()
    assert wherry("ps", "--format", "{{.Names}} {{.State}}").stdout == "left running\n"


def test_head_ends_the_client(wherry: Any) -> None:
    child = wherry.popen(
        "run", "--name", "endless", IMAGE, "sh", "-c", "while :; do echo y; done", stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == "y\n"
    child.stdout.close()
    assert child.wait(20) == 141
    wherry("rm", "-f", "endless")


def test_twenty_at_once(wherry: Any) -> None:
    wherry("run", "--rm", IMAGE, "sh", "-c", ":")
    found: dict[int, str] = {}

    def one(number: int) -> None:
        found[number] = wherry("run", "--rm", IMAGE, "sh", "-c", f"echo {number}; exit {number}", code=number).stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n" for number in range(20)}
    assert wherry("ps", "-aq").stdout == ""


@pytest.mark.parametrize("more", [(), ("--rm",), ("-d",), ("--cidfile", "failed.cid")])
def test_a_start_that_fails_is_traced_too(wherry: Any, place: Path, more: tuple[str, ...]) -> None:
    wherry("run", *more, "--name", "failed", "--trace", "failed.json", IMAGE, "/nowhere", cwd=place, code=127)
    trace = json.loads((place / "failed.json").read_text())
    assert any(event["name"] == "isolation.create" for event in trace["traceEvents"]), trace
    wherry("rm", "-f", "failed")
    for name in ("failed.json", "failed.cid"):
        (place / name).unlink(missing_ok=True)


def test_a_create_that_fails_is_traced_too(wherry: Any, place: Path) -> None:
    wherry("create", "--trace", "failed.json", "host:/nowhere", cwd=place, code=1)
    assert json.loads((place / "failed.json").read_text())["traceEvents"]
    (place / "failed.json").unlink()


def test_trace_and_cidfile(wherry: Any, place: Path) -> None:
    wherry("run", "--name", "traced", "--trace", "t.json", "--cidfile", "cid", IMAGE, "sh", "-c", ":", cwd=place)
    trace = json.loads((place / "t.json").read_text())
    calls = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert calls
    for event in calls:
        assert event["dur"] >= 0
        assert {"name", "cat", "ts", "pid", "tid", "args"} <= event.keys()
    assert any("snapshotter" in event["cat"] for event in calls)
    assert wherry("inspect", "-f", "{{.Id}}", "traced").stdout.strip() == (place / "cid").read_text()


def test_restart_in_the_middle(wherry: Any) -> None:
    script = "echo ready; sleep 1.5; echo done; exit 5"
    child = wherry.popen(
        "run", "--name", "long", IMAGE, "sh", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout.readline() == "ready\n"
    before = wherry("info", "--format", "{{.engine.pid}}").stdout
    wherry("engine", "restart")
    for verb in ("start", "restart"):  # of another root than the one it has: it would be that one's engine all the same
        refused = wherry("--root", "/tmp/elsewhere", "engine", verb, code=125)
        assert 'wherry: root "/tmp/elsewhere": the engine at ' in refused.stderr
        assert f'has the root "{wherry.dirs.root}"; stop that one first' in refused.stderr
    assert wherry("info", "--format", "{{.engine.pid}}").stdout != before
    _out, err = child.communicate(timeout=20)
    assert child.returncode == 125
    assert err.startswith("wherry: engine: it went away before the command was done; containers keep running")
    assert wherry("wait", "long").stdout == "5\n"
    assert wherry("logs", "long").stdout == "ready\ndone\n"


def test_engine_verbs(wherry: Any) -> None:
    assert wherry("engine", "start").stdout.startswith("engine started, pid ")
    assert wherry("engine", "start").stdout.startswith("engine runs already, pid ")
    status = json.loads(wherry("engine", "status", "--json").stdout)
    assert status["engine"]["pid"] > 0
    assert wherry("engine", "status").stdout.startswith(f"engine: running, pid {status['engine']['pid']}, ")
    wherry("run", "-d", "--name", "stays", IMAGE, "sleep", "100")
    assert wherry("engine", "stop").stdout.startswith("engine stopped; containers keep running")
    assert "engine: not running" in wherry("engine", "status", code=3).stdout
    assert wherry("ps", "--format", "{{.Names}}").stdout == "stays\n"  # the next command starts it again
    wherry("rm", "-f", "stays")
    assert wherry("engine", "stop").stdout == "engine stopped\n"


def test_other_root_or_config_than_the_engines(wherry: Any, place: Path) -> None:
    wherry("engine", "start")
    done = wherry("--root", str(place), "ps", code=125)
    assert done.stderr.startswith(f'wherry: root "{place}": the engine ')
    done = wherry("ps", env={"WHERRY_ROOT": str(place)}, code=125)
    assert done.stderr.startswith(f'wherry: root "{place}": the engine ')
    (place / "my.toml").write_text("version = 1\n")
    done = wherry("--config", "my.toml", "ps", cwd=place, code=125)
    assert "restart" in done.stderr or "engine stop" in done.stderr


def test_clients_that_start_the_engine_together(wherry: Any) -> None:
    children = [wherry.popen("info", "--format", "{{.engine.pid}}", stdout=subprocess.PIPE) for _ in range(6)]
    assert len({child.communicate(timeout=60)[0] for child in children}) == 1
    assert [child.returncode for child in children] == [0] * 6


def test_an_interrupted_follow_ends(wherry: Any) -> None:
    wherry("run", "-d", "--name", "talks", IMAGE, "sh", "-c", "while :; do echo x; sleep 0.1; done")
    child = wherry.popen("logs", "-f", "talks", stdout=subprocess.PIPE)
    assert child.stdout.readline() == "x\n"
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    assert time.monotonic() - started < 10
    child.stdout.close()
    wherry("rm", "-f", "talks")


def test_volumes(wherry: Any) -> None:
    assert wherry("volume", "create", "--label", "a=b", "data").stdout == "data\n"
    wherry("run", "--rm", "-v", "data:/d", IMAGE, "sh", "-c", "echo kept > /d/x")
    assert wherry("run", "--rm", "-v", "data:/d:ro", "-v", "/none", IMAGE, "cat", "/d/x").stdout == "kept\n"
    # What the image has there goes in first, with its links: the programs that follow come from the volume.
    assert wherry("run", "--rm", "-v", "bin:/usr/bin", IMAGE, "sh", "-c", "echo kept | cat").stdout == "kept\n"
    wherry("create", "--name", "user", "-v", "data:/d", "-v", "/none", IMAGE)
    assert wherry("volume", "ls", "-q", "--filter", "label=a").stdout == "data\n"
    assert (
        wherry("volume", "ls", "--format", "{{.Name}} {{.Driver}}", "--filter", "dangling=true").stdout == "bin local\n"
    )
    refused = wherry("volume", "rm", "data", "bin", code=1)
    assert (refused.stdout, 'volume "data": container "user"' in refused.stderr) == ("bin\n", True)
    assert wherry("volume", "inspect", "-f", "{{.Labels}}", "data").stdout == "map[a:b]\n"
    wherry("rm", "-v", "user")
    assert wherry("volume", "ls", "-q").stdout == "data\n"
    assert "Deleted Volumes:\ndata\n" in wherry("volume", "prune", "-af").stdout
    assert wherry("volume", "ls", "-q").stdout == ""


def test_who_attaches_by_start_takes_nothing_from_who_ran_it(wherry: Any) -> None:
    script = "while :; do echo tick; sleep 0.05; done"
    first = wherry.popen("run", "--name", "both", IMAGE, "sh", "-c", script, stdout=subprocess.PIPE)
    second = None
    try:
        assert first.stdout.readline() == "tick\n"
        second = wherry.popen("start", "-a", "both", stdout=subprocess.PIPE)
        assert second.stdout.readline() == "tick\n"
        second.kill()
        second.wait(30)
        for _ in range(100):  # more than was on its way when the second one left
            assert first.stdout.readline() == "tick\n"
        wherry("kill", "both")
        assert first.wait(30) == 137
    finally:
        for child in (first, second):
            if child is not None:
                child.kill()
                child.wait(30)
                child.stdout.close()
        wherry("rm", "-f", "both")
