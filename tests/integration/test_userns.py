"""--userns: containers in user namespaces of their own, root's and an ordinary user's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import rootless
from support.engines import Wherry
from wherry.linux import userns
from wherry.oci import execute_root
from wherry.oci.child import Child

IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/bin/touch,/usr/bin/id,/usr/bin/stat,/bin/chown"
FIRST, COUNT = 6_000_000, 200_000
BOTH = pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])
USER = pytest.mark.parametrize("who", ["user"], indirect=True)
WHOLE = [(0, 0, 0xFFFFFFFF)]
CONFIG = f"""
version = 1
[engine]
frontends = ["cli"]
log = "json-file"
transport = "registry"
userns = "{FIRST}:{COUNT}"
[variant.standard]
store = "local"
snapshotter = ["overlayfs", "vfs"]
isolation = ["namespaces", "userns"]
network = "none"
"""


@pytest.fixture
def root(wherry: Wherry, tmp_path: Path) -> Iterator[Wherry]:
    """Root's engine, with a range to give."""
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    wherry.options = ("--config", str(file))
    yield wherry
    wherry.stop()


def pid_of(wherry: Wherry, name: str) -> int:
    return int(wherry("inspect", "-f", "{{.State.Pid}}", name).stdout)


@BOTH
def test_a_range_of_its_own(root: Wherry, snapshotter: str) -> None:
    script = "id -u; touch /made; stat -c %u:%g /made /bin/sh /etc/hosts; echo 192.0.2.1 more >> /etc/hosts; sleep 1000"
    root("run", "-d", "--name", "one", "--userns", "auto", "--snapshotter", snapshotter, IMAGE, "sh", "-c", script)
    root(
        "exec",
        "one",
        "sh",
        "-c",
        "while ! cat /etc/hosts | { while read a b; do [ $a = 192.0.2.1 ] && exit; done; false; }; do :; done",
    )
    assert root("logs", "one").stdout == "0\n0:0\n0:0\n0:0\n"
    pid = pid_of(root, "one")
    assert userns.id_map("uid_map", pid) == userns.id_map("gid_map", pid) == [(0, FIRST, 65536)]
    assert os.stat(f"/proc/{pid}").st_uid == FIRST
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    # on disk nothing was given to another: neither the layer nor what the container wrote
    owners = {os.lstat(path).st_uid for path in (root.dirs.root / "snapshotter" / snapshotter).rglob("*")}
    assert owners == {0}
    done = root("exec", "one", "sh", "-c", "id -u; cat /proc/self/uid_map")
    assert done.stdout.split() == ["0", "0", str(FIRST), "65536"]
    root("rm", "-f", "one")


def test_ranges_do_not_overlap_and_come_back(root: Wherry) -> None:
    for name in ("one", "two", "three"):
        root("run", "-d", "--name", name, "--userns", "auto", IMAGE, "sleep", "1000")
    maps = {name: userns.id_map("uid_map", pid_of(root, name)) for name in ("one", "two", "three")}
    assert sorted(rows[0][1] for rows in maps.values()) == [FIRST, FIRST + 65536, FIRST + 2 * 65536]
    assert "no 65536 ids in a row are left" in root("run", "--rm", "--userns", "auto", IMAGE, "id", code=125).stderr
    root("engine", "restart")
    assert "no 65536 ids in a row are left" in root("run", "--rm", "--userns", "auto", IMAGE, "id", code=125).stderr
    root("rm", "-f", "two")
    root("run", "-d", "--name", "again", "--userns", "auto", IMAGE, "sleep", "1000")
    assert userns.id_map("uid_map", pid_of(root, "again")) == maps["two"]
    root("stop", "-t", "0", "again")
    root("start", "again")
    assert userns.id_map("uid_map", pid_of(root, "again")) == maps["two"]
    root("rm", "-f", "one", "three", "again")
    assert root("doctor").stdout == "all is well\n"


def test_ranges_of_many_at_once(root: Wherry) -> None:
    """As many as there are ranges, each its own; then none is left, and those that go at once can all be had again."""
    size, names = COUNT // 5, [f"c{number}" for number in range(5)]

    def both(command: Callable[[str], object]) -> None:
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(command, names))

    def start(name: str) -> None:
        wish = ("--userns", f"auto:size={size}", "--network", "none")
        root("run", "-d", "--name", name, *wish, IMAGE, "sleep", "1000")

    for _time in range(2):
        both(start)
        rows = [userns.id_map("uid_map", pid_of(root, name)) for name in names]
        assert sorted(row[0][1] for row in rows) == [FIRST + size * number for number in range(5)]
        refused = root("run", "--rm", "--userns", "auto:size=2", IMAGE, "true", code=125).stderr
        assert "no 2 ids in a row are left; remove containers, take a smaller size, or add ranges" in refused
        both(lambda name: root("rm", "-f", name))
    assert root("doctor").stdout == "all is well\n"


def test_who_joins_the_network_joins_the_user_namespace(root: Wherry) -> None:
    root("run", "-d", "--name", "one", "--userns", "auto", IMAGE, "sleep", "1000")
    done = root("run", "--rm", "--network", "container:one", IMAGE, "sh", "-c", "id -u; cat /proc/self/uid_map")
    assert done.stdout.split() == ["0", "0", str(FIRST), "65536"]
    refused = root("run", "--rm", "--network", "container:one", "--userns", "auto", IMAGE, "true", code=125).stderr
    assert "belongs to the network of container:one" in refused
    root("rm", "-f", "one")


def test_modes_of_root(root: Wherry) -> None:
    for mode, row in (
        ("host", WHOLE[0]),
        ("keep-id", WHOLE[0]),
        ("nomap", (0, FIRST, 65536)),
        ("auto:size=2000", (0, FIRST, 2000)),
    ):
        done = root("run", "--rm", "--userns", mode, IMAGE, "cat", "/proc/self/uid_map")
        assert done.stdout.split() == [str(number) for number in row], mode
    assert "no such mode" in root("run", "--rm", "--userns", "other", IMAGE, "true", code=125).stderr


def test_a_user_beyond_the_range(root: Wherry) -> None:
    refused = root("run", "--rm", "--userns", "auto:size=100", "-u", "100", IMAGE, "id", code=125).stderr
    assert "user 100:" in refused
    assert "no such id" in refused
    assert root("run", "--rm", "--userns", "auto:size=100", "-u", "99:99", IMAGE, "id", "-u").stdout == "99\n"


def test_the_root_of_a_range_is_nobody_on_the_host(root: Wherry, tmp_path: Path) -> None:
    """An attack: files of the host's root are neither read nor changed, nor given away, with all capabilities."""
    (tmp_path / "secret").write_text("of root's\n")
    (tmp_path / "secret").chmod(0o600)
    tmp_path.chmod(0o755)
    script = "cat /host/secret; echo x > /host/secret; chown 0 /host/secret; touch /host/new; stat -c %u /host/secret"
    done = root("run", "--rm", "--privileged", "--userns", "auto", "-v", f"{tmp_path}:/host", IMAGE, "sh", "-c", script)
    assert done.stdout == "65534\n"
    assert len(done.stderr.splitlines()) == 4
    assert (tmp_path / "secret").read_text() == "of root's\n"
    assert not (tmp_path / "new").exists()


def test_twin_as_the_hosts_root_it_is_read(root: Wherry, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of root's\n")
    (tmp_path / "secret").chmod(0o600)
    done = root("run", "--rm", "--userns", "host", "-v", f"{tmp_path}:/host", IMAGE, "cat", "/host/secret")
    assert done.stdout == "of root's\n"


def test_an_idmapped_bind(root: Wherry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = root(
        "run",
        "--rm",
        "--userns",
        "auto",
        "-v",
        f"{tmp_path}:/host:idmap",
        IMAGE,
        "sh",
        "-c",
        "stat -c %u /host/file; touch /host/new",
    )
    assert done.stdout == "0\n"
    assert os.stat(tmp_path / "new").st_uid == 0


def test_a_volume_shows_its_ids_as_they_are(root: Wherry) -> None:
    """To a container in a user namespace of its own and to others alike, filled from the image too."""
    script = "stat -c %u /d /d/sh; touch /d/new; stat -c %u /d/new"
    options = ("run", "--rm", "-v", "data:/d", "-v", "data:/bin")
    mine = root("run", "--rm", "--userns", "auto", "-v", "data:/bin", "-v", "data:/d", IMAGE, "sh", "-c", script)
    assert mine.stdout.split() == ["0", "0", "0"]
    assert root(*options, IMAGE, "stat", "-c", "%u", "/d/new").stdout == "0\n"
    root("volume", "rm", "data")


def test_a_device_by_another_name(root: Wherry) -> None:
    """Bound, as none can be made there: the one that was asked for, wherever the host has it."""
    script = "stat -c %t:%T /dev/null /dev/mine"
    done = root("run", "--rm", "--userns", "auto", "--device", "/dev/zero:/dev/mine", IMAGE, "sh", "-c", script)
    assert done.stdout == "1:3\n1:5\n"
    done = root(
        "run",
        "--rm",
        "--userns",
        "auto",
        "--device",
        "/dev/zero:/dev/loop0",
        IMAGE,
        "stat",
        "-c",
        "%t:%T",
        "/dev/loop0",
    )
    assert done.stdout == "1:5\n", "a node of another device is never taken for it"


def test_layers_by_path_where_the_kernel_takes_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 5.19 to 6.12. Run in a child, since it makes a mount namespace of its own."""
    for name in ("lower/file", "own/fs", "own/work"):
        (tmp_path / name).mkdir(parents=True)

    def refused(*_arguments: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(execute_root, "_overlay_by_fd", refused)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child = Child()
            rows = ((0, FIRST, 1000),)
            options = (
                (b"source", b"overlay"),
                (b"upperdir", os.fsencode(tmp_path / "own/fs")),
                (b"workdir", os.fsencode(tmp_path / "own/work")),
            )
            execute_root.mapped_overlay(child, 0, (os.fsencode(tmp_path / "lower"),), options, 0, rows, rows)
            found = os.stat("file", dir_fd=child.source[0])
            readonly = os.fstatvfs(child.source[0]).f_flag & os.ST_RDONLY
            os.write(writer, f"{found.st_uid} {readonly}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == f"{FIRST} 0"
    os.waitpid(pid, 0)


# -- an ordinary user's ----------------------------------------------------------------------------------------------------


@USER
def test_keep_id(wherry: Wherry) -> None:
    script = "id -u; id -g; stat -c %u:%g /bin/sh; touch /tmp/x; stat -c %u /tmp/x; sleep 1000"
    assert wherry.dirs.user
    uid = wherry.dirs.user.uid
    chosen = ("--snapshotter", "overlayfs", "--userns", "keep-id")
    refused = wherry("run", "--rm", *chosen, IMAGE, "true", code=125).stderr
    assert "choose --snapshotter fuse-overlayfs, or vfs, which copies" in refused
    wherry("run", "-d", "--name", "kept", "--userns", "keep-id", "--snapshotter", "vfs", IMAGE, "sh", "-c", script)
    assert wherry("exec", "kept", "id", "-u").stdout == f"{uid}\n"
    assert wherry("exec", "-u", "0", "kept", "sh", "-c", "id -u; echo more >> /etc/hosts").stdout == "0\n"
    assert wherry("logs", "kept").stdout == f"{uid}\n{uid}\n0:0\n{uid}\n"
    assert os.stat(f"/proc/{pid_of(wherry, 'kept')}").st_uid == uid
    wherry("rm", "-f", "kept")


@USER
def test_the_snapshotter_that_can_is_taken_where_none_is_named(wherry: Wherry) -> None:
    wherry("create", "--name", "plain", "--network", "none", IMAGE, "true")
    wherry("create", "--name", "kept", "--userns", "keep-id", "--network", "none", IMAGE, "id", "-un")
    drivers = [json.loads(wherry("inspect", name).stdout)[0] for name in ("plain", "kept")]
    assert '"overlayfs"' in json.dumps(drivers[0])
    assert '"fuse-overlayfs"' in json.dumps(drivers[1]) or '"vfs"' in json.dumps(drivers[1])
    assert wherry("start", "-a", "kept").stdout == f"{rootless.NAME}\n"
    wherry("rm", "plain", "kept")


@USER
def test_keep_id_has_a_name_and_a_home(wherry: Wherry) -> None:
    """Whose line is in the container's own passwd and group, in no layer, and only once."""
    assert wherry.dirs.user
    user = wherry.dirs.user
    where = ("--userns", "keep-id", "--snapshotter", "vfs", "--network", "none")
    script = "id -un; id -gn; echo $HOME"
    told = f"{user.name}\n{user.name}\n{user.home}\n"
    assert wherry("run", "--name", "kept", *where, IMAGE, "sh", "-c", script).stdout == told
    assert wherry("start", "-a", "kept").stdout == told
    lines = [line for line in wherry("run", "--rm", *where, IMAGE, "cat", "/etc/passwd").stdout.splitlines() if line]
    assert lines.count(f"{user.name}:*:{user.uid}:{user.gid}::{user.home}:/bin/sh") == 1
    assert wherry("run", "--rm", *where, "-e", "HOME=/else", IMAGE, "sh", "-c", "echo $HOME").stdout == "/else\n"
    assert wherry("run", "--rm", *where, "--read-only", IMAGE, "id", "-un").stdout == f"{user.name}\n"
    moved = ("--userns", "keep-id:uid=1234,gid=1235", "--snapshotter", "vfs", "--network", "none")
    script = "id -u; id -g; id -un; id -gn"
    assert wherry("run", "--rm", *moved, IMAGE, "sh", "-c", script).stdout.split() == ["1234", "1235", *[user.name] * 2]
    assert wherry("run", "--rm", "--network", "none", IMAGE, "id", "-un", code=None).stdout != f"{user.name}\n"
    wherry("rm", "kept")


@USER
def test_keep_id_changes_no_passwd_of_the_hosts(wherry: Wherry, place: Path) -> None:
    """A bind over /etc/passwd comes after the line was written: below it."""
    assert wherry.dirs.user
    (place / "passwd").write_text("me:x:0:0::/:/bin/sh\n")
    os.chown(place / "passwd", wherry.dirs.user.uid, wherry.dirs.user.gid)
    where = ("--userns", "keep-id", "--snapshotter", "vfs", "-v", f"{place}/passwd:/etc/passwd")
    done = wherry("run", "--rm", *where, IMAGE, "cat", "/etc/passwd")
    assert done.stdout == (place / "passwd").read_text() == "me:x:0:0::/:/bin/sh\n"


@USER
def test_a_bind_of_the_users_own_with_keep_id(wherry: Wherry, place: Path) -> None:
    assert wherry.dirs.user
    uid = wherry.dirs.user.uid
    where = ("--userns", "keep-id", "--snapshotter", "vfs", "-v", f"{place}:/place")
    done = wherry("run", "--rm", *where, IMAGE, "sh", "-c", "touch /place/x; stat -c %u /place")
    assert done.stdout == f"{uid}\n"
    assert os.stat(place / "x").st_uid == uid


@USER
def test_nomap_and_auto(wherry: Wherry, place: Path) -> None:
    """Neither has the user itself: what is the user's is nobody's in there."""
    for mode in ("nomap", "auto"):
        done = wherry(
            "run", "--rm", "--userns", mode, "--snapshotter", "vfs", "-v", f"{place}:/place", IMAGE, "sh", "-c",
            "id -u; stat -c %u /place /bin/sh; touch /place/x || echo refused",
        )  # fmt: skip
        assert done.stdout == "0\n65534\n0\nrefused\n"


@USER
def test_a_device_of_an_ordinary_users(wherry: Wherry) -> None:
    done = wherry(
        "run", "--rm", "--network", "none", "--device", "/dev/zero:/dev/mine", IMAGE, "stat", "-c", "%t:%T", "/dev/mine"
    )
    assert done.stdout == "1:5\n"
