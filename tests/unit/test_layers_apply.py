"""The layer rules: what a layer makes of a tree, whiteouts in any order, and attacks with their vulnerable twins."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from support.layers import digest, directory, hard, link, member, names, tar, tree, unpack
from wherry.api import Invalid
from wherry.layers import apply as apply_module
from wherry.layers import paths
from wherry.linux import path as linux_path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


# -- what a layer brings ---------------------------------------------------------------------------------------------------


def test_everything_a_file_can_be(root: Path) -> None:
    data = tar(
        directory("./", mode=0o751, uid=5),
        directory("d", mode=0o2775, uid=1, gid=2, mtime=1_000_000_001),
        member("d/suid", data=b"x", mode=0o4755, uid=1000, gid=1000, mtime=12.5),
        member("caps", data=b"x", pax_headers={"SCHILY.xattr.user.a": "b"}, mode=0o755),
        link("d/link", "../nowhere", uid=7, gid=8),
        hard("hard", "d/suid"),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("sda", tarfile.BLKTYPE, devmajor=8, devminor=1, mode=0o660, gid=6),
        member("fifo", tarfile.FIFOTYPE, mode=0o622),
    )
    done = unpack(root, data)
    assert (done.diff_id, done.digest, done.entries) == (digest(data), digest(data), 9)
    found = tree(root, times=True)
    second = 1_000_000_000
    assert found["."][:3] == ("drwxr-x--x", 5, 0)
    assert found["d"][:3] == ("drwxrwsr-x", 1, 2)
    assert found["d"][-1] == 1_000_000_001 * second
    assert found["d/suid"][:4] == ("-rwsr-xr-x", 1000, 1000, 1)
    assert found["d/suid"][-1] == 12_500_000_000
    assert os.getxattr(root / "caps", "user.a") == b"b"
    assert found["d/link"][:5] == ("lrwxrwxrwx", 7, 8, 10, "../nowhere")
    assert found["d/link"][-1] == second * second
    assert (root / "hard").stat().st_ino == (root / "d/suid").stat().st_ino
    assert (found["null"][0], found["null"][4]) == ("crw-rw-rw-", (1, 3))
    assert (found["sda"][0], found["sda"][4]) == ("brw-rw----", (8, 1))
    assert found["fifo"][0] == "prw--w--w-"


def _inheriting(path: Path) -> Path:
    """A directory that gives what is made in it another group and mode than asked for: set-gid bit and default ACL (acl(5))."""
    path.mkdir()
    os.chown(path, 0, 77)
    path.chmod(0o2755)
    entries = (
        (0x01, 6, 0xFFFFFFFF),
        (0x04, 0, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )  # user, group, others: rw-, ---, ---
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this file system has no ACLs")
    return path


@pytest.mark.parametrize("vulnerable", [False, True])
def test_what_a_directory_gives_its_files_is_not_the_layers(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, vulnerable: bool
) -> None:
    if vulnerable:
        monkeypatch.setattr(apply_module._Unpacker, "_finish_fd", lambda *_arguments, **_options: None)
    _inheriting(root / "d")
    unpack(root, tar(member("d/f", data=b"x", mode=0o755), member("d/own", data=b"x", mode=0o640, uid=3, gid=4)))
    found = tree(root)
    right = (found["d/f"][:3], found["d/own"][:3]) == (("-rwxr-xr-x", 0, 0), ("-rw-r-----", 3, 4))
    assert right is not vulnerable


def test_a_file_capability_outlives_the_chown(root: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    info, data = member("ping", data=b"x", mode=0o755, uid=10)
    blob = tar((info, data))
    # tarfile writes pax values as text: put the bytes in by our own writer instead
    from wherry.layers.archive import TarEntry
    from wherry.layers.writer import END, header, padding

    entry = TarEntry()
    entry.name, entry.mode, entry.uid, entry.size = b"ping", 0o755, 10, 1
    entry.xattrs = {b"security.capability": capability}
    unpack(root, header(entry) + b"x" + padding(1) + END)
    assert os.getxattr(root / "ping", "security.capability") == capability
    assert blob


def test_sparse_files_stay_sparse(root: Path, tmp_path: Path) -> None:
    import subprocess

    with open(tmp_path / "big", "wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    data = subprocess.run(["tar", "-S", "-cf", "-", "big"], cwd=tmp_path, check=True, capture_output=True).stdout
    unpack(root, data)
    assert (root / "big").stat().st_size == (50 << 20) + 3
    assert (root / "big").stat().st_blocks * 512 < 1 << 20
    assert (root / "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_names_given_twice_mean_the_last(root: Path) -> None:
    unpack(
        root,
        tar(member("a", data=b"1"), hard("b", "a"), member("a", data=b"2"), link("a/", "x"), member("a", data=b"3")),
    )
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"3", b"1")


@pytest.mark.parametrize("first", ["file", "dir", "link", "fifo"])
@pytest.mark.parametrize("then", ["file", "dir", "link", "fifo", "hard"])
def test_a_name_changes_its_kind(root: Path, first: str, then: str) -> None:
    make = {
        "file": lambda: [member("x", data=b"f")],
        "dir": lambda: [directory("x"), member("x/inside", data=b"i")],
        "link": lambda: [link("x", "other")],
        "fifo": lambda: [member("x", tarfile.FIFOTYPE)],
        "hard": lambda: [hard("x", "other/file")],
    }
    unpack(root, tar(directory("other"), member("other/file", data=b"o"), *make[first]()))
    unpack(root, tar(*make[then]()))
    mode = (root / "x").lstat().st_mode
    kind = {
        "file": stat.S_ISREG,
        "dir": stat.S_ISDIR,
        "link": stat.S_ISLNK,
        "fifo": stat.S_ISFIFO,
        "hard": stat.S_ISREG,
    }
    assert kind[then](mode)
    assert (root / "other/file").read_bytes() == b"o"
    assert names(root / "other") == {"file"}


def test_parents_that_nobody_lists_and_times_that_nobody_sets(root: Path) -> None:
    unpack(root, tar(directory("lower", mtime=500), member("lower/a")))
    unpack(root, tar(member("lower/b"), member("new/deep/c")))
    assert (root / "lower").stat().st_mtime == 500
    assert stat.S_IMODE((root / "new/deep").stat().st_mode) == 0o755
    assert (root / "new/deep").stat().st_mtime == 0


def test_links_inside_the_root_are_followed_for_parents(root: Path) -> None:
    unpack(
        root,
        tar(
            directory("usr"),
            link("bin", "/usr/bin"),  # absolute, and dangling until now
            member("bin/sh", data=b"sh"),
            link("up", "../../usr"),
            member("up/lib/x", data=b"x"),
            hard("bin/hard", "bin/sh"),
        ),
    )
    assert (root / "usr/bin/sh").read_bytes() == b"sh"
    assert (root / "usr/lib/x").read_bytes() == b"x"
    assert (root / "usr/bin/hard").stat().st_nlink == 2


def test_ids_are_mapped(root: Path) -> None:
    unpack(root, tar(member("made/f", uid=5, gid=6)), uids=lambda id: id + 100_000, gids=lambda id: id + 200_000)
    assert (root / "made/f").stat().st_uid == 100_005
    assert (root / "made/f").stat().st_gid == 200_006
    assert (root / "made").stat().st_uid == 100_000


def test_devices_may_be_left_out(root: Path) -> None:
    unpack(
        root,
        tar(member("null", tarfile.CHRTYPE, devmajor=1, devminor=3), member("f"), member("p", tarfile.FIFOTYPE)),
        devices=False,
    )
    assert names(root) == {"f", "p"}


@pytest.mark.parametrize(
    "xattr",
    [
        "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.whiteout",
        "trusted.overlay.overlay.opaque", "user.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque",
        "user.fuseoverlayfs.override_stat",
    ],
)  # fmt: skip
def test_no_marks_of_overlayfs_from_an_image(root: Path, monkeypatch: pytest.MonkeyPatch, xattr: str) -> None:
    """Refused, and the twin: without the look at them they would come to be."""
    layer = tar(directory("d"), directory("d/e", pax_headers={f"SCHILY.xattr.{xattr}": "y"}))
    with pytest.raises(Invalid, match=rf'"/d/e" has the xattr "{xattr}"'):
        unpack(root, layer)
    monkeypatch.setattr("wherry.layers.apply.admitted", lambda entry: entry.xattrs)
    unpack(root, layer)
    assert os.listxattr(root / "d/e") == [xattr]


def test_traces_of_overlayfs_mean_nothing(root: Path) -> None:
    """umoci and containers/storage leave them out, too: builders have put them into layers."""
    traces = {
        f"SCHILY.xattr.{mark}.overlay.{name}": "y" for mark in ("trusted", "user") for name in ("origin", "impure")
    }
    unpack(root, tar(directory("d", pax_headers={"SCHILY.xattr.trusted.other": "z", **traces})))
    assert os.listxattr(root / "d") == ["trusted.other"]


def test_no_device_that_overlayfs_takes_for_a_removal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar(member("x", tarfile.CHRTYPE, devmajor=0, devminor=0))
    with pytest.raises(Invalid, match="0:0"):
        unpack(root, layer)
    monkeypatch.setattr(apply_module, "check_device", lambda entry: None)  # the twin
    unpack(root, layer)
    assert (root / "x").lstat().st_rdev == 0


def test_very_deep_trees_come_and_go(root: Path) -> None:
    deep = "/".join(["d"] * 1500)
    unpack(root, tar(member(f"{deep}/f", data=b"x")))
    unpack(root, tar(member(".wh.d")))
    assert names(root) == set()


# -- whiteouts -------------------------------------------------------------------------------------------------------------

LOWER = (
    directory("a"),
    member("a/1", data=b"l"),
    member("a/2", data=b"l"),
    directory("a/sub"),
    member("a/sub/3", data=b"l"),
    member("b", data=b"l"),
    link("la", "a"),
)


@pytest.mark.parametrize(
    "upper, wanted",
    [
        ([member(".wh.b")], {"a", "a/1", "a/2", "a/sub", "a/sub/3", "la"}),
        ([member("a/.wh.sub"), member("a/.wh.gone")], {"a", "a/1", "a/2", "b", "la"}),
        ([member(".wh.a")], {"b", "la"}),
        ([member(".wh.la")], {"a", "a/1", "a/2", "a/sub", "a/sub/3", "b"}),
        ([member("la/.wh.1")], {"a", "a/2", "a/sub", "a/sub/3", "b", "la"}),
        ([member("nowhere/.wh.x")], {"a", "a/1", "a/2", "a/sub", "a/sub/3", "b", "la"}),
        ([member(".wh.b"), member("b", data=b"u")], {"a", "a/1", "a/2", "a/sub", "a/sub/3", "b", "la"}),
        ([member("b", data=b"u"), member(".wh.b")], {"a", "a/1", "a/2", "a/sub", "a/sub/3", "b", "la"}),
        ([member("a/.wh..wh..opq"), member("a/new")], {"a", "a/new", "b", "la"}),
        ([member("a/new"), member("a/.wh..wh..opq")], {"a", "a/new", "b", "la"}),
        ([member("a/sub/new"), member("a/.wh..wh..opq")], {"a", "a/sub", "a/sub/new", "b", "la"}),
        ([directory("a/sub"), member("a/.wh..wh..opq"), member("a/1")], {"a", "a/sub", "a/1", "b", "la"}),
        ([directory("a"), member("a/x"), member(".wh.a")], {"a", "a/x", "b", "la"}),
        ([member(".wh..wh..opq"), member("only")], {"only"}),
        (
            [member(".wh..wh.plnk"), member("a/.wh..wh.aufs"), member(".wh..wh.plnk/1.2")],
            {"a", "a/1", "a/2", "a/sub", "a/sub/3", "b", "la"},
        ),
    ],
)
def test_whiteouts_hide_lower_layers_only(
    root: Path, upper: list[tuple[tarfile.TarInfo, bytes]], wanted: set[str]
) -> None:
    unpack(root, tar(*LOWER))
    unpack(root, tar(*upper))
    assert names(root) == wanted
    if any(info.name == "b" for info, _ in upper):
        assert (root / "b").read_bytes() == b"u"


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh..."])
def test_whiteouts_of_nothing_are_refused(root: Path, name: str) -> None:
    unpack(root, tar(*LOWER))
    before = tree(root)
    with pytest.raises(Invalid):
        unpack(root, tar(member(name)))
    assert tree(root) == before


def test_twin_that_hides_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ ".wh..." is a whiteout of "..": without the look at it, and without the resolution that stays below, the root itself goes."""
    monkeypatch.setattr(apply_module, "_NOTHING", frozenset())
    monkeypatch.setattr(paths, "open_at", plain)
    unpack(root, tar(*LOWER))
    before = tree(root)
    with suppress(OSError):
        unpack(root, tar(member("a/.wh...")))
    assert tree(root) != before


# -- attacks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def canary(root: Path) -> Path:
    """What lies beside the root, and must stay as it is."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"canary")
    (outside / "sub").mkdir()
    return outside


Attack = Callable[[Path], list[tuple[tarfile.TarInfo, bytes]]]
ATTACKS: dict[str, Attack] = {
    "dots": lambda out: [member(f"../{out.name}/file", data=b"evil")],
    "dots inside": lambda out: [member(f"a/../../{out.name}/file", data=b"evil")],
    "absolute": lambda out: [member(f"{out}/file", data=b"evil")],
    "link, then through it": lambda out: [link("l", str(out)), member("l/file", data=b"evil")],
    "relative link, then through it": lambda out: [link("l", f"../{out.name}"), member("l/file", data=b"evil")],
    "link to a link": lambda out: [link("l", str(out)), link("m", "l"), member("m/file", data=b"evil")],
    "link, then replaced": lambda out: [link("l", f"{out}/file"), member("l", data=b"evil")],
    "chmod by a link": lambda out: [link("l", f"{out}/sub"), directory("l", mode=0o777, uid=99)],
    "directory onto a link": lambda out: [link("l", str(out)), directory("l"), member("l/file", data=b"evil")],
    "hard link to outside": lambda out: [hard("h", f"../{out.name}/file"), member("h", data=b"evil")],
    "hard link by a link": lambda out: [link("l", str(out)), hard("h", "l/file")],
    "hard link to a link": lambda out: [
        link("l", f"{out}/file"),
        hard("h", "l"),
        member("h", data=b"evil", mode=0o777),
    ],
    "root as a link": lambda out: [link(".", str(out)), member("file", data=b"evil")],
    "whiteout of outside": lambda out: [link("l", str(out)), member("l/.wh.file")],
    "opaque outside": lambda out: [link("l", str(out)), member("l/.wh..wh..opq")],
    "whiteout with dots": lambda out: [member(f"a/../../{out.name}/.wh.file")],
    "fifo outside": lambda out: [link("l", str(out)), member("l/fifo", tarfile.FIFOTYPE)],
    "many links": lambda out: [
        *(link(f"l{n}", f"l{n + 1}") for n in range(300)),
        link("l300", str(out)),
        member("l0/x"),
    ],
}


def _state(path: Path) -> object:
    return tree(path, times=True), [item.lstat().st_nlink for item in sorted(path.rglob("*"))]


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_outside_the_root_changes(root: Path, canary: Path, name: str) -> None:
    before = _state(canary)
    try:
        unpack(root, tar(*ATTACKS[name](canary)))
    except (Invalid, OSError):
        pass
    assert _state(canary) == before


#: Cleaning of names stops the first three by itself; the others stand and fall with how parents are resolved.
BY_TEXT = ("dots", "dots inside", "absolute", "whiteout with dots")
NOT_BY_PARENTS = (*BY_TEXT, "link, then replaced", "chmod by a link", "directory onto a link", "hard link to outside",
                  "hard link to a link", "root as a link", "many links")  # fmt: skip


def plain(fd: int, name: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """paths.open_at as if nothing were to be feared."""
    return os.open(name, flags & ~os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=fd)


def succeeds(name: str, root: Path, canary: Path) -> None:
    """The attack does its harm, as it has to where nothing protects."""
    before = _state(canary)
    with suppress(Invalid, OSError):
        unpack(root, tar(*ATTACKS[name](canary)))
    assert _state(canary) != before


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in NOT_BY_PARENTS])
def test_twin_without_the_resolution_in_the_root(
    root: Path, canary: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "open_at", plain)
    succeeds(name, root, canary)


@pytest.mark.parametrize("name", BY_TEXT)
def test_twin_without_cleaning_and_resolution(
    root: Path, canary: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(name: bytes) -> tuple[bytes, ...]:
        directory, _, last = name.rpartition(b"/")
        return ((directory or b"/"), last) if b"/" in name else (last,)

    monkeypatch.setattr(paths, "open_at", plain)
    monkeypatch.setattr(apply_module, "clean", careless)
    (root / "a").mkdir()
    succeeds(name, root, canary)


def test_twin_of_replaced_links(root: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's last name is never followed: O_EXCL and O_NOFOLLOW see to it."""
    real_open = os.open

    def careless(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        return real_open(path, flags & ~(os.O_EXCL | os.O_NOFOLLOW), mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    before = _state(canary)
    monkeypatch.setattr(apply_module.os, "open", careless)
    unpack(root, tar(*ATTACKS["link, then replaced"](canary)))
    assert _state(canary) != before


def careless_open(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    return _open(path, flags & ~(os.O_EXCL | os.O_NOFOLLOW), mode, dir_fd=dir_fd)  # type: ignore[arg-type]


_open, _stat, _link = os.open, os.stat, os.link


@pytest.mark.parametrize("name", ["chmod by a link", "directory onto a link"])
def test_twin_that_takes_a_link_for_the_directory_it_names(
    root: Path, canary: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2021-32760."""
    monkeypatch.setattr(paths, "open_at", plain)
    monkeypatch.setattr(apply_module.os, "open", careless_open)
    monkeypatch.setattr(apply_module.os, "stat", lambda path, *, dir_fd=None, **_: _stat(path, dir_fd=dir_fd))
    succeeds(name, root, canary)


def test_twin_that_links_to_what_lies_outside(root: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "open_at", plain)
    monkeypatch.setattr(apply_module.os, "open", careless_open)
    monkeypatch.setattr(apply_module, "clean", lambda name: tuple(part for part in name.rpartition(b"/")[::2] if part))
    succeeds("hard link to outside", root, canary)


def test_twin_that_links_to_what_a_link_names(root: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module.os, "open", careless_open)
    monkeypatch.setattr(
        apply_module.os, "link", lambda *args, **kwargs: _link(*args, **{**kwargs, "follow_symlinks": True})
    )
    succeeds("hard link to a link", root, canary)


def test_the_root_is_no_link_and_twin(root: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2021-29136."""
    layer = tar(*ATTACKS["root as a link"](canary))
    with pytest.raises(Invalid, match="names the root"):
        unpack(root, layer)
    assert names(root) == set()
    monkeypatch.setattr(apply_module._Unpacker, "_root", lambda self, entry: None)
    unpack(root, layer)
    assert names(root) == {"file"}


def test_links_that_lead_on_and_on_and_twin(root: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar(*ATTACKS["many links"](canary))
    with pytest.raises(Invalid, match="too many links"):
        unpack(root, layer)
    monkeypatch.setattr(paths, "LINKS_MAX", 1000)
    unpack(root, layer)


def test_a_cached_directory_does_not_outlive_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "d" is a directory, then a link elsewhere, then written through: it must mean what it means now."""
    layer = tar(directory("e"), member("d/1"), link("d", "e"), member("d/2"))
    unpack(root, layer)
    assert names(root) == {"d", "e", "e/2"}
    monkeypatch.setattr(paths.RootedTree, "forget", lambda self, kept=None: None)
    other = root.parent / "twin"
    other.mkdir()
    try:
        unpack(other, layer)
    except OSError:
        pass
    assert names(other) != {"d", "e", "e/2"}


def test_a_file_where_a_directory_is_needed(root: Path) -> None:
    with pytest.raises(Invalid, match="no directory"):
        unpack(root, tar(member("f"), member("f/x")))


@pytest.mark.parametrize("target", ["nowhere", "d", ".", "/"])
def test_hard_links_to_what_can_not_be_linked(root: Path, target: str) -> None:
    with pytest.raises(Invalid, match="hard link"):
        unpack(root, tar(directory("d"), hard("h", target)))


def test_resolution_uses_openat2_in_the_root() -> None:
    assert paths.open_at is linux_path.open_at


def test_too_many_entries(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module, "COST_FREE", 700)
    monkeypatch.setattr(apply_module, "COST_PER_BYTE", 0)
    with pytest.raises(Invalid, match="more than 5 entries"):
        unpack(root, tar(*(member(f"f{n}") for n in range(7))))


def test_a_full_disk_says_at_which_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(apply_module, "_write", full)
    with pytest.raises(OSError, match="no space") as caught:
        unpack(root, tar(directory("d"), member("d/big", data=b"x" * 100)))
    assert caught.value.filename == "/d/big of a layer"
