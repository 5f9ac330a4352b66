"""From argv to RunRequest and to calls of the engine, through a real session."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from support.cli import Client, FakeEngine, absent, call, container, image
from wherry.api import (
    Bind,
    CommandNotFound,
    ContainerProcess,
    ContainerUse,
    DiskUsage,
    Event,
    ExecRequest,
    Exit,
    InUse,
    LogLine,
    Port,
    Progress,
    RunRequest,
    Span,
    Stdio,
    Volume,
)


def requested(*argv: str, **options: Any) -> RunRequest:
    engine = FakeEngine()
    code, _out, err = call(engine, "create", *argv, **options)
    assert (code, err) == (0, "")
    ((request,),) = engine.called("create")
    return request


def refused(*argv: str, **options: Any) -> str:
    engine = FakeEngine()
    code, out, err = call(engine, *argv, **options)
    assert (code, out) == (125, "")
    assert err.startswith("wherry: ")
    assert err.count("\n") == 1
    assert engine.calls == []
    return err


def test_an_image_alone() -> None:
    assert requested("busybox") == RunRequest(image="busybox")


def test_options_end_at_the_image() -> None:
    request = requested("--name", "x", "busybox", "ls", "--name", "-it", "--", "y")
    assert (request.name, request.command) == ("x", ("ls", "--name", "-it", "--", "y"))


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        (["-it"], {"interactive": True, "tty": True}),
        (["-ti", "--rm"], {"interactive": True, "tty": True, "remove": True}),
        (["--rm=false", "-i=true"], {"remove": False, "interactive": True}),
        (["--memory-reservation", "64m", "--oom-score-adj=-500"], {"memory_reservation": 64 << 20, "oom_score_adj": -500}),
        (["--cpu-quota", "50000"], {"cpus": 0.5}),
        (["--cpu-quota", "50000", "--cpu-period", "20000"], {"cpus": 2.5}),
        (["-m", "512m", "--memory-swap=-1"], {"memory": 512 << 20, "memory_swap": -1}),
        (["-m512m", "--cpus=1.5", "-c", "512"], {"memory": 512 << 20, "cpus": 1.5, "cpu_shares": 512}),
        (["--cpuset-cpus", "0-1", "--pids-limit", "-1"], {"cpuset": "0-1", "pids_limit": -1}),
        (["--shm-size", "1g"], {"shm_size": 1 << 30}),
        (["--ulimit", "nofile=1:2", "--ulimit", "core=0"], {"ulimits": (("nofile", 1, 2), ("core", 0, 0))}),
        (["--sysctl", "net.core.somaxconn=1"], {"sysctls": {"net.core.somaxconn": "1"}}),
        (["--cap-add", "NET_ADMIN", "--cap-drop=ALL"], {"cap_add": ("NET_ADMIN",), "cap_drop": ("ALL",)}),
        (["--privileged", "--read-only", "--init"], {"privileged": True, "read_only": True, "init": True}),
        (["--security-opt", "no-new-privileges"], {"no_new_privileges": True}),
        (
            ["--security-opt", "no-new-privileges:true", "--security-opt", "seccomp=unconfined"],
            {"no_new_privileges": True, "seccomp": "unconfined"},
        ),
        (["-h", "box", "-u", "1:2", "-w", "/srv"], {"hostname": "box", "user": "1:2", "workdir": "/srv"}),
        (["--entrypoint", "/bin/sh"], {"entrypoint": ("/bin/sh",)}),
        (["--entrypoint="], {"entrypoint": ()}),
        (["-l", "a=1", "--label", "b"], {"labels": {"a": "1", "b": ""}}),
        (["--annotation", "a.b=1"], {"annotations": {"a.b": "1"}}),
        (["--stop-signal", "INT", "--stop-timeout", "3"], {"stop_signal": "INT", "stop_timeout": 3.0}),
        (["--network", "none"], {"network": "none"}),
        (["--net=host"], {"network": "host"}),
        (["-p", "8080:80", "-p", "53/udp"], {"ports": (Port(80, "tcp", "", 8080), Port(53, "udp"))}),
        (
            ["--dns", "1.1.1.1", "--dns-search", "x", "--dns-option", "ndots:2"],
            {"dns": ("1.1.1.1",), "dns_search": ("x",), "dns_options": ("ndots:2",)},
        ),
        (["--add-host", "a:1.2.3.4", "--add-host", "b=::1"], {"extra_hosts": ("a:1.2.3.4", "b:::1")}),
        (["--tmpfs", "/t:size=1m"], {"mounts": (Bind("tmpfs", "tmpfs", "/t", ("nosuid", "nodev", "noexec", "size=1m")),)}),
        (["--device", "/dev/fuse"], {"devices": ("/dev/fuse",)}),
        (["--log-driver", "none", "--log-opt", "max-size=1m"], {"log": "none", "log_options": {"max-size": "1m"}}),
        (["--platform", "linux/arm64", "--pull", "never"], {"platform": "linux/arm64", "pull": "never"}),
        (
            ["--variant", "v", "--snapshotter", "vfs", "--isolation", "i", "--store", "s"],
            {"variant": "v", "snapshotter": "vfs", "isolation": "i", "store": "s"},
        ),
        (["--option", "a.b=c", "--trace", "/tmp/t"], {"options": {"a.b": "c"}, "trace": True}),
        (["-eA=1", "-e", "B", "-e", "NONE", "--env=A=2"], {"env": ("A=2", "B=from client")}),
    ],
)  # fmt: skip
def test_options(argv: list[str], fields: dict[str, Any]) -> None:
    assert requested(*argv, "busybox", environ={"B": "from client"}) == RunRequest(image="busybox", **fields)


def test_paths_are_the_clients(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=1\n\nHOME\n  B=x y\n")
    (tmp_path / "labels").write_text("tier=db\n")
    (tmp_path / "seccomp.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    request = requested(
        "-v", "./data:/data:ro", "--mount", "type=bind,src=data,dst=/x".replace("data", "./data"), "--env-file", "env", "-e", "A=2",
        "--label-file", "./labels", "--security-opt", "seccomp=seccomp.json", "busybox",
        cwd=str(tmp_path), environ={"HOME": "/home/me"},
    )  # fmt: skip
    assert request.mounts == (
        Bind("bind", f"{tmp_path}/data", "/data", ("rbind", "ro"), create=True),
        Bind("bind", f"{tmp_path}/data", "/x", ("rbind",)),
    )
    assert request.env == ("A=2", "HOME=/home/me", "B=x y")
    assert request.labels == {"tier": "db"}
    assert request.seccomp == '{"defaultAction": "SCMP_ACT_ALLOW"}'


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["run", "--nmae", "x", "busybox"], ['option "--nmae"', 'did you mean "--name"', 'see "wherry run --help"']),
        (["run", "-Z", "busybox"], ['option "-Z"']),
        (["run", "-iZ", "busybox"], ['option "-Z" in "-iZ"']),
        (["run"], ["it needs IMAGE"]),
        (["run", "--name"], ['option "--name": it needs a value']),
        (["run", "-m", "lots", "busybox"], ['option "-m"', '"lots" is not a size']),
        (["run", "--cpus", "many", "busybox"], ['"many" is not a number of cores']),
        (["run", "--rm=maybe", "busybox"], ["neither true nor false"]),
        (["run", "--pull", "often", "busybox"], ['option "--pull"', '"often"']),
        (["run", "-c", "x", "busybox"], ['option "-c"', '"x"']),
        (["run", "-v", "a:b:c:d", "busybox"], ['option "--volume"']),
        (["run", "-v", "/a:/x", "--tmpfs", "/x", "busybox"], ['the target "/x" is given twice']),
        (["run", "-e", "=1", "busybox"], ['variable "=1"']),
        (["run", "--env-file", "/does/not/exist", "busybox"], ['file "/does/not/exist": no such file']),
        (["run", "--security-opt", "apparmor=mine", "busybox"], ["not supported here"]),
        (["run", "--add-host", "x", "busybox"], ["HOST:IP"]),
        (["run", "-it", "busybox"], ["terminal: the client's stdin is not a terminal"]),
        (["rn"], ['command "rn"', 'did you mean "run"']),
        (["rm"], ["it needs at least one CONTAINER"]),
        (["exec", "web"], ["it needs at least one COMMAND; see"]),
        (["run", "-P", "--expose", "8080:80", "busybox"], ['option "--expose"', "is not PORT[-PORT]"]),
        (["pull"], ["it needs [TRANSPORT:]REFERENCE"]),
        (["tag", "a"], ["it needs NAME[:TAG]; see"]),
        (["tag", "a", "b", "c"], ['it takes no argument "c"']),
        (["image", "lss"], ['"wherry image" has no such command']),
        (["logs", "--tail", "x", "web"], ['option "--tail"', "neither a number of lines"]),
        (["images", "--filter", "colour=red"], ['filter "colour"']),
        (["ps", "--filter", "colour"], ['option "--filter": "colour" is not KEY=VALUE']),
        (["images", "--filter", "=x"], ['option "--filter": "=x" has no name']),
        (["events", "--filter", "topic"], ['option "--filter": "topic" is not KEY=VALUE']),
        (["system", "reset"], ["confirm it with --force"]),
    ],
)  # fmt: skip
def test_bad_command_lines(argv: list[str], parts: list[str]) -> None:
    engine = FakeEngine()
    code, _out, err = call(engine, *argv)
    assert code == (125 if (argv[1:] and argv[0] == "run") or parts[0].startswith('option "') else 1), "docker's codes"
    assert err.startswith("wherry: ")
    assert err.count("\n") == 1
    assert "internal fault" not in err
    for part in parts:
        assert part in err
    assert not {"run", "create", "remove", "reset"} & {name for name, _args, _kwargs in engine.calls}


def test_all_ports_of_an_image() -> None:
    listening = image(config={"config": {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000-8001": {}}}})
    argv = ("create", "-P", "-p", "8080:80", "--expose", "90", "busybox")
    wanted = (Port(80, host_port=8080), Port(53, "udp"), Port(8000), Port(8001), Port(90))
    engine = FakeEngine(image=listening)
    assert call(engine, *argv)[0] == 0
    assert engine.called("create")[0][0].ports == wanted
    assert engine.called("pull") == []

    def late(name: str) -> Any:
        if name == "busybox":
            raise absent("busybox")
        return listening

    engine = FakeEngine(
        image=late,
        pull=lambda reference, platform: (Progress(name, "done") for name in ["docker.io/library/busybox:latest"]),
    )
    assert call(engine, *argv)[0] == 0
    assert engine.called("create")[0][0].ports == wanted
    assert "there is none" in call(engine, *argv[:1], "--pull", "never", *argv[1:])[2]
    engine = FakeEngine(image=image(config={"config": {"ExposedPorts": {"http": {}}}}))
    assert "exposes what is no port" in call(engine, *argv)[2]
    assert call(engine, "create", "--expose", "90", "busybox")[0] == 0
    assert engine.called("create")[0][0].ports == ()


def test_relative_path_without_a_directory() -> None:
    assert "the current directory does not exist" in refused("run", "-v", "./x:/y", "busybox", cwd="")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        [],
        ["help"],
        ["run", "--help"],
        ["run", "-m", "1m", "--help"],
        ["help", "run"],
        ["image", "--help"],
        ["image"],
    ],
)
def test_help_is_output(argv: list[str]) -> None:
    code, out, err = call(FakeEngine(), *argv)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: wherry")


def test_every_command_has_help() -> None:
    from wherry_plugins.frontend.cli.main import ROOT

    def walk(group: Any, path: list[str]) -> None:
        for name in group.list_commands(None):
            code, out, _err = call(None, *path, name, "--help")
            assert code == 0
            assert out.startswith(f"Usage: wherry {' '.join([*path, name])}")
            command = group.get_command(None, name)
            if hasattr(command, "list_commands"):
                walk(command, [*path, name])
            else:
                assert command.callback.__doc__

    walk(ROOT, [])


def test_help_fits_the_terminal() -> None:
    _code, out, _err = call(None, "run", "--help", environ={"COLUMNS": "60"})
    assert max(map(len, out.split("Examples:")[0].splitlines())) <= 60


def test_no_engine_is_an_error_only_where_one_is_needed() -> None:
    code, out, _err = call(None, "version")
    assert (code, out) == (0, "client: 0.1.0\nengine: not running\n")
    code, _out, err = call(None, "ps")
    assert (code, err) == (1, 'wherry: engine: not running; run "wherry engine start"\n')


def test_run_in_the_foreground() -> None:
    engine = FakeEngine(wait=Exit(7, 0))
    client = Client(engine, ("run", "--rm", "busybox", "false"))
    code, out, err = client.finish()
    assert (code, out, err) == (7, "", "")
    assert client.seen == [{"attached": True}, {"exit": 7}]
    ((request, stdio),) = engine.called("run")
    assert request == RunRequest(image="busybox", command=("false",), remove=True)
    assert stdio.stdin == -1
    assert stdio.stdout > 2
    assert stdio.stderr > 2
    assert not stdio.terminal


def test_run_detached_prints_the_id() -> None:
    engine = FakeEngine()
    code, out, _err = call(engine, "run", "-d", "-i", "busybox")
    assert (code, out) == (0, container().id + "\n")
    ((request, stdio),) = engine.called("run")
    assert request.detach
    assert stdio == Stdio(hold_stdin=True)
    assert engine.called("wait") == []


def test_exit_codes_of_errors() -> None:
    missing = CommandNotFound('exec "nope"', "executable file not found in $PATH")
    missing.plugin = "isolation.namespaces"
    code, _out, err = call(FakeEngine(run=missing), "run", "--rm", "busybox", "nope")
    assert (code, err) == (127, 'wherry: exec "nope": executable file not found in $PATH (isolation.namespaces)\n')
    code, _out, err = call(FakeEngine(run=OSError(28, "No space left on device")), "run", "busybox")
    assert (code, err) == (125, "wherry: system: no space left on device\n")
    code, _out, err = call(FakeEngine(wait=Exit(None, 0)), "run", "busybox")
    assert code == 125
    assert "its exit code is unknown" in err
    code, _out, err = call(FakeEngine(run=RuntimeError("boom")), "run", "busybox")
    assert code == 125
    assert "internal fault: RuntimeError: boom" in err


def test_terminal_is_raw_between_create_and_the_end() -> None:
    engine = FakeEngine(create=container(tty=True), wait=Exit(3, 0))
    client = Client(engine, ("run", "-it", "--rm", "busybox", "sh"), tty=(True, True, True))
    code, _out, _err = client.finish()
    assert code == 3
    assert client.seen == [{"raw": True}, {"attached": True}, {"raw": False}, {"exit": 3}]
    assert [name for name, _args, _kwargs in engine.calls] == ["create", "start", "wait"]
    stdio = engine.called("start")[0][1]
    assert stdio.terminal
    assert (stdio.rows, stdio.columns) == (24, 80)
    assert stdio.stderr == -1


def test_a_failed_start_with_rm_leaves_nothing() -> None:
    engine = FakeEngine(start=CommandNotFound('exec "x"', "not found"), remove=absent("x"))
    code, _out, _err = call(engine, "run", "-it", "--rm", "busybox", "x", tty=(True, True, True))
    assert code == 127
    assert engine.called("remove") == [(container().id,)]


def test_cidfile(tmp_path: Path) -> None:
    code, _out, _err = call(FakeEngine(), "run", "--cidfile", "cid", "busybox", cwd=str(tmp_path))
    assert code == 0
    assert (tmp_path / "cid").read_text() == container().id
    code, _out, err = call(FakeEngine(), "run", "--cidfile", "cid", "busybox", cwd=str(tmp_path))
    assert code == 125
    assert "it exists" in err


def test_trace_is_written_in_the_clients_directory(tmp_path: Path) -> None:
    import json

    span = Span("snapshotter.prepare", "snapshotter.overlayfs", 1_000_000, 2000, 5, 1, 0, {"key": "x"}, "")
    engine = FakeEngine(spans=(span,))
    code, _out, _err = call(engine, "run", "--trace", "t.json", "busybox", cwd=str(tmp_path))
    assert code == 0
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"], event["tid"]) for event in complete] == [
        ("snapshotter.prepare", 1000.0, 2.0, 5)
    ]


def test_exec() -> None:
    engine = FakeEngine(wait=Exit(4, 0))
    code, _out, _err = call(engine, "exec", "-i", "-e", "A=1", "-w", "/x", "-u", "me", "web", "cat", "-n")
    assert code == 4
    name, request, stdio = engine.called("exec")[0]
    assert name == "web"
    assert stdio.stdin > 2
    assert request == ExecRequest(("cat", "-n"), ("A=1",), "me", "/x", interactive=True)
    assert engine.called("wait") == [("web", "e1")]


def test_several_names_each_on_its_own() -> None:
    def stop(name: str, timeout: float | None, signal: str) -> None:
        if name == "b":
            raise absent(name)

    engine = FakeEngine(stop=stop)
    code, out, err = call(engine, "stop", "-t", "3", "a", "b", "c")
    assert (code, out) == (1, "a\nc\n")
    assert err == 'wherry: container "b": there is none of that name or id\n'
    assert engine.called("stop") == [("a", 3.0, ""), ("b", 3.0, ""), ("c", 3.0, "")]


def test_rm_force_is_silent_about_what_is_gone() -> None:
    assert call(FakeEngine(remove=absent("x")), "rm", "-f", "x") == (0, "", "")
    assert call(FakeEngine(remove=absent("x")), "rm", "x")[0] == 1
    code, _out, err = call(FakeEngine(remove=InUse('container "x"', "it runs", "stop it or use --force")), "rm", "x")
    assert (code, err) == (1, 'wherry: container "x": it runs; stop it or use --force\n')


def test_ps() -> None:
    two = (
        container(),
        container(id="b" * 64, name="old", status="stopped", created=5, finished=6 * 10**9, exit_code=1),
    )
    engine = FakeEngine(containers=two, inspect={"Mounts": []})
    code, out, _err = call(engine, "ps", "-a")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert lines[1].startswith("c0ffeec0ffee   docker.io/library/busybox:latest   ")
    assert '"sh -c sleep 1000"' in lines[1]
    assert lines[1].endswith("tidy_tug")
    assert "Exited (1)" in lines[2]
    assert call(engine, "ps", "-q")[1] == "c0ffeec0ffee\n" + "b" * 12 + "\n"
    assert call(engine, "ps", "--format", "{{.Names}}:{{.State}}")[1] == "tidy_tug:running\nold:exited\n"
    table = call(engine, "ps", "--format", r"table {{.Names}}\t{{.ID}}")[1].splitlines()
    assert table == ["NAMES      CONTAINER ID", "tidy_tug   c0ffeec0ffee", "old        bbbbbbbbbbbb"]
    assert call(engine, "ps", "--format", '{{.Label "tier"}}')[1] == "db\ndb\n"
    assert '"Names":"tidy_tug"' in call(engine, "ps", "--format", "json")[1]
    assert '"exit_code": 1' in call(engine, "ps", "--json")[1]
    call(engine, "ps", "--filter", "status=exited", "--filter", "name=x")
    assert engine.calls[-1][2] == {"all": True, "filters": {"status": ["stopped"], "name": ["x"]}}
    assert call(engine, "ps", "-lq")[1] == "c0ffeec0ffee\n"
    assert 'no field "Nmaes"' in call(engine, "ps", "--format", "{{.Nmaes}}")[2]


def test_images() -> None:
    engine = FakeEngine(
        images=(
            image(names=("docker.io/library/busybox:latest", "r.example:5000/a/b:1")),
            image(id="sha256:" + "c" * 64, names=()),
        )
    )
    out = call(engine, "images")[1].splitlines()
    assert out[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line.split()[:3] for line in out[1:]] == [
        ["busybox", "latest", "a" * 12], ["r.example:5000/a/b", "1", "a" * 12], ["<none>", "<none>", "c" * 12],
    ]  # fmt: skip
    assert out[1].endswith("4.26MB")
    assert call(engine, "images", "-q")[1] == "a" * 12 + "\n" + "c" * 12 + "\n"
    assert call(engine, "images", "--filter", "dangling=true", "-q")[1] == "c" * 12 + "\n"
    assert call(engine, "images", "busybox", "--format", "{{.Repository}}")[1] == "busybox\n"


def test_inspect() -> None:
    details = {
        "Id": container().id,
        "State": {"Status": "running", "Pid": 4242},
        "Mounts": [{"Source": "/a", "RW": False}],
        "Name": "/web",
        "spec": {
            "process": {"args": ["sh"], "env": ["A=1"], "cwd": "/", "groups": [1, 2]},
            "mounts": [{"destination": "/proc"}],
        },
        "owners": {"": "kernel", "/process/env": "adjust.tz", "/process/groups/1": "request"},
    }
    engine = FakeEngine(inspect=details, image=image())
    assert call(engine, "inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "web")[1] == "running 4242\n"
    assert call(engine, "inspect", "-f", "{{range .Mounts}}{{.Source}}:{{.RW}}{{end}}", "web")[1] == "/a:false\n"
    assert call(engine, "inspect", "web")[1].startswith('[\n    {\n        "Id": "c0ffee')
    out = call(engine, "inspect", "--explain", "web")[1]
    assert [line.split() for line in out.splitlines()] == [
        ["FIELD", "VALUE", "SET", "BY"], ["/process/args", '["sh"]', "kernel"], ["/process/env", '["A=1"]', "adjust.tz"],
        ["/process/cwd", '"/"', "kernel"], ["/process/groups/0", "1", "kernel"], ["/process/groups/1", "2", "request"],
        ["/mounts/0/destination", '"/proc"', "kernel"],
    ]  # fmt: skip
    code, _out, err = call(FakeEngine(inspect={"Name": "/web", "spec": {}}), "inspect", "--explain", "web")
    assert (code, err) == (1, 'wherry: container "web": it has no spec before its first start\n')
    code, out, err = call(
        FakeEngine(**dict.fromkeys(("inspect", "image", "network", "volume"), absent("x"))), "inspect", "x"
    )
    assert (code, out) == (1, "[]\n")
    assert 'container, image, network or volume "x"' in err
    volume = Volume("data", "local", "/srv/data", 0, {})
    others = dict.fromkeys(("inspect", "image", "network"), absent("x"))
    other = FakeEngine(**others, volume=volume, volume_users=("c1",))
    assert call(other, "inspect", "-f", "{{.Mountpoint}} {{.UsedBy}}", "data")[1] == "/srv/data [c1]\n"
    assert call(other, "inspect", "--type", "network", "data")[0] == 1
    document = call(engine, "image", "inspect", "-f", "{{.RepoTags}} {{.Os}}/{{.Architecture}}", "busybox")[1]
    assert document == "[busybox:latest] linux/amd64\n"


def test_logs_go_to_their_streams() -> None:
    lines = [LogLine(10**9, "stdout", b"a\n"), LogLine(2 * 10**9, "stderr", b"b\n"), LogLine(3 * 10**9, "stdout", b"c")]
    engine = FakeEngine(logs=lambda *args, **kwargs: (line for line in lines))
    assert call(engine, "logs", "web") == (0, "a\nc", "b\n")
    assert (
        call(engine, "logs", "-ft", "-n", "5", "web")[1]
        == "1970-01-01T00:00:01.000000000Z a\n1970-01-01T00:00:03.000000000Z c"
    )
    assert engine.calls[-1][2] == {"follow": True, "since": 0, "until": 0, "tail": 5}


def test_root_and_config_must_be_the_engines() -> None:
    class Info:
        root, run, config = "/var/lib/wherry", "/run/wherry", ""

    engine = FakeEngine(info=Info)
    assert call(engine, "ps", "-q", given={"root": "/var/lib/wherry"})[0] == 0
    code, _out, err = call(engine, "ps", given={"root": "/elsewhere"})
    assert code == 1
    assert err.startswith('wherry: root "/elsewhere": the engine at /run/wherry runs with "/var/lib/wherry"; ')
    code, _out, err = call(engine, "ps", given={"config": "my.toml"}, cwd="/etc")
    assert code == 1
    assert "engine stop" in err


def test_load_from_a_pipe_is_spooled(tmp_path: Path) -> None:
    class Info:
        root = str(tmp_path)

    seen = []

    def load(reference: str, *, platform: str) -> tuple[Any, ...]:
        seen.append(Path(reference.removeprefix("archive:")).read_bytes())
        return (image(),)

    code, out, _err = call(FakeEngine(info=Info, load=load), "load", stdin=b"tar bytes")
    assert (code, out) == (0, "Loaded image: busybox:latest\n")
    assert seen == [b"tar bytes"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_ps_of_sizes_and_mounts() -> None:
    one = container()
    use = ContainerUse(one.id, one.name, one.image, one.command, one.created, one.status, 4_100)
    engine = FakeEngine(
        disk_usage=DiskUsage((), (use,), 0, 0), inspect={"Mounts": [{"Name": "data"}, {"Source": "/srv"}]}
    )
    assert call(engine, "ps", "--format", "{{.Names}} {{.Mounts}}")[1] == "tidy_tug data,/srv\n"
    assert engine.called("disk_usage") == []
    head, row = call(engine, "ps", "-s")[1].splitlines()
    assert (head.split()[-1], row.split()[-1]) == ("SIZE", "4.1kB")
    assert call(engine, "ps", "--format", "{{.Size}}")[1] == "4.1kB\n"
    engine.answers["inspect"] = absent("x")
    assert call(engine, "ps", "--format", "{{.Names}}{{.Mounts}}")[1] == "tidy_tug\n"


def process(**changes: Any) -> ContainerProcess:
    ids = {"pid": 42, "parent": 1, "uid": 4_000_000, "gid": 0}
    times = {"started": time.time_ns() - 90 * 10**9, "cpu": 9 * 10**9}
    sizes = {"threads": 2, "virtual": 8 << 20, "resident": 1 << 20}
    words: dict[str, Any] = {"state": "S", "terminal": "pts/3", "name": "sh", "command": ("sh", "-c", "x y")}
    return ContainerProcess(**{**ids, **times, **sizes, **words, **changes})


def test_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_plugins.frontend.cli.commands.top._seconds", lambda _process: 90)
    engine = FakeEngine(processes=(process(), process(pid=43, command=(), terminal="", cpu=0)))
    lines = call(engine, "top", "web")[1].splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    words = lines[1].split()
    assert (words[:4], words[5:]) == (["4000000", "42", "1", "10"], ["pts/3", "00:00:09", "sh", "-c", "x", "y"])
    assert lines[2].split()[5:] == ["?", "00:00:00", "[sh]"]
    assert call(engine, "top", "web", "aux")[1].splitlines()[0].split()[:4] == ["USER", "PID", "%CPU", "%MEM"]
    lines = call(engine, "top", "web", "-eo", "pid,rss=KIB,nlwp,etime,comm")[1].splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["PID", "KIB", "NLWP", "ELAPSED", "COMMAND"],
        ["42", "1024", "2", "00:01:30", "sh"],
    ]
    for words, cause in ((("-o", "pit"), "did you mean"), (("-o",), "names no columns"), (("-L",), "not one of")):
        code, _out, err = call(engine, "top", "web", *words)
        assert (code, cause in err) == (1, True)


def test_update_gives_what_was_given() -> None:
    engine = FakeEngine()
    assert call(engine, "update", "--memory", "1g", "--cpus", "1.5", "a", "b")[1] == "a\nb\n"
    none = dict.fromkeys(("memory_swap", "memory_reservation", "cpu_shares", "cpuset", "pids_limit"))
    assert engine.calls[0] == ("update", ("a",), {"memory": 1 << 30, "cpus": 1.5, **none})


def test_events_by_dockers_names() -> None:
    topics = ("container.created", "task.started", "exec.started", "task.exited", "network.attached", "volume.x")
    engine = FakeEngine(events=lambda *_a, **_k: iter([Event(topic, "c1", 1, {"name": "web"}) for topic in topics]))

    def seen(*filters: str) -> list[str]:
        words = [word for one in filters for word in ("-f", one)]
        return call(engine, "events", "--no-follow", "--format", "{{.Topic}}", *words)[1].split()

    assert seen("event=start") == ["task.started"]
    assert seen("event=die", "event=create") == ["container.created", "task.exited"]
    assert seen("event=started") == ["task.started", "exec.started"]
    assert seen("type=container") == ["container.created", "task.started", "exec.started", "task.exited"]
    assert seen("container=web", "event=connect") == []
    assert seen("network=web") == ["network.attached"]


def test_stats() -> None:
    used = iter((1_000_000, 1_050_000))

    def stats(_id: str) -> dict[str, int]:
        memory = {"memory.current": 3 << 20, "memory.stat.inactive_file": 1 << 20, "memory.max": 8 << 20}
        moved = {"network.rx_bytes": 1_500, "network.tx_bytes": 0, "io.rbytes": 0, "io.wbytes": 4_096}
        return {"cpu.usage_usec": next(used), "pids.current": 2, **memory, **moved}

    engine = FakeEngine(stats=stats)
    code, out, _err = call(engine, "stats", "--no-stream")
    head, row = out.splitlines()
    assert code == 0
    assert head.split("  ")[0] == "CONTAINER ID"
    assert row.split()[:2] == ["c0ffeec0ffee", "tidy_tug"]
    assert row.split()[3:] == ["2MiB", "/", "8MiB", "25.00%", "1.5kB", "/", "0B", "0B", "/", "4.1kB", "2"]
    assert 0 < float(row.split()[2].rstrip("%")) <= 20
    engine = FakeEngine(stats={"pids.current": 2})
    assert (
        call(engine, "stats", "--no-stream", "--json", "tidy_tug")[1]
        == '{\n  "tidy_tug": {\n    "pids.current": 2\n  }\n}\n'
    )


def test_stats_of_one_that_does_not_run_and_of_one_in_the_hosts_network() -> None:
    engine = FakeEngine(stats={"pids.current": 2, "io.rbytes": 0, "io.wbytes": 0})
    form = "{{.CPUPerc}} {{.NetIO}} {{.BlockIO}}"
    assert call(engine, "stats", "--no-stream", "--format", form)[1] == "0.00% -- / -- 0B / 0B\n"
    engine.answers["containers"] = lambda **_: (attrs.evolve(container(), status="stopped"),)
    code, out, _err = call(engine, "stats", "-a", "--no-stream", "--format", form)
    assert (code, out) == (0, "-- -- --\n")
    assert engine.called("stats") == engine.called("stats")[:2]


def test_stats_go_on_until_the_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_plugins.frontend.cli.commands.stats.EVERY", 0.01)
    engine = FakeEngine(stats={"pids.current": 2})
    client = Client(engine, ("stats",), tty=(True, True, True))
    seen = b""
    while seen.count(b"\x1b[H") < 3:
        seen += os.read(client.out_end, 1 << 16)
    client.near.close()
    for end in (client.out_end, client.err_end):
        os.close(end)
    client.thread.join(30)
    assert not client.thread.is_alive()
    assert seen.startswith(b"\x1b[2J\x1b[HCONTAINER ID")
    assert b"2\x1b[K\n\x1b[J\x1b[H" in seen


@pytest.mark.parametrize(
    ("argv", "ports", "said"),
    [
        (("--network", "host", "-p", "80:80"), (), "published ports are discarded"),
        (("--network", "host", "-P"), (), ""),
        (("--network", "none", "-p", "80:80"), (Port(80, host_port=80),), "once the container is in another network"),
        (("--network", "none", "--network", "lab", "-p", "80:80"), (Port(80, host_port=80),), ""),
    ],
)
def test_ports_that_can_not_be_published_are_a_warning(argv: tuple[str, ...], ports: object, said: str) -> None:
    engine = FakeEngine()
    code, _out, err = call(engine, "create", *argv, "busybox")
    assert code == 0
    assert said in err
    assert bool(said) is err.startswith("wherry: warning: ")
    ((request,),) = engine.called("create")
    assert request.ports == ports
