"""A layer unpacked apart from its parents, laid over them by overlayfs, is the same as one unpacked over them."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from support.generated import Generator
from support.images_area import mounted
from support.layers import directory, hard, link, member, tar, tree, unpack
from wherry.api import FailedPrecondition, Invalid, Mount
from wherry.layers import apply as module
from wherry.layers.overlaid import drop_idle_removals

ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))
MARKS = b"trusted.overlay."
BASE = [
    directory("./", mode=0o711, mtime=5), directory("d", mode=0o750), member("d/1", data=b"1"), member("d/2"), directory("d/sub"),
    member("d/sub/3"), link("l", "d"), member("f", data=b"f"), directory("e"), member("e/x"), hard("g", "f"),
]  # fmt: skip
Member = tuple[tarfile.TarInfo, bytes]


def overlay(lowers: list[Path], upper: Path | None = None) -> tuple[Mount, ...]:
    options = [f"lowerdir={':'.join(map(str, lowers))}"]
    if upper is not None:
        work = upper.parent / f"{upper.name}-work"
        work.mkdir(exist_ok=True)
        options += [f"upperdir={upper}", f"workdir={work}"]
    return (Mount("overlay", "overlay", "", tuple(options)),)


def made(path: Path) -> Path:
    path.mkdir()
    return path


def over(below: list[Path], layer: bytes, upper: Path, at: Path) -> None:
    """As it is done where a layer needs its parents."""
    root = os.stat(below[0])
    os.chmod(upper, root.st_mode & 0o7777)
    os.utime(upper, ns=(root.st_mtime_ns, root.st_mtime_ns))
    with mounted(overlay(below, upper), at) as ours:
        unpack(ours, layer)


def seen(lowers: list[Path], at: Path, *, root: bool) -> dict[str, object]:
    with mounted(overlay([*lowers, made(at.parent / f"{at.name}-empty")]), at) as ours:
        found = dict(tree(ours, times=True))
    if not root:
        del found["."]
    return found


def compare(tmp_path: Path, layer: bytes, below: list[Path]) -> Path | None:
    """The directory unpacked apart, None where the layer needs what is below."""
    top = made(tmp_path / f"top-{len(list(tmp_path.iterdir()))}")
    apart = made(top / "apart")
    try:
        applied = unpack(apart, layer, marks=MARKS)
    except FailedPrecondition:
        return None
    drop_idle_removals(
        str(apart), list(map(str, below)), [*map(os.fsdecode, applied.removals)], ["trusted.overlay.opaque"]
    )
    upper = made(top / "upper")
    over(below, layer, upper, top / "over")
    assert seen([apart, *below], top / "one", root=applied.root) == seen(
        [upper, *below], top / "two", root=applied.root
    )
    return apart


@pytest.fixture
def base(tmp_path: Path) -> Path:
    root = made(tmp_path / "base")
    unpack(root, tar(*BASE))
    return root


SAME: dict[str, list[Member]] = {
    "nothing": [],
    "new files": [member("n", data=b"n"), directory("d"), member("d/n")],
    "the root": [directory("./", mode=0o700, mtime=77, uid=3)],
    "a whiteout": [member(".wh.f")],
    "a whiteout in a directory": [directory("d"), member("d/.wh.1")],
    "a whiteout of a directory": [member(".wh.d")],
    "a whiteout of nothing": [member(".wh.nothing")],
    "a whiteout, then the name": [member(".wh.f"), member("f", data=b"new")],
    "the name, then a whiteout": [member("f", data=b"new"), member(".wh.f")],
    "a whiteout, then a directory": [member(".wh.d"), directory("d"), member("d/new")],
    "a directory, then its whiteout": [directory("d"), member("d/new"), member(".wh.d")],
    "an opaque directory": [directory("d"), member("d/.wh..wh..opq"), member("d/new")],
    "opaque after siblings": [directory("d"), directory("d/sub"), member("d/sub/new"), member("d/.wh..wh..opq")],
    "a file for a directory": [member("d", data=b"file")],
    "a directory for a file": [directory("f"), member("f/inside")],
    "a directory for a link": [directory("l"), member("l/inside")],
    "a link for a directory": [link("d", "e")],
    "a directory goes and comes": [member("d", data=b"file"), directory("d"), member("d/new")],
    "a link goes and a directory comes": [link("e", "d"), directory("e"), member("e/new")],
    "names twice": [member("f", data=b"1"), member("f", data=b"2"), directory("d", mode=0o700), directory("d", mode=0o701)],
    "hard links inside": [member("n", data=b"n"), hard("m", "n")],
    "its link on the way": [directory("way"), link("to", "way"), member("to/there", data=b"x")],
    "a device": [member("null", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a device replaced": [member("z", tarfile.CHRTYPE, devmajor=1, devminor=5), member(".wh.z")],
    "a whiteout in a directory of its own": [directory("n"), member("n/.wh.x"), directory("n/deep"), member("n/deep/.wh.x")],
    "a whiteout in a directory for a file": [directory("f"), member("f/.wh.x")],
    "a whiteout below an opaque directory": [directory("d"), directory("d/sub"), member("d/sub/.wh.3"), member("d/.wh..wh..opq")],
    "a whiteout below a removed one": [directory("d"), directory("d/sub"), member("d/sub/.wh.3"), member(".wh.d")],
    "marks of AUFS": [member(".wh..wh.plnk"), directory("d"), member("d/.wh..wh.aufs")],
}  # fmt: skip

NEEDY: dict[str, list[Member]] = {
    "a directory that is not listed": [member("d/n")],
    "listed too late": [member("d/n"), directory("d")],
    "a link of the parents": [member("l/n")],
    "a hard link to the parents": [hard("h", "f")],
    "a hard link to what was removed": [member(".wh.f"), hard("h", "f")],
    "a whiteout in what is not listed": [member("d/.wh.1")],
    "a whiteout through a link": [member("l/.wh.1")],
    "an opaque root": [member(".wh..wh..opq")],
    "a way through a link to the parents": [link("to", "e"), member("to/n")],
}


@pytest.mark.parametrize("case", SAME)
def test_the_same(tmp_path: Path, base: Path, case: str) -> None:
    assert compare(tmp_path, tar(*SAME[case]), [base]) is not None


@pytest.mark.parametrize("case", NEEDY)
def test_what_needs_its_parents_says_so(tmp_path: Path, base: Path, case: str) -> None:
    assert compare(tmp_path, tar(*NEEDY[case]), [base]) is None


def test_what_breaks_a_rule_breaks_it_apart_too(tmp_path: Path) -> None:
    for number, layer in enumerate(([member("f"), member("f/x")], [member(".wh.")], [directory("d"), hard("h", "d")])):
        with pytest.raises(Invalid):
            unpack(made(tmp_path / str(number)), tar(*layer), marks=MARKS)


@pytest.mark.parametrize("seed", range(40 if ALL else 6))
def test_layers_by_chance(tmp_path: Path, seed: int) -> None:
    below: list[Path] = []
    tried = 0
    for number, members in enumerate(Generator(seed).layers(6)):
        layer = tar(*members)
        directory = made(tmp_path / str(number))
        if below:
            tried += compare(tmp_path, layer, below) is not None
            over(below, layer, directory, tmp_path / f"at-{number}")
        else:
            unpack(directory, layer)
        below.insert(0, directory)
    assert tried or seed, "some layer is understood without its parents"


@pytest.mark.parametrize(
    "case", ["a directory goes and comes", "a directory, then its whiteout", "an opaque directory"]
)
def test_twin_without_the_mark(tmp_path: Path, base: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.setxattr

    def without(path: int, name: bytes, value: bytes, **more: bool) -> None:
        if name != MARKS + b"opaque":
            real(path, name, value, **more)

    monkeypatch.setattr(module.os, "setxattr", without)
    with pytest.raises(AssertionError):
        compare(tmp_path, tar(*SAME[case]), [base])


@pytest.mark.parametrize(
    "case", [case for case in SAME if case.startswith(("a whiteout below", "a whiteout in a directory of its own"))]
)
def test_twin_that_keeps_idle_marks(tmp_path: Path, base: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lists them, and says that there is nothing of the name."""
    monkeypatch.setitem(globals(), "drop_idle_removals", lambda *_: None)
    with pytest.raises(FileNotFoundError):
        compare(tmp_path, tar(*SAME[case]), [base])


def test_twin_that_does_not_ask(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Unpacker, "_parent", lambda self, parts: self.tree.directory(parts))
    with pytest.raises(AssertionError):
        compare(tmp_path, tar(*NEEDY["a directory that is not listed"]), [base])
