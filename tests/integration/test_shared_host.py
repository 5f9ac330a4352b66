"""Containers on a host whose mounts are shared, as systemd leaves them: nothing that is mounted for one shows on the host.

Each way in which a mount comes about, with the host's mount table compared while the container runs and when it is gone. The twins
run with clones that stay peers of their sources, as open_tree(2) makes them.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import isolation
from support.boxes import CORE, Box, Result
from support.engines import EngineDirs, Wherry
from support.running import until
from wherry.linux import mount

IMAGE = "host:" + ",".join(f"/bin/{name}" for name in ("sh", "cat", "ls", "sleep", "mount", "umount", "mkdir", "touch"))
BOTH = pytest.mark.parametrize("who", ["root", "user"], indirect=True)
PEERS = {"wherry.linux.mount.clone_tree": "stay peers"}


def table(pid: int | str = "self") -> set[str]:
    """The lines of a mount table, with attributes, options and peer groups (proc_pid_mountinfo(5))."""
    return set(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())


def groups(lines: Sequence[str], kind: str = "shared:") -> set[str]:
    """The peer groups of some mounts; of those that they are slaves of, with "master:"."""
    found = set()
    for line in lines:
        found.update(word.removeprefix(kind) for word in line.split(" - ")[0].split()[6:] if word.startswith(kind))
    return found


# plans


def _subtree(box: Box) -> str:
    """A directory of the host with a tmpfs mounted in it."""
    top = box.directory / "source"
    (top / "inner").mkdir(parents=True)
    (top / "x").mkdir()
    return str(top)


def bind(box: Box, *options: str) -> None:
    """A bind, and a tmpfs in it and in the mount below it."""
    source = _subtree(box)
    box.spec["mounts"] += [
        {"destination": "/b", "type": "bind", "source": source, "options": list(options)},
        {"destination": "/b/x", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/b/inner/y", "type": "tmpfs", "source": "tmpfs"},
    ]


def users(box: Box) -> None:
    """With the host's network: /sys is the host's, and the cgroups are mounted on it."""
    box.map_ids()
    box.netns = "host"
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "network"]


def users_bind(box: Box) -> None:
    users(box)
    bind(box, "rbind")


def cgroups(box: Box) -> None:
    """/sys of the host with everything on it, and the default mounts there again."""
    position = next(number for number, entry in enumerate(box.spec["mounts"]) if entry["destination"] == "/sys")
    box.spec["mounts"][position] = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]}


def readonly(box: Box) -> None:
    """Paths bound over themselves in a bind."""
    source = _subtree(box)
    box.spec["mounts"].append({"destination": "/b", "type": "bind", "source": source, "options": ["rbind"]})
    box.linux["readonlyPaths"] = ["/b/inner"]


def masked(box: Box) -> None:
    readonly(box)
    box.linux["maskedPaths"] = ["/b/inner"]


def console(box: Box) -> None:
    """The terminal is bound over /dev/console, in the host's /dev."""
    source = box.directory / "dev"
    (source / "pts").mkdir(parents=True)
    (source / "null").touch()
    box.spec["mounts"] = [entry for entry in box.spec["mounts"] if not entry["destination"].startswith("/dev")]
    box.spec["mounts"] += [
        {"destination": "/dev", "type": "bind", "source": str(source), "options": ["rbind"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    ]
    box.linux["maskedPaths"] = box.linux["readonlyPaths"] = []
    box.process["terminal"] = True


def plain(_box: Box) -> None:
    """The root is a bind."""


def overlay(box: Box) -> None:
    box.overlay()


#: Each way, and whether its twin leaves something on the host.
WAYS: list[tuple[Callable[[Box], None], bool]] = [
    (plain, False), (overlay, False), (users, True), (users_bind, True), (cgroups, True), (readonly, True), (masked, True),
    (console, True), (bind, True),
]  # fmt: skip


_HOST = """
mount --make-rshared / && { ! [ -d "$0/source/inner" ] || mount -t tmpfs tmpfs "$0/source/inner" && mkdir "$0/source/inner/y"; }
cat /proc/self/mountinfo > "$0/before" && "$@"; code=$?
cat /proc/self/mountinfo > "$0/after"; exit $code
"""


def in_a_box(box: Box, **twin: Any) -> tuple[Result, set[str], set[str]]:
    """A run: what came of it, what it changed on the host, and in which of the host's peer groups the container was."""
    wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _HOST, str(box.directory))
    result = box.run("cat", "/proc/self/mountinfo", wrapper=wrapper, **twin)
    before, after = (set((box.directory / name).read_text().splitlines()) for name in ("before", "after"))
    assert groups(list(before))
    return result, before ^ after, groups(result.output.splitlines()) & groups(list(before))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.mark.parametrize("way", [way for way, _falls in WAYS], ids=lambda way: way.__name__)
def test_a_mount_of_a_plan(box: Box, way: Callable[[Box], None]) -> None:
    way(box)
    result, more, peers = in_a_box(box)
    assert (result.error, more, peers) == (None, set(), set())


@pytest.mark.parametrize("way", [way for way, falls in WAYS if falls], ids=lambda way: way.__name__)
def test_a_mount_of_a_plan_twin(box: Box, way: Callable[[Box], None]) -> None:
    way(box)
    result, more, _peers = in_a_box(box, patch=PEERS)
    assert more, result


# what a bind is asked to be


def of_bind(box: Box, *options: str) -> tuple[set[str], set[str]]:
    """The peer groups that such a bind and its source are in, and those that they are slaves of."""
    bind(box, "rbind", *options)
    box.spec["mounts"] = box.spec["mounts"][:-2]
    result, more, _peers = in_a_box(box)
    assert (result.error, more) == (None, set())
    own = [line for line in result.output.splitlines() if line.split()[4].startswith("/b")]
    assert len(own) == 2
    before = (box.directory / "before").read_text().splitlines()
    assert len(groups([before[-1]])) == 1
    return groups(own[1:]) & groups([before[-1]]), groups(own[1:], "master:") & groups([before[-1]])


@pytest.mark.parametrize("wanted", ["shared", "rshared"])
def test_a_shared_bind_is_a_peer(box: Box, wanted: str) -> None:
    peers, masters = of_bind(box, wanted)
    assert (len(peers), len(masters)) == (1, 0)


def test_a_slave_bind(box: Box) -> None:
    peers, masters = of_bind(box, "rslave")
    assert (len(peers), len(masters)) == (0, 1)


@pytest.mark.parametrize("wanted", ["private", "rprivate", "unbindable", "runbindable"])
def test_a_bind_of_its_own(box: Box, wanted: str) -> None:
    assert of_bind(box, wanted) == (set(), set())


def test_a_shared_bind_of_a_user_namespace_is_a_slave(box: Box) -> None:
    """Its root mounts nothing on the host, whoever asks."""
    users(box)
    peers, masters = of_bind(box, "rshared")
    assert (len(peers), len(masters)) == (0, 1)


@pytest.mark.parametrize("way", [bind, readonly, masked, console, cgroups], ids=lambda way: way.__name__)
def test_nothing_of_ours_is_mounted_in_a_shared_bind(box: Box, way: Callable[..., None]) -> None:
    """It would appear on the host: the mounts, masks and read-only paths of this container, and its terminal."""

    def ask(entry: dict[str, Any]) -> None:
        if entry["type"] == "bind":
            entry["options"].append("rshared")

    way(box) if way is not bind else bind(box, "rbind")
    for entry in box.spec["mounts"]:
        ask(entry)
    result, more, _peers = in_a_box(box)
    assert result.error
    assert (result.error["class"], more) == ("Invalid", set())
    assert "it would appear on the host" in result.error["cause"]
    _result, more, _peers = in_a_box(box, patch={"wherry.linux.mount.is_shared": "nothing"})  # the twin
    assert more


# the whole of it

LIVES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "network host": ("--network", "host"),
    "privileged": ("--privileged",),
    "privileged, network host": ("--privileged", "--network", "host"),
    "users, network host": ("--userns", "auto", "--network", "host"),
    "users": ("--userns", "auto", "--read-only"),
    "users, privileged": ("--userns", "auto", "--privileged", "--network", "host"),
    "read-only": ("--read-only", "--tmpfs", "/t"),
    "bind": ("-v", "{top}:/b", "--tmpfs", "/b/x"),
    "bind, ro": ("-v", "{top}:/b:ro", "--tmpfs", "/b/x"),
    "bind, private": ("--mount", "type=bind,src={top},dst=/b,bind-propagation=private", "--tmpfs", "/b/inner/y"),
    "bind, slave": ("-v", "{top}:/b:rslave", "--tmpfs", "/b/x"),
    "bind, shared": ("-v", "{top}:/b:rshared"),
    "bind of the host": ("-v", "/:/h", "--tmpfs", "/h{top}/x", "--tmpfs", "/h{top}/inner/y"),
    "volume": ("-v", "data:/d", "-v", "/e", "--tmpfs", "/d/x"),
    "device": ("--device", "/dev/null:/dev/mine"),
    "terminal": ("-t",),
    "copies": ("--snapshotter", "vfs"),
    "a program's": ("--snapshotter", "fuse-overlayfs"),
}


@pytest.fixture
def shared() -> Iterator[None]:
    """All mounts of this process's own mount namespace are shared meanwhile."""
    if not isolation.isolated():
        pytest.skip("the mount namespace is not the test's own")
    mount.set_attributes(mount.AT_FDCWD, path="/", propagation=mount.MS_SHARED, recursive=True)
    try:
        yield
    finally:
        mount.set_attributes(mount.AT_FDCWD, path="/", propagation=mount.MS_PRIVATE, recursive=True)


@pytest.fixture
def top(place: Path) -> Iterator[Path]:
    """A directory of the host, with a tmpfs mounted in it."""
    (place / "inner").mkdir()
    mount.mount("tmpfs", place / "inner", "tmpfs")
    for name in ("x", "inner/y"):
        (place / name).mkdir()
    yield place
    mount.umount(place / "inner", mount.MNT_DETACH)


def tables(dirs: EngineDirs, shim: int) -> list[set[str]]:
    """The host's mount table and, of an ordinary user's engine, that in which it lives."""
    return [table(), table(shim) if dirs.user else set()]


def settled(dirs: EngineDirs, shim: int, before: list[set[str]]) -> bool:
    return tables(dirs, shim) == before


CONFIG = """
version = 1
default = "standard"
[engine]
frontends = ["cli"]
log = "json-file"
transport = "registry"
userns = "6000000:65536000"
[variant.standard]
store = "local"
snapshotter = "overlayfs"
isolation = ["namespaces", "userns"]
network = "none"
"""


@pytest.fixture
def configured(wherry: Wherry, who: str) -> Wherry:
    """Root's has a range of ids for containers."""
    if who == "root":
        file = wherry.dirs.root.parent / "config.toml"
        file.write_text(CONFIG)
        wherry.options = ("--config", str(file))
    return wherry


@BOTH
def test_lives(configured: Wherry, top: Path, shared: None) -> None:
    """Started twice, so that what was preforked for the next one is used; with execs, and another one that joins it."""
    wherry = configured
    wherry("run", "--rm", IMAGE, "ls")
    shim = json.loads(wherry("info", "--json").stdout)["shim"]["pid"]
    ran = set()
    for name, options in LIVES.items():
        if "fuse-overlayfs" in options and not shutil.which("fuse-overlayfs"):
            continue
        wanted = [option.format(top=top) for option in options]
        before = tables(wherry.dirs, shim)
        for _time in range(2):
            id = wherry("run", "-d", *wanted, IMAGE, "sleep", "1000").stdout.strip()
            joined = wherry(
                "run", "-d", "--network", f"container:{id}", IMAGE, "sleep", "1000", code=None
            ).stdout.strip()
            assert "tmpfs" in wherry("exec", id, "cat", "/proc/self/mountinfo").stdout
            wherry("exec", id, "ls", "/")
            assert tables(wherry.dirs, shim) == before, name
            wherry("rm", "-f", "-v", id, *([joined] if joined else []))
            until(functools.partial(settled, wherry.dirs, shim, before), 10)
        ran.add(name)
    assert len(ran) >= len(LIVES) - 1


def test_lives_twin(configured: Wherry, tmp_path: Path) -> None:
    """With an engine whose clones stay peers: its source says so in a mount namespace of its own."""
    file = CORE / "wherry/linux/mount.py"
    text = file.read_text()
    assert text.count("if propagation & kind:") == 1
    (tmp_path / "mount.py").write_text(text.replace("if propagation & kind:", "if False:"))
    script = """
program=$0; config=$4
mount --make-rshared / && mount --bind "$1/mount.py" "$2/mount.py" && mount -t tmpfs tmpfs "$2/__pycache__"
wherry() { "$program" --config "$config" "$@"; }
wherry info > /dev/null; cat /proc/self/mountinfo > "$1/before"
wherry run --rm --userns auto --network host "$3" ls; cat /proc/self/mountinfo > "$1/after"
wherry engine stop
"""
    wherry, config = configured, configured.options[1]
    program = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    subprocess.run(
        [*program, str(wherry.program), str(tmp_path), str(file.parent), IMAGE, config],
        env=wherry.dirs.environ, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    before, after = (set((tmp_path / name).read_text().splitlines()) for name in ("before", "after"))
    assert after - before
