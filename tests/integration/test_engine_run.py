"""What a container of the engine sees and leaves: the real drivers, end to end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from support.engines import clear, engine_of_a_module
from support.running import HOST, execute, run, sh, sleeper, until, until_it_listens
from wherry.api import (
    AlreadyExists,
    Bind,
    CommandNotExecutable,
    CommandNotFound,
    Engine,
    ExecRequest,
    FailedPrecondition,
    InUse,
    Invalid,
    NotFound,
    RunRequest,
    Stdio,
)
from wherry.engine.containers.specs import mounts
from wherry.linux import mount
from wherry.linux.cgroup import detect
from wherry.linux.userns import confined
from wherry.oci import compile

pytestmark = pytest.mark.shared
ISOLATION, NETWORK = ("isolation.userns", "network.pasta") if confined() else ("isolation.namespaces", "network.bridge")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_stays(engine: Engine) -> Iterator[None]:
    yield
    clear(engine)
    assert engine.doctor() == ()
    assert list((engine.run_directory / "bundles").iterdir()) == []  # type: ignore[attr-defined]


@pytest.fixture
def groups(engine: Engine) -> None:
    """Control groups, which an ordinary user has where some are delegated."""
    if (limits := engine.info().limits).startswith("none"):
        pytest.skip(limits)


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_exit_codes(engine: Engine, code: int) -> None:
    said = sh(engine, f"echo out; echo err >&2; exit {code}")
    assert said[:3] == (code, "out\n", "err\n")


def test_a_signal_is_128_more(engine: Engine) -> None:
    id = sleeper(engine)
    engine.kill(id)
    assert engine.wait(id, timeout=10).code == 137  # type: ignore[union-attr]


def test_pid_1_and_a_clean_environment(engine: Engine) -> None:
    said = sh(engine, "echo $$; env", env=("A=b",), hostname="box")
    lines = said.out.splitlines()
    assert lines[0] == "1"
    names = {line.partition("=")[0] for line in lines[1:]}
    assert {"A=b", "HOSTNAME=box"} <= set(lines)
    assert names <= {"A", "HOSTNAME", "PATH", "HOME", "PWD", "SHLVL", "_", "OLDPWD"}


def test_commands_that_cannot_run(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(CommandNotFound) as caught:
        run(engine, "nonesuch")
    assert caught.value.exit_code == 127
    assert "nonesuch" in str(caught.value)
    with pytest.raises(CommandNotExecutable) as denied:
        run(engine, "/etc")
    assert denied.value.exit_code == 126
    assert engine.containers(all=True) == ()
    with pytest.raises(CommandNotFound):
        run(engine, "nonesuch", remove=False, name="kept")
    kept = engine.container("kept")
    assert (kept.status, kept.exit_code) == ("created", 127)
    assert "nonesuch" in kept.error


def test_hostname_hosts_and_resolv_conf(engine: Engine) -> None:
    said = sh(engine, "hostname; cat /etc/hostname /etc/hosts", extra_hosts=("db:10.1.2.3",))
    first, second, *hosts = said.out.splitlines()
    assert first == second
    assert len(first) == 12
    assert "10.1.2.3\tdb" in hosts
    assert any(line.startswith("127.0.0.1") for line in hosts)
    said = sh(engine, "cat /etc/resolv.conf; echo x >> /etc/hosts && cat /etc/hosts", dns=("9.9.9.9",))
    assert said.out.startswith("nameserver 9.9.9.9\n")
    assert said.out.endswith("x\n")


def test_users(engine: Engine) -> None:
    assert run(engine, "id", "-u", user="1234").out == "1234\n"
    assert run(engine, "/bin/id", user="5:6").out.startswith("uid=5")
    with pytest.raises(Invalid):
        run(engine, "id", user="4294967295")
    with pytest.raises((NotFound, Invalid)):
        run(engine, "id", user="nobody-of-that-name")


def test_work_directory(engine: Engine) -> None:
    assert sh(engine, "pwd", workdir="/a/b c").out == "/a/b c\n"


def test_binds(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    binds = (Bind("bind", str(tmp_path), "/data"), Bind("bind", str(tmp_path), "/ro", ("ro",)))
    said = sh(engine, "cat /data/file; echo new > /data/new; echo x > /ro/x", mounts=binds)
    assert said.code != 0
    assert said.out == "from the host"
    assert "ead-only" in said.err
    assert (tmp_path / "new").read_text() == "new\n"
    assert not (tmp_path / "x").exists()
    made = tmp_path / "made" / "here"
    assert run(engine, "ls", "/m", mounts=(Bind("bind", str(made), "/m", (), True),)).code == 0
    assert made.is_dir()
    with pytest.raises(NotFound):
        run(engine, "true", mounts=(Bind("bind", str(tmp_path / "absent"), "/m"),))


def test_a_read_only_bind_is_so_all_the_way_down(engine: Engine, tmp_path: Path) -> None:
    """The twin asks for what is mounted below to stay writable."""
    (tmp_path / "below").mkdir()
    mount.mount("tmpfs", str(tmp_path / "below"), "tmpfs")
    try:
        for options, code in ((("ro",), 1), (("ro", "writable"), 0)):
            binds = (Bind("bind", str(tmp_path), "/data", options),)
            said = sh(engine, "echo x > /data/x || echo x > /data/below/x || exit 1", mounts=binds)
            assert said.code == code
            assert (tmp_path / "below/x").exists() == (code == 0)
            assert not (tmp_path / "x").exists()
    finally:
        mount.umount(str(tmp_path / "below"))


def test_tmpfs_and_read_only(engine: Engine) -> None:
    said = sh(
        engine,
        "echo a > /t/a && cat /t/a; echo b > /b; stat -f -c %T /t; cat /proc/mounts",
        read_only=True,
        mounts=(Bind("tmpfs", "", "/t", ("size=1m", "mode=1777")),),
    )
    assert said.out.startswith("a\ntmpfs\n")
    assert "ead-only" in said.err
    mount = next(line for line in said.out.splitlines() if " /t tmpfs" in line)
    assert {"nosuid", "nodev", "noexec", "size=1024k"} <= set(mount.split()[3].split(","))
    assert sh(engine, "echo b > /b; cat /b").out == "b\n"


def files_it_can_write(engine: Engine, **request: Any) -> str:
    """Which of its files under /etc a container can write. The engine can write them all, and the container sees it."""
    id = sleeper(engine, **request)
    path = engine.run_directory / "bundles" / id / "hosts"  # type: ignore[attr-defined]
    path.write_text("192.0.2.1 engine\n")
    script = "for name in hosts hostname resolv.conf; do echo x >> /etc/$name && echo $name; done; cat /etc/hosts"
    said = execute(engine, id, "/bin/sh", "-c", script).out
    assert "192.0.2.1 engine\n" in said
    return said.partition("192")[0]


def test_a_read_only_container_does_not_write_its_files_under_etc(engine: Engine) -> None:
    assert files_it_can_write(engine, read_only=True) == ""
    assert files_it_can_write(engine, read_only=False) == "hosts\nhostname\nresolv.conf\n"


def test_twin_the_files_are_mounted_as_for_any_container(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mounts.all_mounts
    monkeypatch.setattr(mounts, "all_mounts", lambda request, *rest: real(evolve(request, read_only=False), *rest))
    assert files_it_can_write(engine, read_only=True, labels={"compiled": "anew"})


@pytest.mark.parametrize("twin", [False, True])
def test_an_exec_takes_the_last_process_of_a_limit(
    engine: Engine, groups: None, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """The process that would have it spawned needs a place of its own, in version 1 of cgroups."""
    if twin:
        if detect().unified:
            pytest.skip("it is in no cgroup of the container's")
        monkeypatch.setattr(compile, "_FEW", 0)
    engine.run(RunRequest(HOST, ("sleep", "1000"), name="full", pids_limit=2))
    try:
        for _again in range(2):
            if twin:
                with pytest.raises(CommandNotExecutable, match="temporarily unavailable"):
                    execute(engine, "full", "true")
            else:
                assert execute(engine, "full", "true").code == 0
    finally:
        engine.remove("full", force=True)


def test_limits(engine: Engine, groups: None) -> None:
    id = sleeper(engine, memory=32 << 20, pids_limit=64, cpus=0.5, ulimits=(("nofile", 100, 200),))
    stats = engine.stats(id)
    assert stats["pids.current"] >= 1
    assert stats["memory.current"] > 0
    assert stats["io.rbytes"] >= 0
    assert stats["io.wbytes"] >= 0
    assert execute(engine, id, "/bin/sh", "-c", "ulimit -n; ulimit -Hn").out == "100\n200\n"
    said = sh(engine, "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; echo done", pids_limit=10)
    assert "ork" in said.err


def test_out_of_memory_is_told(engine: Engine, groups: None) -> None:
    asked = RunRequest(
        HOST, ("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=4"), memory=16 << 20, name="hungry"
    )
    id = engine.run(asked).id
    exit = engine.wait(id, timeout=20)
    assert exit is not None
    assert exit.code == 137
    assert exit.oom_killed
    assert engine.container(id).oom_killed


def test_capabilities_and_privileges(engine: Engine) -> None:
    def status(**request: object) -> dict[str, str]:
        lines = run(engine, "cat", "/proc/self/status", **request).out.splitlines()  # type: ignore[arg-type]
        return {line.split(":")[0]: line.split(":")[1].strip() for line in lines}

    default = status()
    assert default["CapBnd"] == default["CapEff"] == "00000000a80425fb"
    assert default["CapInh"] == default["CapAmb"] == "0000000000000000"
    assert default["Seccomp"] == "2"
    assert default["NoNewPrivs"] == "0"
    assert status(cap_drop=("ALL",))["CapEff"] == "0000000000000000"
    assert status(user="1000")["CapEff"] == "0000000000000000"
    assert status(no_new_privileges=True)["NoNewPrivs"] == "1"
    assert status(seccomp="unconfined")["Seccomp"] == "0"
    assert status(privileged=True)["Seccomp"] == "0"


def test_networks(engine: Engine) -> None:
    for network, links in (("", {"lo", "eth0"}), ("none", {"lo"})):
        lines = run(engine, "cat", "/proc/net/dev", network=network).out.splitlines()[2:]
        assert {line.split(":")[0].strip() for line in lines} == links
    said = sh(engine, "hostname; ls -l /proc/self/ns/net", network="host")
    assert said.out.splitlines()[0] == socket.gethostname()
    assert os.readlink("/proc/self/ns/net") in said.out
    with pytest.raises(NotFound, match=r"there is .*host, none"):
        run(engine, "true", network="blue")


def test_another_containers_network(engine: Engine) -> None:
    one = sleeper(engine, "one")
    first = execute(engine, one, "ls", "-l", "/proc/self/ns/net").out.split()[-1]
    said = sh(engine, "ls -l /proc/self/ns/net; hostname", network="container:one")
    assert first in said.out
    assert said.out.splitlines()[-1] == one[:12]


def test_logs_hold_what_was_said(engine: Engine) -> None:
    said = sh(engine, "echo one; echo two >&2; echo three", name="talker", remove=False)
    assert said.out == "one\nthree\n"
    lines = [(line.stream, line.data) for line in engine.logs("talker")]
    assert sorted(lines) == [("stderr", b"two\n"), ("stdout", b"one\n"), ("stdout", b"three\n")]
    assert next(line.data for line in engine.logs("talker", tail=1)) in (b"three\n", b"two\n")
    engine.remove("talker")
    with pytest.raises(NotFound):
        engine.logs("talker")


def test_logs_follow_to_the_end(engine: Engine) -> None:
    id = engine.run(RunRequest(HOST, ("/bin/sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"))).id
    assert b"".join(line.data for line in engine.logs(id, follow=True)) == b"1\n2\n3\n"


def test_exec(engine: Engine) -> None:
    id = sleeper(engine, env=("A=container",), user="1:2", cap_drop=("KILL",))
    said = execute(engine, id, "/bin/sh", "-c", "echo $A $B; id -u; pwd; exit 9", env=("B=exec",), workdir="/etc")
    assert (said.code, said.out) == (9, "container exec\n1\n/etc\n")
    assert execute(engine, id, "id", "-u", user="0").out == "0\n"
    with pytest.raises(CommandNotFound):
        execute(engine, id, "nonesuch")
    eff = execute(engine, id, "/bin/sh", "-c", "cat /proc/self/status", user="0").out
    assert "CapEff:\t00000000a80425db" in eff
    long = engine.exec(id, ExecRequest(("sleep", "60")))
    assert engine.wait(id, long, timeout=0.05) is None
    engine.kill(id, "TERM", long)
    assert engine.wait(id, long, timeout=10).code == 143  # type: ignore[union-attr]
    engine.stop(id)
    with pytest.raises(FailedPrecondition):
        execute(engine, id, "true")


def test_a_containers_end_takes_its_execs_along(engine: Engine) -> None:
    id = sleeper(engine)
    long = engine.exec(id, ExecRequest(("sleep", "60")))
    engine.kill(id)
    assert engine.wait(id, timeout=10).code == 137  # type: ignore[union-attr]
    exit = engine.wait(id, long, timeout=10)
    assert exit is not None
    assert exit.code in (137, None)


def test_stop_and_start_again(engine: Engine) -> None:
    id = sleeper(engine, "again")
    execute(engine, id, "touch", "/kept")
    stopped = engine.stop(id)
    assert (stopped.status, stopped.exit_code) == ("stopped", 0)
    assert engine.start("again").status == "running"
    until_it_listens(engine, id)
    assert execute(engine, id, "ls", "/kept").out == "/kept\n"
    engine.kill(id, "USR1")
    assert engine.wait(id, timeout=10).code == 7  # type: ignore[union-attr]
    assert engine.container(id).exit_code == 7


def test_stop_kills_what_does_not_listen(engine: Engine) -> None:
    id = engine.run(RunRequest(HOST, ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"))).id
    assert engine.stop(id, 0.2).exit_code == 137


def test_pause(engine: Engine, groups: None) -> None:
    id = sleeper(engine)
    engine.pause(id)
    assert engine.container(id).status == "paused"
    with pytest.raises(FailedPrecondition):
        execute(engine, id, "true")
    engine.resume(id)
    assert execute(engine, id, "true").code == 0
    engine.pause(id)
    assert engine.stop(id).status == "stopped"


def test_create_then_start(engine: Engine) -> None:
    created = engine.create(RunRequest(HOST, ("/bin/sh", "-c", "exit 5"), name="later", remove=True))
    assert (created.status, created.pid) == ("created", 0)
    engine.start("later")
    assert engine.wait(created.id, timeout=10).code == 5  # type: ignore[union-attr]
    with pytest.raises(NotFound):
        engine.container("later")


def test_names_and_prefixes(engine: Engine) -> None:
    one = engine.create(RunRequest(HOST, ("true",), name="web"))
    with pytest.raises(AlreadyExists):
        engine.create(RunRequest(HOST, ("true",), name="web"))
    assert engine.container(one.id[:10]).name == "web"
    engine.remove("web")
    assert engine.create(RunRequest(HOST, ("true",), name="web")).id != one.id


def test_remove_wants_force_for_what_runs(engine: Engine) -> None:
    id = sleeper(engine)
    with pytest.raises(InUse):
        engine.remove(id)
    engine.remove(id, force=True)
    with pytest.raises(NotFound):
        engine.container(id)


def test_labels_and_filters(engine: Engine) -> None:
    engine.create(RunRequest(HOST, ("true",), name="a", labels={"tier": "front"}))
    sleeper(engine, "b", labels={"tier": "back"})
    assert [c.name for c in engine.containers()] == ["b"]
    assert [c.name for c in engine.containers(all=True)] == ["b", "a"]
    assert [c.name for c in engine.containers(all=True, filters={"label": ["tier=front"]})] == ["a"]


def test_inspect(engine: Engine) -> None:
    id = sleeper(engine, "seen", read_only=True, labels={"a": "b"})
    data = engine.inspect("seen")
    assert data["Id"] == id
    assert data["State"]["Status"] == "running"
    assert data["State"]["Pid"] == engine.container(id).pid
    assert data["Config"]["Labels"]["a"] == "b"
    assert data["HostConfig"]["ReadonlyRootfs"] is True
    assert data["spec"]["root"]["readonly"] is True
    assert data["owners"]["/root/readonly"] == "request"
    assert Path(data["LogPath"]).exists()


def test_an_image_in_use_stays(engine: Engine) -> None:
    engine.create(RunRequest(HOST, ("true",), name="user"))
    name = engine.images()[0].names[0]
    with pytest.raises(InUse, match="was made from it"):
        engine.remove_image(name)


def test_standard_input(engine: Engine) -> None:
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    stdio = Stdio(stdin=reader, stdout=out_writer)
    id = engine.run(RunRequest(HOST, ("cat",), interactive=True, remove=True), stdio).id
    os.close(reader)
    os.close(out_writer)
    os.write(writer, b"hello")
    os.close(writer)
    with os.fdopen(out_reader, "rb") as out:
        assert out.read() == b"hello"
    assert engine.wait(id, timeout=10).code == 0  # type: ignore[union-attr]


def test_terminal(engine: Engine) -> None:
    out_reader, out_writer = os.pipe()
    stdio = Stdio(stdout=out_writer, terminal=True, rows=33, columns=99)
    script = "stty size 2>/dev/null; test -t 0 && test -t 1 && echo tty; echo $TERM; sleep 0.3; read x"
    id = engine.run(
        RunRequest(HOST + ",/bin/stty", ("/bin/sh", "-c", script), tty=True, interactive=True, detach=True), stdio
    ).id
    os.close(out_writer)
    engine.resize(id, 40, 120)
    with pytest.raises(Invalid):
        engine.resize(id, 0, 5)
    until(lambda: b"xterm" in b"".join(line.data for line in engine.logs(id)))
    engine.remove(id, force=True)
    with os.fdopen(out_reader, "rb") as out:
        said = out.read()
    assert b"tty\r\n" in said


def test_attach(engine: Engine) -> None:
    id = engine.run(
        RunRequest(HOST, ("/bin/sh", "-c", "read x; echo got $x"), interactive=True, detach=True), Stdio()
    ).id
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()
    token = engine.attach(id, Stdio(stdin=in_reader, stdout=out_writer))
    os.close(in_reader)
    os.close(out_writer)
    os.write(in_writer, b"it\n")
    with os.fdopen(out_reader, "rb") as out:
        assert out.read() == b"got it\n"
    assert engine.wait(id, timeout=10).code == 0  # type: ignore[union-attr]
    engine.detach(id, token)
    os.close(in_writer)


def test_events_tell_the_whole_life(engine: Engine) -> None:
    before = list(engine.events(0, follow=False))[-1].sequence
    stream = engine.events(-1)
    id = sh(engine, "exit 3").id
    seen = []
    for event in stream:
        if event.id == id:
            seen.append(event)
        if event.topic == "container.removed":
            break
    stream.close()  # type: ignore[attr-defined]
    topics = [event.topic for event in seen]
    assert topics == [
        "container.created", "network.attached", "task.started", "network.detached", "task.exited", "container.removed",
    ]  # fmt: skip
    assert next(e for e in seen if e.topic == "task.exited").attributes["code"] == "3"
    assert [e.sequence for e in engine.events(before, follow=False)] == list(range(before + 1, seen[-1].sequence + 1))


def test_spans(engine: Engine) -> None:
    id = sh(engine, "true", trace=True).id
    plugins = {span.plugin for span in engine.spans(id)}
    assert {"snapshotter.overlayfs", ISOLATION, NETWORK} <= plugins


def test_spans_of_what_failed_can_be_asked_for(engine: Engine) -> None:
    with pytest.raises(CommandNotFound) as caught:
        run(engine, "nosuch", remove=True, trace=True)
    assert ISOLATION in {span.plugin for span in engine.spans(caught.value.container)}


def test_spans_of_what_failed_go(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry.engine.state.state.SPAN_SECONDS", 0.0)
    kernel = engine._p.state.kernel
    before = set(kernel._collectors)
    with pytest.raises(NotFound):
        engine.create(RunRequest(HOST, ("true",), variant="nope", trace=True))
    with pytest.raises(CommandNotFound):
        run(engine, "nosuch", remove=True, trace=True)
    until(lambda: set(kernel._collectors) <= before)


def test_both_snapshotters_and_gc(engine: Engine) -> None:
    assert run(engine, "echo", "vfs", snapshotter="vfs").out == "vfs\n"
    engine.create(RunRequest(HOST, ("true",), name="holds"))
    engine.gc()
    assert engine.start("holds").status in ("running", "stopped")
    assert engine.wait("holds", timeout=10).code == 0  # type: ignore[union-attr]


def test_doctor_misses_a_blob(engine: Engine, tmp_path: Path) -> None:
    run(engine, "true")
    target = engine.image(HOST).target.digest
    (file,) = (engine.root / "store").rglob(target.partition(":")[2])
    text = file.read_bytes()
    file.write_bytes(text + b"more")
    assert [(f.what, f.problem) for f in engine.doctor()] == [
        (f"blob {target}", f"has {len(text) + 4} bytes, not {len(text)}")
    ]
    file.unlink()
    assert [(f.what, f.problem, f.repair) for f in engine.doctor(repair=True)] == [
        (f"blob {target}", "its file is gone", "forgotten")
    ]
    assert engine.doctor() == ()
    assert run(engine, "echo", "whole", pull="always").out == "whole\n"
    assert file.read_bytes() == text


def test_init(engine: Engine) -> None:
    said = sh(engine, "cat /proc/1/comm; echo $$", init=True)
    assert said.out.splitlines()[0].startswith(("docker-init", "tini", "catatonit"))
    assert said.out.splitlines()[1] != "1"


def test_many_at_once(engine: Engine) -> None:
    import threading

    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            for round in range(3):
                said = sh(engine, f"echo {number} {round}; exit {number}")
                assert said[:2] == (number, f"{number} {round}\n")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("slow", [False, True])
def test_an_exec_that_ends_with_its_container_is_told_by_its_signal(engine: Engine, slow: bool) -> None:
    """It is killed with the container, though its output may be held up by a reader that takes none."""
    id = sleeper(engine)
    source, sink = os.pipe()
    try:
        words = "while :; do echo line; done" if slow else "sleep 100"
        exec_id = engine.exec(id, ExecRequest(("/bin/sh", "-c", words)), Stdio(stdout=sink))
        if slow:
            assert os.read(source, 5) == b"line\n"
        engine.kill(id)
        container, exec = engine.wait(id, timeout=30), engine.wait(id, exec_id, timeout=30)
        assert container is not None
        assert exec is not None
        assert (container.code, exec.code) == (137, 137)
    finally:
        os.close(source)
        os.close(sink)


def test_no_descriptor_of_the_engine_goes_to_what_it_starts(engine: Engine) -> None:
    """Whatever a worker is started with is given to it by name: all else is closed as it begins."""
    id = sleeper(engine)
    engine.wait(id, engine.exec(id, ExecRequest(("/bin/true",))), timeout=30)
    open_ones = []
    for name in os.listdir("/proc/self/fd"):
        try:
            flags = Path(f"/proc/self/fdinfo/{name}").read_text().split("flags:")[1].split()[0]
            if int(name) > 2 and not int(flags, 8) & os.O_CLOEXEC:
                open_ones.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    assert [name for name in open_ones if "pidfd" in name or "socket" in name or "mem" in name] == []
