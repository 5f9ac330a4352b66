"""Processes under a real shim: their start, their streams, their end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from support.shims import Shimmed, available, eventually, read_all, read_json, shimmed
from wherry.api import (
    CommandNotExecutable,
    CommandNotFound,
    Event,
    FailedPrecondition,
    InUse,
    Invalid,
    LogSink,
    NotFound,
    Plan,
    Sandbox,
    Stdio,
)
from wherry.linux import framing
from wherry.shim import wire


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as it:
        yield it


def test_a_life(made: Shimmed) -> None:
    reader, writer = os.pipe()
    state = made.spawn("c", "echo out; exit 3", Stdio(stdout=writer))
    os.close(writer)
    assert (state.id, state.exec_id, state.status, state.exit) == ("c", "", "running", None)
    assert read_all(reader) == b"out\n"
    os.close(reader)
    event = made.exit("c")
    assert event.attributes["code"] == "3"
    (listed,) = made.client.list()
    assert listed.status == "stopped"
    assert listed.exit is not None
    assert (listed.exit.code, listed.exit.time) == (3, event.time)
    made.client.forget("c", "")
    assert list(made.client.list()) == []
    made.client.forget("c", "")


def test_spawn_is_idempotent(made: Shimmed) -> None:
    first = made.spawn("c", "exec sleep 1000")
    assert made.spawn("c", "exit 1") == first
    made.spawn("c", "exec sleep 1000", exec_id="x")
    assert len(list(made.client.list())) == 2
    made.end("c", "x")
    made.end("c")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("/nowhere",), CommandNotFound),
        (("nowhere",), CommandNotFound),
        (("/etc/passwd",), CommandNotExecutable),
        ((), Invalid),
    ],
)
def test_what_cannot_be_executed(made: Shimmed, argv: tuple[str, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        made.client.spawn("c", "", Plan(how="spawn", argv=argv, env=("PATH=/bin",)), Stdio())
    assert list(made.client.list()) == []


def test_wrong_states(made: Shimmed) -> None:
    with pytest.raises(NotFound):
        made.client.signal("c", "", 15)
    with pytest.raises(NotFound):
        made.client.start("c", "")
    made.spawn("c", "exec sleep 1000")
    with pytest.raises(FailedPrecondition):
        made.client.forget("c", "")
    with pytest.raises(FailedPrecondition):
        made.client.attach("c", "", Stdio())
    with pytest.raises(NotFound):
        made.client.spawn("d", "x", Plan(how="spawn", argv=("true",), target="d"), Stdio())
    with pytest.raises(InUse):
        made.client.quit()
    made.client.signal("c", "", signal.SIGTERM)
    assert made.exit("c").attributes["code"] == "143"
    with pytest.raises(FailedPrecondition):
        made.client.signal("c", "", signal.SIGTERM)
    made.client.forget("c", "")


def test_signals_are_not_ignored_in_what_the_shim_starts(made: Shimmed) -> None:
    reader, writer = os.pipe()
    made.spawn("c", "grep -E '^Sig(Ign|Blk)' /proc/self/status", Stdio(stdout=writer))
    os.close(writer)
    lines = dict(line.split(":\t") for line in read_all(reader).decode().splitlines())
    os.close(reader)
    assert {name: int(mask, 16) for name, mask in lines.items()} == {"SigIgn": 0, "SigBlk": 0}
    made.exit("c")
    made.client.forget("c", "")


def test_no_descriptor_of_the_shim_leaks(made: Shimmed) -> None:
    log = LogSink("json-file", path=str(made.run / "log"))
    made.spawn("other", "exec sleep 1000", Stdio(log=log))
    extra, end = os.pipe()
    reader, writer = os.pipe()
    made.client.spawn(
        "c", "", Plan(how="spawn", argv=("/bin/ls", "/proc/self/fd"), fds=(extra, end)), Stdio(stdout=writer)
    )
    os.close(writer)
    assert read_all(reader).split() == [b"0", b"1", b"2", b"3", b"4", b"5"]  # the last is ls's own
    for fd in (reader, extra, end):
        os.close(fd)
    made.exit("c")
    made.end("other")


def test_events_are_replayed_until_acknowledged(made: Shimmed) -> None:
    for name in ("a", "b"):
        made.spawn(name, "exit 1")
    first = [made.exit("a"), made.exit("b")]
    stream = made.client.events(0)
    again = sorted((next(stream), next(stream)), key=lambda event: event.id)
    assert again == first
    made.client.ack(min(event.sequence for event in first))
    (left,) = [event for event in first if event.sequence > min(item.sequence for item in first)]
    other: Iterator[Event] = made.client.events(0)
    assert next(other) == left
    made.client.ack(left.sequence)
    made.spawn("d", "exit 1")
    assert next(other).id == "d"
    assert next(stream).id == "d"
    assert made.exit("d").sequence > left.sequence
    for name in ("a", "b", "d"):
        made.client.forget(name, "")


def test_output_is_complete_before_the_exit_is_told(made: Shimmed) -> None:
    path = made.run / "log"
    for number in range(20):
        name = f"c{number}"
        made.spawn(
            name,
            "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); done",
            Stdio(log=LogSink("json-file", path=str(path))),
        )
        assert made.exit(name).attributes["drained"] == "true"
        assert read_json(path)["stdout"] == b"".join(b"%d\n" % line for line in range(200))
        path.unlink()
        made.client.forget(name, "")


def test_a_grandchild_that_holds_the_streams_does_not_hold_the_exit(made: Shimmed) -> None:
    path = made.run / "log"
    started = time.monotonic()
    made.spawn(
        "c", "echo $$; (exec sleep 3; echo late) & echo done; exit 4", Stdio(log=LogSink("json-file", path=str(path)))
    )
    event = made.exit("c")
    assert time.monotonic() - started < 2.5
    assert (event.attributes["code"], event.attributes["drained"]) == ("4", "true")
    assert b"done\n" in read_json(path)["stdout"]
    made.client.forget("c", "")


def test_log_and_reader_get_every_byte(made: Shimmed) -> None:
    path = made.run / "log"
    reader, writer = os.pipe()
    stdio = Stdio(stdout=writer, stderr=writer, log=LogSink("json-file", path=str(path)))
    made.spawn("c", "head -c 300000 /dev/zero | tr '\\0' 'a'; echo; echo bad >&2", stdio)
    os.close(writer)
    assert sorted(read_all(reader)) == sorted(b"a" * 300_000 + b"\nbad\n")
    os.close(reader)
    made.exit("c")
    assert read_json(path) == {"stdout": b"a" * 300_000 + b"\n", "stderr": b"bad\n"}
    made.client.forget("c", "")


def test_stdin_is_closed_half_when_its_writer_ends(made: Shimmed) -> None:
    theirs, mine = os.pipe()
    reader, writer = os.pipe()
    stdio = Stdio(stdin=theirs, stdout=writer, log=LogSink("json-file", path=str(made.run / "log")))
    made.spawn("c", "cat; echo eof", stdio)
    for fd in (theirs, writer):
        os.close(fd)
    os.write(mine, b"x" * 200_000)
    assert available(reader, 5)
    os.close(mine)
    assert read_all(reader).endswith(b"xeof\n")
    os.close(reader)
    made.exit("c")
    made.client.forget("c", "")


def test_a_held_stdin_outlives_its_writers(made: Shimmed) -> None:
    reader, writer = os.pipe()
    made.spawn(
        "c",
        "cat; echo eof",
        Stdio(stdout=writer, hold_stdin=True, log=LogSink("json-file", path=str(made.run / "log"))),
    )
    os.close(writer)
    for text, hold in ((b"one\n", True), (b"two\n", True)):
        theirs, mine = os.pipe()
        made.client.attach("c", "", Stdio(stdin=theirs, hold_stdin=hold))
        os.close(theirs)
        os.write(mine, text)
        os.close(mine)
        assert available(reader, 5) == text
    made.client.close_stdin("c", "")
    assert read_all(reader) == b"eof\n"
    os.close(reader)
    made.exit("c")
    made.client.forget("c", "")


def test_a_slow_reader_holds_up_its_own_container_only(made: Shimmed) -> None:
    log = LogSink("json-file", path=str(made.run / "log"))
    slow, writer = os.pipe()
    made.spawn("slow", "head -c 3000000 /dev/zero", Stdio(stdout=writer, log=log))
    os.close(writer)
    for number in range(5):
        reader, writer = os.pipe()
        made.spawn(
            f"c{number}", "echo quick", Stdio(stdout=writer, log=LogSink("json-file", path=f"{made.run}/l{number}"))
        )
        os.close(writer)
        assert read_all(reader) == b"quick\n"
        os.close(reader)
        made.exit(f"c{number}")
        made.client.forget(f"c{number}", "")
    assert [state.status for state in made.client.list()] == ["running"]
    assert len(read_all(slow)) == 3_000_000
    os.close(slow)
    made.exit("slow")
    made.client.forget("slow", "")


def test_a_dead_reader_is_dropped(made: Shimmed) -> None:
    path = made.run / "log"
    reader, writer = os.pipe()
    made.spawn(
        "c",
        "yes some line or other | head -c 3000000",
        Stdio(stdout=writer, log=LogSink("json-file", path=str(path))),
    )
    os.close(writer)
    os.close(reader)
    assert made.exit("c").attributes["code"] == "0"
    assert len(read_json(path)["stdout"]) == 3_000_000
    made.client.forget("c", "")


def test_attach_and_detach(made: Shimmed) -> None:
    fifo = made.run / "fifo"
    os.mkfifo(fifo)
    made.spawn("c", f"while read line; do echo $line; done < {fifo}", Stdio(attachable=True))
    feed = os.open(fifo, os.O_WRONLY)
    ours, theirs = socket.socketpair()
    os.write(feed, b"nobody\n")
    reader, writer = os.pipe()
    time.sleep(0.2)
    token = made.client.attach("c", "", Stdio(stdout=writer))
    made.client.attach("c", "", Stdio(stdout=theirs.fileno()))
    os.close(writer)
    theirs.close()
    os.write(feed, b"both\n")
    assert available(reader, 5) == b"both\n"
    assert ours.recv(100) == b"both\n"
    made.client.detach("c", "", token)
    assert read_all(reader) == b""
    os.close(reader)
    made.client.detach("c", "", token)
    os.write(feed, b"one\n")
    assert ours.recv(100) == b"one\n"
    os.close(feed)
    assert ours.recv(100) == b""
    ours.close()
    made.exit("c")
    made.client.forget("c", "")


@pytest.mark.parametrize("kind", ["append", "socket", "null", "file"])
def test_where_output_may_go(made: Shimmed, kind: str) -> None:
    ours = theirs = None
    target = made.run / "target"
    if kind == "socket":
        ours, theirs = socket.socketpair()
        fd = os.dup(theirs.fileno())
        theirs.close()
    else:
        path = "/dev/null" if kind == "null" else str(target)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if kind == "append" else 0), 0o600)
    made.spawn("c", "head -c 500000 /dev/zero", Stdio(stdout=fd, log=LogSink("local", path=str(made.run / "log"))))
    os.close(fd)
    if ours is not None:
        assert len(read_all(ours.fileno())) == 500_000
        ours.close()
    assert made.exit("c").attributes["drained"] == "true"
    if kind in ("append", "file"):
        assert target.stat().st_size == 500_000
    made.client.forget("c", "")


@pytest.mark.parametrize("how", ["drop", "block"])
def test_a_collector_that_is_full(made: Shimmed, how: str) -> None:
    reader, writer = os.pipe()
    sink = LogSink("raw-fd", fd=writer, when_full=how)  # type: ignore[arg-type]
    made.spawn("c", "head -c 2000000 /dev/zero", Stdio(log=sink))
    os.close(writer)
    if how == "drop":
        assert made.exit("c").attributes["code"] == "0"
        assert len(available(reader)) < 2_000_000
    else:
        assert len(read_all(reader)) == 2_000_000
        made.exit("c")
    os.close(reader)
    made.client.forget("c", "")


@pytest.mark.parametrize("how", ["drop", "block"])
def test_a_disk_that_is_full(made: Shimmed, how: str) -> None:
    """The container's readers, and all other containers, take no notice."""
    full = LogSink("json-file", path="/dev/full", when_full=how)  # type: ignore[arg-type]
    said = made.run / "said"  # a shell that is killed before it wrote has nothing to lose
    made.spawn("c", f"echo; touch {said}; yes | head -c 1000000", Stdio(log=full))
    made.spawn("d", "echo fine", Stdio(log=LogSink("json-file", path=str(made.run / "log"))))
    assert made.exit("d").attributes["drained"] == "true"
    if how == "drop":
        assert made.exit("c").attributes["code"] == "0"
    else:
        eventually(said.exists)
        made.client.signal("c", "", signal.SIGKILL)
        assert made.exit("c").attributes["drained"] == "false"
    for name in ("c", "d"):
        made.client.forget(name, "")


def test_a_log_that_has_room_again_misses_nothing(made: Shimmed) -> None:
    path = made.run / "missing" / "log"
    made.spawn("c", "seq 20000", Stdio(log=LogSink("json-file", path=str(path))))
    time.sleep(0.3)
    path.parent.mkdir()
    eventually(lambda: made.exit("c").attributes["code"] == "0")
    eventually(lambda: read_json(path)["stdout"] == b"".join(b"%d\n" % number for number in range(1, 20001)))
    made.client.forget("c", "")


def test_a_terminal(made: Shimmed) -> None:
    ours, theirs = os.openpty()
    path = made.run / "log"
    stdio = Stdio(
        stdin=theirs, stdout=theirs, terminal=True, rows=30, columns=90, log=LogSink("json-file", path=str(path))
    )
    state = made.container(
        "c", "stty size; read line; stty size; echo got $line; test -t 0 && test -t 2", stdio, terminal=True
    )
    os.close(theirs)
    assert state.status == "created"
    made.client.start("c", "")
    eventually(lambda: path.exists() and b"30 90" in read_json(path)["stdout"])
    made.client.resize("c", "", 40, 120)
    os.write(ours, b"text\n")
    assert made.exit("c").attributes["code"] == "0"
    text = read_json(path)["stdout"]
    assert b"40 120" in text
    assert b"got text" in text
    os.close(ours)
    made.client.forget("c", "")


def test_created_then_started(made: Shimmed) -> None:
    reader, writer = os.pipe()
    assert made.container("c", "echo $$", Stdio(stdout=writer)).status == "created"
    os.close(writer)
    assert available(reader, 0.2) == b""
    made.client.start("c", "")
    assert read_all(reader) == b"1\n"
    os.close(reader)
    made.exit("c")
    made.client.forget("c", "")


def test_a_start_that_fails_says_why(made: Shimmed) -> None:
    made.container("c", "", argv=("/nowhere",))
    with pytest.raises(CommandNotFound):
        made.client.start("c", "")
    made.client.forget("c", "")
    eventually(lambda: list(made.client.list()) == [])


def test_a_created_container_can_be_killed(made: Shimmed) -> None:
    made.container("c", "true")
    made.client.signal("c", "", signal.SIGKILL)
    assert made.exit("c").attributes["code"] == "137"
    with pytest.raises(FailedPrecondition):
        made.client.start("c", "")
    made.client.forget("c", "")


def test_hooks_run_at_their_moments(made: Shimmed) -> None:
    seen = made.run / "seen"
    hook = [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >> {seen}; echo >> {seen}"]}]
    made.container("c", "true", hooks={"createRuntime": hook, "poststart": hook, "poststop": hook})
    assert '"status": "creating"' in seen.read_text()
    made.client.start("c", "")
    made.exit("c")
    made.client.forget("c", "")
    eventually(lambda: seen.read_text().count("\n") == 3)
    for failing, why in (
        ({"path": "/bin/false"}, "status 1"),
        ({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}, "timeout"),
        ({"path": "/nowhere"}, "no such file"),
    ):
        with pytest.raises(FailedPrecondition, match=why):
            made.container("d", "true", hooks={"createRuntime": [failing]})
        eventually(lambda: list(made.client.list()) == [])


def test_sandboxes(made: Shimmed) -> None:
    made.client.create_sandbox(Sandbox("box", hostname="inside"))
    made.client.create_sandbox(Sandbox("box"))
    assert [box.hostname for box in made.client.sandboxes()] == ["inside"]
    own = os.stat("/proc/self/ns/net").st_ino
    fd = made.client.namespace("box", "net")
    there = os.fstat(fd).st_ino
    os.close(fd)
    assert there != own
    sock = socket.socket(fileno=made.client.socket("box", socket.AF_NETLINK, socket.SOCK_RAW, 0))
    sock.close()
    reader, writer = os.pipe()
    made.container("c", "readlink /proc/self/ns/net; hostname; exec sleep 1000", Stdio(stdout=writer), sandbox="box")
    os.close(writer)
    made.client.start("c", "")
    assert available(reader, 5).split(b"\n")[0] == b"net:[%d]" % there
    os.close(reader)
    with pytest.raises(InUse):
        made.client.remove_sandbox("box")
    made.end("c")
    made.client.remove_sandbox("box")
    made.client.remove_sandbox("box")
    with pytest.raises(NotFound):
        made.client.namespace("box", "net")


def test_a_sandbox_with_a_pid_namespace(made: Shimmed) -> None:
    made.client.create_sandbox(Sandbox("box", pid=True))
    for name in ("a", "b"):
        made.container(name, "exec sleep 1000", sandbox="box", shared_pid=True)
        made.client.start(name, "")
    inodes = {os.stat(f"/proc/{state.pid}/ns/pid").st_ino for state in made.client.list()}
    assert len(inodes) == 1
    assert os.stat("/proc/self/ns/pid").st_ino not in inodes
    for name in ("a", "b"):
        made.end(name)
    made.client.remove_sandbox("box")


def test_exec(made: Shimmed) -> None:
    made.container("c", "", argv=("/bin/sleep", "1000"))  # not by a shell, whose own execve may come late
    with pytest.raises(FailedPrecondition):
        made.exec("c", "x", "true")
    made.client.start("c", "")
    reader, writer = os.pipe()
    made.exec("c", "x", "readlink /proc/1/exe; exit 5", Stdio(stdout=writer))
    os.close(writer)
    made.client.start("c", "x")
    assert made.exit("c", "x").attributes["code"] == "5"
    assert b"sleep" in read_all(reader)
    os.close(reader)
    made.client.forget("c", "x")
    made.end("c")


def test_adopting_a_process(made: Shimmed) -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    with pytest.raises(FailedPrecondition):
        made.client.spawn("c", "", Plan(how="adopt", pid=pid, start_time=1), Stdio())
    state = made.client.spawn("c", "", Plan(how="adopt", pid=pid), Stdio())
    assert (state.status, state.pid) == ("running", pid)
    made.client.signal("c", "", signal.SIGKILL)
    os.waitpid(pid, 0)
    assert made.exit("c").attributes["code"] in ("137", "")
    made.client.forget("c", "")


def test_many_threads_at_once(made: Shimmed) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def life(number: int) -> int:
        name = f"c{number}"
        made.spawn(name, f"exit {number % 200}")
        eventually(lambda: next(item for item in made.client.list() if item.id == name).status == "stopped")
        state = next(item for item in made.client.list() if item.id == name)
        made.client.forget(name, "")
        assert state.exit is not None
        assert state.exit.code == number % 200
        return number

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(life, range(100))) == list(range(100))


def test_clients_that_go_away_without_a_word_leave_nothing(made: Shimmed) -> None:
    """CVE-2025-64329: a container that says nothing never notices that nobody listens; shim and logger must."""
    made.spawn("c", "exec sleep 1000", Stdio(attachable=True, hold_stdin=True))
    pids = (made.client.pid, made.client._call("hello")[0]["logger"])

    def attach(times: int) -> None:
        for _ in range(times):
            theirs, mine = os.pipe(), os.pipe()
            pair = socket.socketpair()
            made.client.attach("c", "", Stdio(stdin=theirs[0], stdout=mine[1], stderr=pair[0].fileno()))
            for fd in (*theirs, *mine):
                os.close(fd)
            for sock in pair:
                sock.close()

    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    attach(3)  # what is made once
    eventually(lambda: max(descriptors()) < 40)
    before = descriptors()
    attach(200)
    eventually(lambda: descriptors() <= before)
    reader, writer = os.pipe()  # and those that stay are served
    made.client.attach("c", "", Stdio(stdout=writer))
    os.close(writer)
    made.end("c")
    assert read_all(reader) == b""
    os.close(reader)


def test_a_request_without_an_id_is_carried_out_and_not_answered(made: Shimmed) -> None:
    made.container("c", "", argv=("/bin/true",), start=True)
    made.exit("c")
    assert [state.id for state in made.client.list("c")] == ["c"]
    with wire.connect(f"{made.client._run}/shim.sock") as sock:
        sock.settimeout(30)
        framing.send(sock, {"op": "no such op"})
        framing.send(sock, {"op": "forget", "container": "c", "exec_id": ""})
        framing.send(sock, {"id": 7, "op": "list", "container": "c"})
        assert framing.Reader(sock).next() == ({"id": 7, "ok": []}, [])
