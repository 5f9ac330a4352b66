"""Containers whose root fuse-overlayfs serves: what they see, and what is left of the program when somebody is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from support import rootless
from support.engines import Wherry
from support.generated import Generator
from support.images_area import image_layout, world
from support.layers import member, tar
from support.running import until
from support.shims import Shimmed, shimmed
from wherry.api import FailedPrecondition, IdMap, Mount, Unavailable
from wherry.kit import fuse as kit_fuse
from wherry.kit.isolation import served
from wherry.linux import fuse, mount
from wherry.spec.distribution import LAYER
from wherry.testing.harness import LocalContext
from wherry.testing.trees import change, tree
from wherry_plugins.snapshotter import fuse_overlayfs

PROGRAM = shutil.which("fuse-overlayfs") or ""
IMAGE = "host:" + ",".join(f"/bin/{name}" for name in ("sh", "cat", "ls", "ln", "mv", "rm", "mkdir", "chmod", "sleep"))
#: None that links to a device of a lower layer, which the program can't copy up.
SEEDS = (0, 2, 3, 4, 6, 8, 9, 10, 12) if os.environ.get("WHERRY_TESTS_ALL") else (0, 3)
BOTH = pytest.mark.parametrize("who", ["root", "user"], indirect=True)
NAME = "fuse-overlayfs"
WORK = """
mkdir /d /d/e; echo one > /d/f; ln /d/f /d/g; ln -s f /d/h; chmod 2750 /d; echo more >> /d/g; mv /d/e /d/i
rm /bin/ls.old 2>/dev/null; mv /bin/mv /bin/moved; rm -r /etc; mkdir /etc; echo new > /etc/new; chmod 4711 /bin/rm
cat /d/f /d/h; ls -lniR --time-style=+ /d /bin/ /etc | while read a b c d e f; do echo "$b $c $d $e $f"; done
"""


def refused() -> str:
    if not PROGRAM:
        return "fuse-overlayfs is not installed"
    try:
        os.close(os.open(fuse.DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{fuse.DEVICE}: {error.strerror}"
    return ""


pytestmark = pytest.mark.skipif(bool(refused()), reason=refused() or "it can run")


def programs(top: Path) -> list[int]:
    """The processes that serve trees below a directory."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0") if entry.isdigit() else [b""]
        except OSError:
            continue
        if words[0] == PROGRAM.encode() and any(os.fsencode(top) in word for word in words):
            found.append(int(entry))
    return found


def run(wherry: Wherry, *argv: str, script: str = "sleep 1000", code: int = 0) -> str:
    options = ("run", "--network", "none", "--snapshotter", NAME, *argv)
    return wherry(*options, IMAGE, "sh", "-c", script, code=code).stdout


def gone(wherry: Wherry) -> None:
    until(lambda: not programs(wherry.dirs.root), 30)
    assert wherry("doctor").stdout == "all is well\n"


@BOTH
def test_the_same_as_with_copies(wherry: Wherry) -> None:
    seen = {
        name: wherry("run", "--rm", "--network", "none", "--snapshotter", name, IMAGE, "sh", "-c", WORK).stdout
        for name in (NAME, "vfs")
    }
    assert seen[NAME].startswith("one\nmore\none\nmore\n")
    assert [line.split() for line in seen[NAME].splitlines()] == [line.split() for line in seen["vfs"].splitlines()]
    assert "-rws--x--x" in seen[NAME]
    gone(wherry)


@BOTH
def test_read_only_exec_and_a_second_start(wherry: Wherry) -> None:
    assert run(wherry, "--rm", "--read-only", script="echo x > /x; echo $?").strip() not in ("", "0")
    run(wherry, "-d", "--name", "one", script="echo first >> /file; sleep 1000")
    until(lambda: wherry("exec", "one", "cat", "/file", code=None).stdout == "first\n", 30)
    wherry("exec", "one", "sh", "-c", "echo second >> /file")
    wherry("stop", "-t", "0", "one")
    until(lambda: not programs(wherry.dirs.root), 30)
    wherry("start", "one")
    until(lambda: wherry("exec", "one", "cat", "/file", code=None).stdout == "first\nsecond\nfirst\n", 30)
    assert len(programs(wherry.dirs.root)) == 1
    wherry("rm", "-f", "one")
    gone(wherry)


@BOTH
def test_ids_of_a_container(wherry: Wherry, who: str) -> None:
    """An ordinary user's overlayfs has none of its own; here the program shows them, and on disk nothing is another's."""
    mode = "auto:size=1000"
    if who == "root":
        file = wherry.dirs.root.parent / "config.toml"
        file.write_text(ROOTS)
        wherry.options = ("--config", str(file))
    script = "echo x > /made; ls -ln /made /bin/sh | while read a b c d e; do echo $c:$d; done; cat /proc/self/uid_map"
    lines = run(wherry, "--rm", "--userns", mode, script=script).split("\n")
    assert lines[:2] == ["0:0", "0:0"]
    assert lines[2].split()[0::2] == ["0", "1000"]
    owners = {os.lstat(path).st_uid for path in (wherry.dirs.root / "snapshotter" / NAME).rglob("*")}
    # the host's root, whose programs are the image's files, is nobody to an ordinary user
    nobody = rootless.FIRST + 65534 - 1
    assert owners - {nobody} == {wherry.dirs.user.uid} if wherry.dirs.user else owners == {0}
    gone(wherry)


@pytest.mark.parametrize("who", ["user"], indirect=True)
def test_an_id_that_is_kept(wherry: Wherry) -> None:
    """Three ranges, of which the user's own id is one."""
    assert wherry.dirs.user
    uid = wherry.dirs.user.uid
    script = "ls -ln /bin/sh /tmp/x | while read a b c d e; do echo $c:$d; done"
    done = run(wherry, "--rm", "--userns", "keep-id", script=f"echo > /tmp/x; {script}")
    assert done == f"0:0\n{uid}:{uid}\n"
    gone(wherry)


ROOTS = f"""
version = 1
[engine]
frontends = ["cli"]
log = "json-file"
transport = "registry"
userns = "6000000:65536"
[variant.standard]
store = "local"
snapshotter = "{NAME}"
isolation = ["namespaces", "userns"]
network = "none"
"""


@BOTH
def test_the_program_is_killed(wherry: Wherry) -> None:
    run(
        wherry,
        "-d",
        "--name",
        "one",
        script="echo x > /file; while :; do read line < /file || exit 7; sleep 0.05; done",
    )
    run(wherry, "-d", "--name", "two")
    until(lambda: len(programs(wherry.dirs.root)) == 2, 30)
    until(lambda: wherry("exec", "one", "cat", "/file", code=None).stdout == "x\n", 30)
    for pid in programs(wherry.dirs.root):
        os.kill(pid, signal.SIGKILL)
    until(lambda: wherry("inspect", "-f", "{{.State.Status}}", "one").stdout == "exited\n", 30)
    assert wherry("inspect", "-f", "{{.State.ExitCode}}", "one").stdout != "0\n", "its files are gone"
    assert wherry("exec", "two", "cat", "/file", code=None).returncode != 0
    wherry("stop", "-t", "0", "two")
    assert run(wherry, "--rm", script="echo x > /y; cat /y") == "x\n", "others are not disturbed"
    wherry("start", "two")
    assert wherry("exec", "two", "sh", "-c", "echo x > /y; cat /y").stdout == "x\n"
    wherry("rm", "-f", "one", "two")
    gone(wherry)


@pytest.mark.parametrize(
    ("who", "victims"), [("root", ("engine",)), ("user", ("shim", "engine"))], indirect=["who"], ids=["root", "user"]
)
def test_engine_and_shim_are_killed(wherry: Wherry, victims: tuple[str, ...]) -> None:
    run(wherry, "-d", "--name", "one", script="echo x > /file; sleep 1000")
    (program,) = programs(wherry.dirs.root)
    info = json.loads(wherry("info", "--json").stdout)
    for name in victims:
        os.kill(info[name]["pid"], signal.SIGKILL)
    until(
        lambda: wherry("exec", "one", "sh", "-c", "cat /file; echo y > /made; cat /made", code=None).stdout == "x\ny\n",
        30,
    )
    assert programs(wherry.dirs.root) == [program]
    wherry("doctor", "--repair", code=None)
    wherry("rm", "-f", "one")
    gone(wherry)


@pytest.mark.parametrize(("who", "victim"), [("root", "shim"), ("user", "engine")], indirect=["who"])
def test_killed_while_roots_are_made(wherry: Wherry, victim: str) -> None:
    """As soon as there is a program, wherever its container is by then."""
    run(wherry, "--rm", script=":")
    until(lambda: not programs(wherry.dirs.root), 30)
    info = json.loads(wherry("info", "--json").stdout)
    options = ("run", "--rm", "--network", "none", "--snapshotter", NAME, IMAGE, "sleep", "1")
    null = subprocess.DEVNULL
    clients = [wherry.popen(*options, cwd="/", stdin=null, stdout=null, stderr=null) for _ in range(3)]
    try:
        until(lambda: programs(wherry.dirs.root), 30)
        os.kill(info[victim]["pid"], signal.SIGKILL)
        for client in clients:
            client.wait(60)
    finally:
        for client in clients:
            client.kill()
            client.wait()
    until(lambda: wherry("ps", code=None).returncode == 0, 30)
    assert run(wherry, "--rm", script="echo x > /y; cat /y") == "x\n"
    if left := wherry("ps", "-aq").stdout.split():
        wherry("rm", "-f", *left, code=None)  # one may have gone by itself meanwhile
    until(lambda: not wherry("ps", "-aq").stdout, 30)
    wherry("doctor", "--repair", code=None)
    gone(wherry)


# the parts


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Mount:
    for name in ("low", "own/fs", "own/work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "low/file").write_text("low")
    options = (f"lowerdir={tmp_path}/low", f"upperdir={tmp_path}/own/fs", f"workdir={tmp_path}/own/work")
    return Mount(f"fuse.{NAME}", PROGRAM, "", options)


def read(fd: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY, dir_fd=fd)) as file:
        return file.read()


def test_it_ends_with_the_last_mount(made: Shimmed, root: Mount, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with served.roots(made.client, "isolation.test.root.x", (root,)) as (fd,):
        assert read(fd, "file") == "low"
        assert len(programs(tmp_path)) == 1
        assert Path("/proc/self/mountinfo").read_text() == before
        assert [task.status for task in made.client.list() if task.id.startswith("isolation.test.root.x.")] == [
            "running"
        ]
    until(lambda: not programs(tmp_path), 30)


def test_twin_with_a_mount_left_it_goes_on(
    made: Shimmed, root: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    close = os.close
    with monkeypatch.context() as patched:
        with served.roots(made.client, "isolation.test.root.x", (root,)) as (fd,):
            patched.setattr(os, "close", lambda one: kept.append(one) if one == fd else close(one))
    try:
        assert kept == [fd]
        assert read(fd, "file") == "low"
        assert len(programs(tmp_path)) == 1
    finally:
        close(fd)
    until(lambda: not programs(tmp_path), 30)


def test_ids_of_a_root(made: Shimmed, root: Mount) -> None:
    mapped = Mount(root.type, root.source, "", root.options, IdMap(((0, 5000, 10),), ((0, 6000, 10),)))
    with served.roots(made.client, "isolation.test.root.x", (mapped,)) as (fd,):
        found = os.stat("file", dir_fd=fd)
        assert (found.st_uid, found.st_gid) == (5000, 6000)


def test_what_cannot_be_served(made: Shimmed, root: Mount, tmp_path: Path) -> None:
    for program, error in (("/no/such/program", FileNotFoundError), (str(tmp_path), PermissionError)):
        with pytest.raises(error), served.roots(made.client, "t.x", (Mount(root.type, program, "", root.options),)):
            raise AssertionError("it can't be served")
    bad = Mount(root.type, PROGRAM, "", (f"lowerdir={tmp_path}/missing",))
    with pytest.raises(FailedPrecondition, match="missing"):
        with served.roots(made.client, "t.x", (bad,)) as (fd,):
            os.stat("file", dir_fd=fd)
    assert not programs(tmp_path)


def test_a_worker_whose_program_ends(root: Mount, tmp_path: Path) -> None:
    """An error, where a descriptor of the device that is still open would have the next call wait for ever."""
    with pytest.raises(OSError, match="ended before it served anything") as caught:
        tree((Mount(root.type, PROGRAM, "", (f"lowerdir={tmp_path}/missing",)),))
    assert caught.value.errno == errno.ENOTCONN


def test_a_launcher_that_says_nothing(made: Shimmed, root: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_START", "raise SystemExit('no such thing')")
    with pytest.raises(Unavailable, match="no such thing"), served.roots(made.client, "t.x", (root,)):
        raise AssertionError("it can't be served")


def test_read_only_options() -> None:
    options = ["lowerdir=/a:/b", "upperdir=/own/fs", "workdir=/own/work", "writeback=0"]
    assert fuse.read_only(options) == ["lowerdir=/own/fs:/a:/b", "writeback=0"]
    assert fuse.read_only(options[:1]) == options[:1]


def test_generated_layers(tmp_path: Path) -> None:
    """Side by side and one after the other, by workers that run the program themselves."""
    for seed in SEEDS:
        image_layout(tmp_path / f"{seed}", [tar(*members) for members in Generator(seed).layers(5)])
        seen = {}
        for snapshotter in (NAME, "vfs"):
            with world(tmp_path / snapshotter, snapshotter) as made:
                ready = made.images.ensure(f"layout:{tmp_path / str(seed)}", made.drivers)
                found = tree(made.drivers.snapshotter.view(f"look-{seed}", ready.chain_id))
                # the program counts the names of a file in its lowest layer
                seen[snapshotter] = {path: evolve(item.plain(), links=0) for path, item in found.items()}
        assert seen[NAME] == seen["vfs"], seed
        assert len(seen["vfs"]) > 5
    assert not programs(tmp_path)


def test_why_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registration = fuse_overlayfs.wherry_snapshotter()

    def reason(root: Path = tmp_path, **config: str) -> str | None:
        context = LocalContext("snapshotter.fuse-overlayfs", root, tmp_path / "run")
        return registration.probe(registration.config(**config), context)

    assert reason() is None
    assert "install the package" in str(reason(program="no-such-program"))
    assert "a character that overlay options give a meaning to" in str(reason(tmp_path / "a:b"))
    monkeypatch.setattr(kit_fuse, "DEVICE", str(tmp_path / "fuse"))
    assert "can't be opened: no such file or directory" in str(reason())


def test_it_comes_before_copies(wherry: Wherry, tmp_path: Path) -> None:
    """Where the root directory lies on an overlay, which can't be the upper of another."""
    for name in ("low", "up", "work"):
        (tmp_path / name).mkdir()
    wherry.dirs.root.mkdir()
    options = f"lowerdir={tmp_path}/low,upperdir={tmp_path}/up,workdir={tmp_path}/work"
    mount.mount("overlay", str(wherry.dirs.root), "overlay", 0, options)
    try:
        text = "echo x > /made; cat /made"
        done = wherry("run", "--rm", "--network", "none", IMAGE, "sh", "-c", text)
        assert done.stdout == "x\n"
        assert f"snapshotter: {NAME}" in wherry("info").stdout
        gone(wherry)
        wherry.stop()
    finally:
        mount.umount(str(wherry.dirs.root), mount.MNT_DETACH)


def test_what_a_container_changed(tmp_path: Path) -> None:
    """The difference of two trees, while a program that writes to the upper one may run: the worker's own only reads."""
    image_layout(tmp_path / "image", [tar(member("a"), member("d/b"), member("d/c"), member("keep"))])
    seen = {}
    for snapshotter in (NAME, "vfs"):
        with world(tmp_path / snapshotter, snapshotter) as made:
            ready = made.images.ensure(f"layout:{tmp_path / 'image'}", made.drivers)
            driver = made.drivers.snapshotter
            upper = driver.prepare("one", ready.chain_id)
            change(
                upper, ("remove", "a"), ("rmtree", "d"), ("mkdir", "d"), ("write", "d/new", "n"), ("write", "keep", "k")
            )
            with (tmp_path / "layer").open("w+b") as sink:
                made.workers.diff(driver.view("below", ready.chain_id), upper, sink, LAYER)
                sink.seek(0)
                with tarfile.open(fileobj=sink) as layer:
                    seen[snapshotter] = [(entry.name, entry.size) for entry in layer]
    assert seen[NAME] == seen["vfs"]
    assert {".wh.a", "d/.wh.b", "d/.wh.c", "d/new", "keep"} <= {name.removeprefix("./") for name, _size in seen[NAME]}
    assert not programs(tmp_path)
