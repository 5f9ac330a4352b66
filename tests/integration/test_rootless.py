"""An ordinary user's engine: where it lives, what outlives a crash, and what its containers can't do to the host."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support import rootless
from support.engines import Wherry
from support.running import until
from wherry.linux import userns
from wherry.shim import rootless as enclave

IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/usr/bin/id,/usr/bin/stat"
user = pytest.mark.parametrize("who", ["user"], indirect=True)
single = pytest.mark.parametrize("who", ["single"], indirect=True)


def namespace(pid: int, type: str = "user") -> str:
    return os.readlink(f"/proc/{pid}/ns/{type}")


def pids(wherry: Wherry) -> tuple[int, int]:
    """Engine and shim."""
    info = json.loads(wherry("info", "--json").stdout)
    return info["engine"]["pid"], info["shim"]["pid"]


def logger(shim: int) -> int:
    """The shim's child in its own user and mount namespace that is no engine."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != shim:
            with suppress(OSError):  # it has ended
                if Path(f"/proc/{name}/comm").read_text().strip() == "wherry-logger":
                    return int(name)
    raise AssertionError("no logger")


def gone(*pids: int) -> None:
    """Kills them in this order: an engine starts a shim for a lost one, and a shim a logger."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids), 30)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def sleeper(wherry: Wherry, name: str) -> int:
    wherry("run", "-d", "--name", name, "--network", "none", IMAGE, "sleep", "1000")
    return int(wherry("inspect", "-f", "{{.State.Pid}}", name).stdout)


# -- where they live -------------------------------------------------------------------------------------------------------


@user
def test_all_live_in_one_user_namespace(wherry: Wherry) -> None:
    pid = sleeper(wherry, "one")
    engine, shim = pids(wherry)
    here = os.readlink("/proc/self/ns/user")
    assert namespace(engine) == namespace(shim) == namespace(pid) != here
    assert namespace(engine, "mnt") == namespace(shim, "mnt") != namespace(pid, "mnt")
    assert namespace(engine, "net") == os.readlink("/proc/self/ns/net") != namespace(pid, "net")
    rows = [(0, rootless.UID, 1), (1, rootless.FIRST, rootless.COUNT)]
    assert userns.id_map("uid_map", pid) == userns.id_map("gid_map", pid) == rows
    assert os.stat(wherry.dirs.root / "wherry.db").st_uid == rootless.UID
    chosen = json.loads(wherry("info", "--json").stdout)
    assert "userns" in json.dumps(chosen)


@single
def test_without_ranges_there_is_one_id(wherry: Wherry) -> None:
    done = wherry(
        "run", "--rm", IMAGE, "sh", "-c", "cat /proc/self/uid_map /proc/self/setgroups; stat -c %u:%g /usr/bin/id"
    )
    assert done.stdout.split() == ["0", str(rootless.UID), "1", "deny", "0:0"]
    refused = wherry("run", "--rm", "-u", "1000", IMAGE, "id", code=125).stderr
    assert "user 1000:" in refused
    assert "no such id" in refused
    assert "/etc/subuid" in refused
    assert wherry("ps", "-aq").stdout == ""


@single
def test_owners_of_an_image_are_ignored_with_one_id(wherry: Wherry, busybox_archive: Path) -> None:
    wherry("load", "-i", busybox_archive)
    name = wherry("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.strip()
    assert wherry("run", "--rm", name, "id", "-u").stdout == "0\n"


@user
def test_an_owner_beyond_the_users_ids_is_told(wherry: Wherry, place: Path) -> None:
    layer, archive = place / "layer.tar", place / "image.tar"
    with tarfile.open(layer, "w") as tar:
        member = tarfile.TarInfo("far")
        member.uid = 70_000
        tar.addfile(member)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {}}
    config["rootfs"]["diff_ids"] = ["sha256:" + hashlib.sha256(layer.read_bytes()).hexdigest()]  # type: ignore[index]
    manifest = [{"Config": "config.json", "RepoTags": ["far:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        tar.add(layer, "layer.tar")
        for name, document in (("config.json", config), ("manifest.json", manifest)):
            data = json.dumps(document).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive.chmod(0o644)
    wherry("load", "-i", archive)
    refused = wherry("run", "--rm", "far:1", "true", code=125).stderr
    assert "has the owner 70000, which this user's namespace does not hold; see /etc/subuid" in refused


# -- crashes ---------------------------------------------------------------------------------------------------------------


@user
def test_a_new_shim_joins_the_namespaces(wherry: Wherry) -> None:
    pid = sleeper(wherry, "stays")
    engine, shim = pids(wherry)
    before = namespace(pid), namespace(engine, "mnt")
    gone(shim)
    until(lambda: wherry("exec", "stays", "sh", "-c", "echo in", code=None).stdout == "in\n", 30)
    again, other = pids(wherry)
    assert again == engine
    assert other != shim
    assert (namespace(other), namespace(other, "mnt")) == before
    wherry("rm", "-f", "stays")


@user
def test_a_new_engine_and_shim_find_what_runs(wherry: Wherry) -> None:
    pid = sleeper(wherry, "stays")
    engine, shim = pids(wherry)
    gone(engine, shim)
    assert wherry("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "stays").stdout == f"{pid} running\n"
    assert wherry("exec", "stays", "sh", "-c", "echo in").stdout == "in\n"
    engine, shim = pids(wherry)
    assert namespace(engine) == namespace(shim) == namespace(pid)
    wherry("rm", "-f", "stays")
    assert wherry("doctor").stdout == "all is well\n"


@user
def test_a_container_alone_holds_the_user_namespace(wherry: Wherry) -> None:
    """Without the logger nobody knows it any more: it is ended, from inside the namespaces it held."""
    pid = sleeper(wherry, "stays")
    before = namespace(pid)
    engine, shim = pids(wherry)
    last = logger(shim)
    gone(engine, shim, last)
    assert alive(pid)
    _engine, shim = pids(wherry)
    assert namespace(shim) == before
    until(lambda: not alive(pid), 30)
    assert wherry("ps", "-q").stdout == ""
    wherry("rm", "stays")
    assert wherry("run", "--rm", IMAGE, "sh", "-c", "echo anew").stdout == "anew\n"
    assert wherry("doctor").stdout == "all is well\n"


@user
def test_without_a_survivor_they_are_made_anew(wherry: Wherry) -> None:
    pid = sleeper(wherry, "ends")
    engine, shim = pids(wherry)
    last = logger(shim)
    gone(engine, shim, last, pid)
    assert wherry("start", "ends").stdout == "ends\n"
    assert wherry("exec", "ends", "sh", "-c", "echo in").stdout == "in\n"
    wherry("rm", "-f", "ends")


@user
def test_another_namespace_of_the_same_number_is_not_entered(wherry: Wherry) -> None:
    """Twin of the check of maps: the note names a namespace of the user's that is not the engine's."""
    wherry("info")
    wherry("engine", "stop")
    note = wherry.dirs.run / "namespaces"
    record = json.loads(note.read_text())
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "sh", "-c", "echo in; exec sleep 1000"],
        stdout=subprocess.PIPE,
        **wherry.identity,
    ) as stranger:
        try:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == b"in\n"
            record["user"] = namespace(stranger.pid)
            note.write_text(json.dumps(record))
            assert "another one has the name" in wherry("info", code=125).stderr
        finally:
            stranger.kill()
    assert wherry("run", "--rm", IMAGE, "sh", "-c", "echo anew").stdout == "anew\n"


REPLACE = """
import sys
from pathlib import Path
from wherry.engine.shim.client import ShimClient
shim = ShimClient.connect(Path(sys.argv[1]))
before = shim.pid
shim.replace()
print(shim.pid == before, [state.status for state in shim.list()])
shim.close()
"""


@user
def test_a_shim_replaces_itself_in_its_namespaces(wherry: Wherry) -> None:
    pid = sleeper(wherry, "stays")
    _engine, shim = pids(wherry)
    before = namespace(shim), namespace(shim, "mnt")
    done = subprocess.run(
        [wherry.program.parent / "python3", "-I", "-c", REPLACE, wherry.dirs.run], env=wherry.dirs.environ, capture_output=True,
        text=True, timeout=60, check=False, **wherry.identity,
    )  # fmt: skip
    assert done.stdout == "True ['running']\n", done.stderr
    assert (namespace(shim), namespace(shim, "mnt")) == before
    assert wherry("exec", "stays", "sh", "-c", "echo in").stdout == "in\n"
    assert alive(pid)
    wherry("rm", "-f", "stays")


# -- what goes wrong -------------------------------------------------------------------------------------------------------


@user
def test_a_failing_newuidmap_is_told(wherry: Wherry, place: Path) -> None:
    program = place / "newuidmap"
    program.write_text("#!/bin/sh\necho 'newuidmap: write to uid_map failed' >&2\nexit 1\n")
    program.chmod(0o755)
    done = wherry("info", code=125, env={"PATH": f"{place}:{os.environ['PATH']}"})
    assert done.stderr == "wherry: newuidmap: newuidmap: write to uid_map failed; see /etc/subuid and /etc/subgid\n"
    assert wherry("info").returncode == 0


@user
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("wherrytest:0:10\n", "has the host's root in it"),
        (f"wherrytest:{rootless.UID - 10}:1000\n", "overlap"),
        ("wherrytest:x:1\n", "is not NAME"),
    ],
    ids=["root's", "overlap", "no-number"],  # the user's id differs between processes
)
def test_wrong_ranges_are_told(wherry: Wherry, text: str, cause: str) -> None:
    for name in ("subuid", "subgid"):
        Path(f"/etc/{name}").write_text(text)  # the test's own
    done = wherry("info", code=125)
    assert done.stderr.startswith('wherry: file "/etc/sub')
    assert cause in done.stderr
    assert "; " in done.stderr
    assert done.stderr.count("\n") == 1


@user
def test_a_runtime_directory_of_another_user(wherry: Wherry, place: Path) -> None:
    environ = {**wherry.dirs.environ}
    environ.pop("WHERRY_RUN")
    for directory, cause in ((place / "none", "no such directory"), (Path("/etc"), "belongs to user 0, not to")):
        done = subprocess.run(
            [wherry.program, "ps"], env={**environ, "XDG_RUNTIME_DIR": str(directory)}, capture_output=True, text=True, timeout=60,
            check=False, **wherry.identity,
        )  # fmt: skip
        assert done.returncode == 125
        assert done.stderr.startswith(f'wherry: XDG_RUNTIME_DIR "{directory}": {cause}')


@user
def test_a_socket_laid_by_another_user_is_not_spoken_to(wherry: Wherry) -> None:
    run = Path("/tmp") / f"wherry-run-{rootless.UID}"
    environ = {**wherry.dirs.environ}
    environ.pop("WHERRY_RUN")
    run.mkdir()
    try:
        os.chown(run, 12345, 12345)
        done = subprocess.run(
            [wherry.program, "ps"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **wherry.identity,
        )
        assert (done.returncode, done.stderr) == (
            125,
            f'wherry: run directory "{run}": belongs to user 12345; name another by --run\n',
        )
    finally:
        run.rmdir()


@user
def test_without_a_runtime_directory_there_is_one_in_tmp(wherry: Wherry) -> None:
    environ = {**wherry.dirs.environ}
    environ.pop("WHERRY_RUN")
    try:
        for command in (["run", "--rm", IMAGE, "sh", "-c", "echo here"], ["engine", "stop"]):
            done = subprocess.run(
                [wherry.program, *command],
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                **wherry.identity,
            )
            assert done.returncode == 0, done.stderr
            assert os.stat(f"/tmp/wherry-run-{rootless.UID}").st_mode & 0o777 == 0o700
    finally:
        subprocess.run(["rm", "-rf", f"/tmp/wherry-run-{rootless.UID}"], check=True, timeout=60)


@user
def test_an_engine_in_an_ordinary_process_is_refused_with_words(wherry: Wherry) -> None:
    script = "import wherry\nwherry.Engine()"
    done = subprocess.run(
        [wherry.program.parent / "python3", "-I", "-c", script], env=wherry.dirs.environ, capture_output=True, text=True, timeout=60,
        check=False, **wherry.identity,
    )  # fmt: skip
    assert "FailedPrecondition: engine: an ordinary user's lives in a user namespace" in done.stderr
    script = "import wherry\nwith wherry.connect() as engine:\n    print(len(engine.containers(all=True)))"
    done = subprocess.run(
        [wherry.program.parent / "python3", "-I", "-c", script], env=wherry.dirs.environ, capture_output=True, text=True, timeout=60,
        check=False, **wherry.identity,
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr


@user
def test_a_limit_that_nothing_holds_is_refused(wherry: Wherry) -> None:
    if "cgroup2" in wherry("info").stdout:
        pytest.skip("this user has control groups")
    for option in ("--memory=64m", "--cpus=1", "--pids-limit=50"):
        refused = wherry("run", "--rm", option, IMAGE, "true", code=125).stderr
        assert "limit: this user has no control groups to set it in" in refused
    assert wherry("ps", "-aq").stdout == ""
    done = wherry("run", "--rm", "--ulimit", "nofile=64:64", IMAGE, "sh", "-c", "ulimit -n")
    assert done.stdout == "64\n"


# -- attacks ---------------------------------------------------------------------------------------------------------------


@user
def test_the_root_of_a_container_is_not_the_hosts(wherry: Wherry, place: Path) -> None:
    secret = place / "secret"
    secret.write_text("of root's alone\n")
    secret.chmod(0o600)
    own = place / "own"
    own.write_text("the user's\n")
    os.chown(own, rootless.UID, rootless.GID)
    script = "cat /place/secret; echo no > /place/secret; id -u; cat /place/own; echo mine > /place/made; stat -c %u /place/secret"
    done = wherry("run", "--rm", "-v", f"{place}:/place", "--privileged", IMAGE, "sh", "-c", script)
    assert done.stdout == "0\nthe user's\n65534\n"
    assert done.stderr.count("ermission denied") == 2
    assert secret.read_text() == "of root's alone\n"
    assert os.stat(place / "made").st_uid == rootless.UID


@user
def test_no_map_has_the_hosts_root(wherry: Wherry, tmp_path: Path) -> None:
    pid = sleeper(wherry, "one")
    for name in ("uid_map", "gid_map"):
        for _inside, outside, size in userns.id_map(name, pid):
            assert outside > 0
            assert not outside <= 0 < outside + size
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [str(rootless.UID)] * 4
    assert status["NoNewPrivs"] == "0"
    wherry("rm", "-f", "one")


@user
def test_a_container_cannot_make_a_device(wherry: Wherry) -> None:
    """Nor, with every capability, open one that the user can't."""
    script = "busybox mknod /tmp/kmsg c 1 11; busybox mknod /tmp/sda b 254 0; ls /tmp"
    if not Path("/usr/bin/busybox").exists():
        pytest.skip("busybox is not installed")
    done = wherry("run", "--rm", "--privileged", f"{IMAGE},/usr/bin/busybox,/bin/ls", "sh", "-c", script, code=0)
    assert done.stdout == ""
    assert done.stderr.count("Operation not permitted") == 2


def test_the_map_check_is_what_keeps_strangers_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same note without the check is followed: what the test above refuses is the check's doing."""
    entered: list[Any] = []
    (tmp_path / "namespaces").write_text(
        json.dumps({"user": os.readlink("/proc/self/ns/user"), "mnt": "-", "map": "none"})
    )
    monkeypatch.setattr(enclave.ns, "setns", lambda fd, flags=0: entered.append(flags))
    monkeypatch.setattr(enclave.ns, "unshare", entered.append)
    with pytest.raises(enclave.idmaps.IdMapError, match="another one"):
        enclave._join(str(tmp_path))
    entered.clear()
    monkeypatch.setattr(enclave, "_MAP", str(tmp_path / "map"))
    (tmp_path / "map").write_text("none")
    assert enclave._join(str(tmp_path))
    assert entered == [enclave.ns.NEWUSER, enclave.ns.NEWNS]


def test_python_runs_as_a_script_of_this_environment() -> None:
    """What the tests here take for granted: the wheel's interpreter is this one."""
    if reason := rootless.refused():
        pytest.skip(reason)
    program = rootless.installed().parent / "python3"
    assert program.resolve() == Path(sys.executable).resolve()
