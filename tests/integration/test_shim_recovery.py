"""The shim killed, replaced, and started by many at once: containers, their output and their exit codes stay."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shims import Shimmed, available, eventually, read_all, read_json, shimmed
from wherry import __version__
from wherry.api import FailedPrecondition, LogSink, Sandbox, Stdio, Unavailable
from wherry.engine.shim.client import ShimClient, start_shim
from wherry.linux import framing, pidfd
from wherry.shim import wire


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as it:
        yield it


def kill(pid: int) -> None:
    handle = pidfd.open(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: bool(available_events(handle)))
    os.close(handle)


def available_events(handle: int) -> list[int]:
    import select

    return select.select([handle], [], [], 0)[0]


def is_readonly(pid: int) -> bool:
    """Whether /proc/PID/exe is on a read-only mount, or a sealed copy."""
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return True
        try:
            return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)
        except OSError:
            return False
    finally:
        os.close(fd)


def counting(fifo: Path) -> str:
    """A script that answers each line written to fifo with a line of its own; at the end it exits with 9."""
    return f"while read line; do echo got $line; done < {fifo}; exit 9"


def test_containers_outlive_the_shim(made: Shimmed) -> None:
    fifo, path = made.run / "fifo", made.run / "log"
    os.mkfifo(fifo)
    reader, writer = os.pipe()
    before = made.spawn("c", counting(fifo), Stdio(stdout=writer, log=LogSink("json-file", path=str(path))))
    os.close(writer)
    feed = os.open(fifo, os.O_WRONLY)
    os.write(feed, b"one\n")
    assert available(reader, 5) == b"got one\n"
    old, logger = made.client.pid, made.client._call("hello")[0]["logger"]
    kill(old)
    os.write(feed, b"two\n")  # while there is none
    assert available(reader, 5) == b"got two\n"
    (now,) = made.client.list()
    assert made.client.pid != old
    assert made.client._call("hello")[0]["logger"] == logger
    assert (now.pid, now.start_time, now.status) == (before.pid, before.start_time, "running")
    made.listen_again()
    os.write(feed, b"three\n")
    assert available(reader, 5) == b"got three\n"
    os.close(feed)
    event = made.exit("c")
    assert (event.attributes["code"], event.attributes["drained"]) == ("9", "true")
    assert read_all(reader) == b""
    os.close(reader)
    assert read_json(path)["stdout"] == b"got one\ngot two\ngot three\n"
    made.client.forget("c", "")


def lose(made: Shimmed) -> None:
    """The shim goes, and what it started ends before there is another."""
    handles = [pidfd.open(state.pid) for state in made.client.list()]
    kill(made.client.pid)
    for state in list(made.client._pidfds.values()):
        os.kill(state[0]["pid"], signal.SIGTERM)
    for handle in handles:
        eventually(lambda handle=handle: bool(available_events(handle)))  # type: ignore[misc]
        os.close(handle)


def reconnect(made: Shimmed) -> None:
    made.listen_again()
    made.client.ack(0)


def test_how_a_container_ended_without_a_shim_is_known_by_the_engine(made: Shimmed) -> None:
    made.spawn("c", "exec sleep 1000")
    lose(made)
    reconnect(made)
    assert made.exit("c").attributes["code"] == "143"
    made.client.forget("c", "")


def test_without_the_pidfds_nobody_knows_and_nothing_is_made_up(made: Shimmed) -> None:
    made.spawn("c", "exec sleep 1000")
    lose(made)
    for _state, handle in made.client._pidfds.values():
        os.close(handle)
    made.client._pidfds.clear()
    reconnect(made)
    assert made.exit("c").attributes["code"] == ""
    (state,) = made.client.list()
    assert state.exit is not None
    assert state.exit.code is None
    made.client.forget("c", "")


def test_what_cannot_be_repeated_is_refused_once(made: Shimmed) -> None:
    kill(made.client.pid)
    with pytest.raises(Unavailable):
        made.spawn("c", "exit 1")
    made.listen_again()
    made.spawn("c", "exit 1")
    assert made.exit("c").attributes["code"] == "1"
    made.client.forget("c", "")


def test_an_exit_that_nobody_acknowledged_is_told_again(made: Shimmed) -> None:
    made.spawn("c", "exit 7")
    first = made.exit("c")
    kill(made.client.pid)
    reconnect(made)
    made._exits.clear()
    again = made.exit("c")
    assert again.sequence > first.sequence
    assert (again.attributes["code"], again.time) == ("7", first.time)
    made.client.forget("c", "")


def test_a_new_engine_and_a_new_shim_find_everything(made: Shimmed) -> None:
    path = made.run / "log"
    before = made.spawn(
        "c", "echo one; read line; exit 3", Stdio(hold_stdin=True, log=LogSink("json-file", path=str(path)))
    )
    eventually(path.exists)
    made.client.close()
    kill(made.client.pid)
    made.client = start_shim(made.run, made.run / "root")
    made.listen_again()
    (now,) = made.client.list()
    assert (now.pid, now.status) == (before.pid, "running")
    theirs, mine = os.pipe()
    made.client.attach("c", "", Stdio(stdin=theirs))
    os.close(theirs)
    os.write(mine, b"go\n")
    os.close(mine)
    assert made.exit("c").attributes["code"] == "3"
    made.client.forget("c", "")


def test_shim_and_logger_both_killed(made: Shimmed) -> None:
    """The engine alone remembers: containers that write nothing live on."""
    before = made.spawn("c", "exec sleep 1000", Stdio(log=LogSink("json-file", path=str(made.run / "log"))))
    logger = made.client._call("hello")[0]["logger"]
    kill(made.client.pid)
    kill(logger)
    reconnect(made)
    (now,) = made.client.list()
    assert (now.pid, now.status) == (before.pid, "running")
    made.client.signal("c", "", signal.SIGTERM)
    assert made.exit("c").attributes["code"] == "143"
    made.client.forget("c", "")


def test_a_killed_logger_is_replaced(made: Shimmed) -> None:
    fifo, path = made.run / "fifo", made.run / "log"
    os.mkfifo(fifo)
    reader, writer = os.pipe()
    made.spawn("c", counting(fifo), Stdio(stdout=writer, log=LogSink("json-file", path=str(path))))
    os.close(writer)
    feed = os.open(fifo, os.O_WRONLY)
    for number in range(5):
        os.write(feed, b"%d\n" % number)
        eventually(lambda: bool(made.client._call("hello")[0]["logger"]))  # the fourth in a second is made to wait
        kill(made.client._call("hello")[0]["logger"])
        assert available(reader, 5) == b"got %d\n" % number
    os.close(feed)
    assert made.exit("c").attributes["code"] == "9"
    os.close(reader)
    assert read_json(path)["stdout"] == b"".join(b"got %d\n" % number for number in range(5))
    made.client.forget("c", "")


def test_namespaces_of_a_lost_shim(made: Shimmed) -> None:
    """Reopened where a member lives, made anew where none does."""

    def net(box: str) -> int:
        fd = made.client.namespace(box, "net")
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    for box in ("full", "empty"):
        made.client.create_sandbox(Sandbox(box))
    made.container("c", "exec sleep 1000", sandbox="full")
    made.client.start("c", "")
    before = net("full")
    kill(made.client.pid)
    reconnect(made)
    assert {box.id for box in made.client.sandboxes()} == {"full", "empty"}
    assert net("full") == before
    assert net("empty") not in (before, os.stat("/proc/self/ns/net").st_ino)
    made.end("c")
    for box in ("full", "empty"):
        made.client.remove_sandbox(box)


def test_a_shared_pid_namespace_of_a_lost_shim(made: Shimmed) -> None:
    """Its first process lives on, is found again by pid and start time, and goes with the sandbox."""
    made.client.create_sandbox(Sandbox("box", pid=True))

    def identity(type: str) -> int:
        fd = made.client.namespace("box", type)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    before = {type: identity(type) for type in ("pid", "net", "ipc", "uts")}
    kill(made.client.pid)
    reconnect(made)
    made.client.replace()
    assert {type: identity(type) for type in before} == before
    made.container("c", "exec sleep 1000", sandbox="box", shared_pid=True)
    made.client.start("c", "")
    made.end("c")
    made.client.remove_sandbox("box")


def test_a_held_container_ends_with_its_shim(made: Shimmed) -> None:
    made.container("c", "true")
    kill(made.client.pid)
    reconnect(made)
    assert made.exit("c").attributes["code"] != "0"
    made.client.forget("c", "")


def test_replace_keeps_everything(made: Shimmed) -> None:
    fifo, path = made.run / "fifo", made.run / "log"
    os.mkfifo(fifo)
    reader, writer = os.pipe()
    made.client.create_sandbox(Sandbox("box"))
    running = made.spawn("c", counting(fifo), Stdio(stdout=writer, log=LogSink("json-file", path=str(path))))
    os.close(writer)
    made.container("held", "exit 6", sandbox="box")
    feed = os.open(fifo, os.O_WRONLY)
    pid, logger = made.client.pid, made.client._call("hello")[0]["logger"]
    children = {logger, *[state.pid for state in made.client.list()]}
    for number in range(3):
        made.client.replace()
        os.write(feed, b"%d\n" % number)
        assert available(reader, 5) == b"got %d\n" % number
    assert made.client.pid == pid
    assert made.client._call("hello")[0]["logger"] == logger
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert {int(child) for child in found} == children  # a spare ends with the code that it is a fork of
    assert is_readonly(pid)
    assert {state.id: state.status for state in made.client.list()} == {"c": "running", "held": "created"}
    made.client.start("held", "")
    assert made.exit("held").attributes["code"] == "6"  # by the event stream of before
    os.close(feed)
    assert made.exit("c").attributes["code"] == "9"
    assert next(state for state in made.client.list() if state.id == "c").start_time == running.start_time
    os.close(reader)
    assert read_json(path)["stdout"] == b"got 0\ngot 1\ngot 2\n"
    for name in ("c", "held"):
        made.client.forget(name, "")
    made.client.remove_sandbox("box")


def test_a_shim_of_another_version_is_renewed(made: Shimmed) -> None:
    made.spawn("c", "exec sleep 1000")
    made.client._call("replace", version="0.0.1")
    assert made.client._call("hello")[0]["version"] == "0.0.1"
    other = start_shim(made.run, made.run / "root")
    assert (other.version, other.pid) == (__version__, made.client.pid)
    assert [state.status for state in other.list()] == ["running"]
    other.close()
    made.end("c")


def test_a_replace_that_fails_changes_nothing(made: Shimmed) -> None:
    made.spawn("c", "exec sleep 1000")
    with pytest.raises(OSError):
        made.client._call("replace", core="/nowhere", version="0", exe="/nowhere/python")
    assert [state.status for state in made.client.list()] == ["running"]
    made.end("c")


def test_the_interpreter_cannot_be_written_and_the_shim_cannot_be_read(made: Shimmed) -> None:
    pid = made.client.pid
    assert is_readonly(pid)
    assert not os.access(f"/proc/{pid}/exe", os.W_OK) or is_readonly(pid)
    with pytest.raises(OSError):
        os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
    assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    mode = os.stat(made.run / "shim.sock").st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_another_user_is_not_served(made: Shimmed) -> None:
    made.run.chmod(0o755)
    (made.run / "shim.sock").chmod(0o666)
    script = (
        f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(made.run / 'shim.sock')!r}); "
        's.sendall(bytes([0, 0, 0, 21]) + b\'{"id":1,"op":"hello"}\'); print(s.recv(100))'
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True, check=False
    )
    assert b"ok" not in done.stdout
    made.client.ack(0)


def test_starting_it_twice_gives_one(made: Shimmed) -> None:
    command = [
        sys.executable, "-I", "-m", "wherry.shim.launch", "--run", str(made.run / "x"), "--root", str(made.run / "y"), "--no-engine",
    ]  # fmt: skip
    several = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(20) for process in several] == [0] * 4
    client = ShimClient.connect(made.run / "x")
    assert stat.S_IMODE((made.run / "x").stat().st_mode) == 0o700
    client.quit()
    client.close()
    eventually(lambda: not (made.run / "x/shim.sock").exists())
    with pytest.raises(Unavailable):
        ShimClient.connect(made.run / "x")


def test_a_run_directory_of_somebody_else_is_refused(made: Shimmed) -> None:
    other = made.run / "other"
    other.mkdir()
    os.chown(other, 1234, 1234)
    with pytest.raises(Unavailable, match="belongs to user 1234"):
        start_shim(other, made.run / "root")
    assert list(other.iterdir()) == []


def test_frames_that_are_none_end_a_connection_only(made: Shimmed) -> None:
    for junk in (b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\3abc", b"\0\0\0\xff{"):
        with wire.connect(str(made.run / "shim.sock")) as sock:
            sock.settimeout(5)
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
    with wire.connect(str(made.run / "shim.sock")) as sock:
        reader = framing.Reader(sock)
        for request in (
            {"id": 1},
            {"id": 2, "op": "nonsense"},
            {"id": 3, "op": "spawn"},
            {"id": 4, "op": "signal", "container": 3},
        ):
            framing.send(sock, request)
            frame = reader.next()
            assert frame is not None
            assert frame[0]["error"]["class"] in ("Invalid", "NotFound")
    made.client.ack(0)


ENGINE = """#!/bin/sh
echo "$@" >> {run}/started
{what}
"""


def engine_shim(directory: Path, what: str) -> ShimClient:
    program = directory / "engine"
    program.write_text(ENGINE.format(run=directory, what=what))
    program.chmod(0o755)
    subprocess.run(
        [
            sys.executable, "-I", "-m", "wherry.shim.launch", "--run", str(directory), "--root", str(directory / "root"),
            "--python", str(program),
        ],
        check=True,
    )  # fmt: skip
    return ShimClient.connect(directory)


def test_an_engine_is_started_once_for_all_who_ask(made: Shimmed) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with pytest.raises(FailedPrecondition):
        made.client.engine()
    directory = made.run / "e"
    directory.mkdir()
    client = engine_shim(directory, "sleep 0.2; echo ready >&3; exec sleep 1000")
    with ThreadPoolExecutor(8) as pool:
        pids = set(pool.map(lambda _number: client.engine(), range(8)))
    assert len(pids) == 1
    line = (directory / "started").read_text()
    assert line.count("\n") == 1
    assert f"-I -m wherry.engine.main --root {directory}/root --run {directory} --ready-fd 3" in line
    again = client.engine(restart=True)
    assert {again} != pids
    os.kill(again, signal.SIGKILL)
    eventually(lambda: client.engine() != again)
    os.kill(client.engine(), signal.SIGKILL)
    client.quit()
    client.close()


@pytest.mark.parametrize(
    ("what", "says"),
    [("echo 'config: no good' >&3; exit 1", "no good"), ("exit 3", "status 3"), ("echo oops >&2; kill -9 $$", "137")],
)
def test_an_engine_that_does_not_start_says_why(made: Shimmed, what: str, says: str) -> None:
    directory = made.run / "e"
    directory.mkdir()
    client = engine_shim(directory, what)
    for _ in range(2):
        with pytest.raises(Unavailable, match=says):
            client.engine()
    client.quit()
    client.close()
