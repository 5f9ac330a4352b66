"""A new engine over what an old one left: in this process, and as the resident process killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import wherry
from support.engines import EngineDirs, Wherry
from support.running import HOST, execute, run, sleeper, until
from wherry.api import Engine, ExecRequest, Info, NotFound, RunRequest, Stdio, Unavailable


def engine_at(dirs: EngineDirs) -> Engine:
    return wherry.Engine(root=dirs.root, run=dirs.run)


def test_a_second_engine_is_told_whose_root_it_is(engine: Engine, engine_dirs: EngineDirs, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"an engine with pid {os.getpid()} has it"):
        wherry.Engine(root=engine_dirs.root, run=tmp_path / "run")
    with pytest.raises(Unavailable, match="has it"):
        wherry.Engine(root=tmp_path / "root", run=engine_dirs.run)


def test_containers_stay_over_a_restart(engine_dirs: EngineDirs) -> None:
    first = engine_at(engine_dirs)
    id = sleeper(first, "stays")
    pid = first.container(id).pid
    first.close()
    assert Path(f"/proc/{pid}").exists()
    second = engine_at(engine_dirs)
    try:
        again = second.container("stays")
        assert (again.status, again.pid) == ("running", pid)
        assert execute(second, id, "echo", "still here").out == "still here\n"
        assert second.stop(id).exit_code == 0
        second.remove(id)
    finally:
        second.close()


def test_exits_while_no_engine_is_there_are_told_later(engine_dirs: EngineDirs) -> None:
    first = engine_at(engine_dirs)
    kept = first.run(RunRequest(HOST, ("/bin/sh", "-c", "read x; exit 42"), name="kept", interactive=True, detach=True))
    own = first.run(RunRequest(HOST, ("/bin/sh", "-c", "read x; exit 4"), remove=True, interactive=True, detach=True))
    pids = [kept.pid, own.pid]
    first.close()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    second = engine_at(engine_dirs)
    try:
        exit = second.wait("kept", timeout=10)
        assert exit is not None
        assert exit.code == 137
        until(lambda: len(second.containers(all=True)) == 1)
        events = [event for event in second.events(0, follow=False) if event.topic == "task.exited"]
        assert sorted(event.attributes["code"] for event in events) == ["137", "137"]
        second.remove("kept")
        assert second.doctor() == ()
    finally:
        second.close()


# the resident engine


@pytest.fixture
def resident(wherry: Wherry) -> Engine:
    """A client of a resident engine, which the first call starts."""
    import wherry as package

    with pytest.raises(Unavailable, match="none listens there"):
        package.connect(wherry.dirs.root, wherry.dirs.run, start=False)
    with package.connect(wherry.dirs.root, wherry.dirs.run) as engine:
        yield engine  # type: ignore[misc]


def test_the_whole_protocol_over_the_socket(resident: Engine, tmp_path: Path) -> None:
    said = run(resident, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert said[:3] == (3, "out\n", "err\n")
    id = sleeper(resident, "one")
    assert execute(resident, id, "echo", "x").out == "x\n"
    assert [container.name for container in resident.containers()] == ["one"]
    assert resident.inspect("one")["State"]["Running"] is True
    info = resident.info()
    assert isinstance(info, Info)
    assert info.engine.pid != os.getpid()
    with pytest.raises(NotFound, match="no such container"):
        resident.container("two")
    before = list(resident.events(0, follow=False))[-1].sequence
    stream = resident.events(before)
    resident.remove("one", force=True)
    topics = []
    for event in stream:
        topics.append(event.topic)
        if event.topic == "container.removed":
            break
    assert "task.exited" in topics
    assert resident.doctor() == ()
    assert any(plugin.id == "namespaces" for plugin in resident.plugins())


def test_the_resident_engine_is_killed_with_containers(resident: Engine, wherry: Wherry) -> None:
    import wherry as package

    stays = sleeper(resident, "stays")
    ends = resident.run(
        RunRequest(HOST, ("/bin/sh", "-c", "while ! test -e /go; do sleep 0.02; done; exit 33"), name="ends")
    ).id
    long = resident.exec(stays, ExecRequest(("/bin/sh", "-c", "sleep 0.5; exit 5")))
    upper = resident.container(ends).pid
    os.kill(resident.info().engine.pid, signal.SIGKILL)
    Path(f"/proc/{upper}/root/go").write_text("")
    until(lambda: not Path(f"/proc/{upper}").exists())
    with package.connect(wherry.dirs.root, wherry.dirs.run) as again:
        assert again.container(stays).status == "running"
        assert again.wait(ends, timeout=10).code == 33  # type: ignore[union-attr]
        assert again.wait(stays, long, timeout=10).code == 5  # type: ignore[union-attr]
        assert execute(again, stays, "echo", "x").out == "x\n"
        for name in ("stays", "ends"):
            again.remove(name, force=True)
        assert again.doctor() == ()


def test_the_shim_is_killed_under_a_running_engine(resident: Engine) -> None:
    id = sleeper(resident, "stays")
    os.kill(resident.info().shim.pid, signal.SIGKILL)
    until(lambda: _usable(resident, id))
    assert resident.container(id).status == "running"
    assert resident.stop(id).exit_code == 0
    resident.remove(id)
    assert run(resident, "echo", "new").out == "new\n"


def _usable(engine: Engine, id: str) -> bool:
    try:
        return execute(engine, id, "echo", "x").out == "x\n"
    except (Unavailable, OSError):
        return False


def test_version_and_config_mismatches_are_told(resident: Engine, wherry: Wherry, tmp_path: Path) -> None:
    import socket

    import wherry as package
    from wherry.errors import Error
    from wherry.linux import framing

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(wherry.dirs.run / "engine.sock"))
        framing.send(sock, {"wherry": 1, "version": "0.0.0", "frontend": "api"})
        assert framing.Reader(sock).next() == ({"mismatch": package.__version__}, [])
    other = tmp_path / "other.toml"
    other.write_text("version = 1\n")
    with pytest.raises(Error, match="engine restart"):
        package.connect(wherry.dirs.root, wherry.dirs.run, config=other)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(wherry.dirs.run / "engine.sock"))
        framing.send(sock, {"wherry": 1, "version": package.__version__, "frontend": "nonesuch"})
        frame = framing.Reader(sock).next()
        assert frame is not None
        assert "nonesuch" in frame[0]["err"]
        assert frame[0]["exit"] == 125
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(wherry.dirs.run / "engine.sock"))
        sock.sendall(b"\xff\xff\xff\xff nonsense")
        assert sock.recv(10) == b""
    assert resident.containers() == ()


def test_sigterm_ends_the_engine_and_not_its_containers(resident: Engine, wherry: Wherry) -> None:
    import wherry as package

    id = sleeper(resident, "stays")
    pid = resident.info().engine.pid
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert not (wherry.dirs.run / "engine.sock").exists()
    with package.connect(wherry.dirs.root, wherry.dirs.run) as again:
        assert again.container(id).status == "running"
        again.remove(id, force=True)


def test_a_bad_start_says_why(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("version = 1\n[engine]\nlogg = 'x'\n")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    command = [
        sys.executable,
        "-I",
        "-m",
        "wherry.engine.main",
        "--root",
        str(tmp_path / "r"),
        "--run",
        str(tmp_path / "n"),
    ]
    done = subprocess.run(
        [*command, "--config", str(config), "--ready-fd", str(writer)],
        pass_fds=(writer,),
        capture_output=True,
        check=False,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        line = said.read().decode()
    assert done.returncode == 1
    assert "logg" in line
    assert line.count("\n") == 1


def test_stdio_of_a_remote_run_goes_straight_through(resident: Engine) -> None:
    reader, writer = os.pipe()
    id = resident.run(RunRequest(HOST, ("cat",), interactive=True, remove=True), Stdio(stdin=reader, stdout=writer)).id
    os.close(writer)
    os.close(reader)
    assert resident.wait(id, timeout=0.05) is None
    resident.kill(id)
    assert resident.wait(id, timeout=10).code == 137  # type: ignore[union-attr]


def test_an_idle_engine_ends_by_itself(engine_dirs: EngineDirs, tmp_path: Path) -> None:
    import wherry as package

    config = tmp_path / "idle.toml"
    config.write_text('version = 1\n[engine]\nfrontends = []\nlog = "json-file"\nidle_exit = 0.4\n')
    with package.connect(engine_dirs.root, engine_dirs.run, config=config) as engine:
        pid = engine.info().engine.pid
        assert run(engine, "true").code == 0
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert not (engine_dirs.run / "engine.sock").exists()


def test_another_root_is_refused(resident: Engine, wherry: Wherry, tmp_path: Path) -> None:
    done = wherry("--root", tmp_path / "other", "ps", code=125)
    assert "has the root" in done.stderr
    assert resident.containers() == ()
