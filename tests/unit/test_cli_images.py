"""The image commands of the command line, over an engine that is faked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.cli import FakeEngine, absent, call, container, image
from wherry.api import (
    ContainerUse,
    Descriptor,
    Digest,
    DiskUsage,
    GcReport,
    ImageUse,
    InUse,
    LayerFile,
    LayerUse,
    NetworkConfig,
    NetworkInfo,
    Progress,
    VolumeUse,
    watching,
)
from wherry_plugins.frontend.cli.commands.images import _like

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def layer(digest: str = A, **changes: Any) -> LayerUse:
    fields: dict[str, Any] = {
        "digest": digest, "diff_id": digest, "chain_id": digest, "media_type": "x", "size": 1_000_000, **changes,
    }  # fmt: skip
    return LayerUse(**fields)


# -- save and import -------------------------------------------------------------------------------------------------------


def pieces(*data: bytes, error: Exception | None = None) -> Any:
    def save(names: Any, *, format: str, platform: str) -> Iterator[bytes]:
        yield from data
        if error is not None:
            raise error

    return save


def test_save_goes_to_a_pipe_or_a_file(tmp_path: Path) -> None:
    engine = FakeEngine(save=pieces(b"one", b"two"))
    assert call(engine, "save", "a", "b")[:2] == (0, "onetwo")
    (names,) = engine.called("save")[0]
    assert names == ("a", "b")
    assert call(engine, "save", "-o", "x.tar", "a", cwd=str(tmp_path))[:2] == (0, "")
    assert (tmp_path / "x.tar").read_bytes() == b"onetwo"
    assert (tmp_path / "x.tar").stat().st_mode & 0o777 == 0o600
    assert call(engine, "save", "-o", "/dev/null", "a")[0] == 0


def test_save_leaves_no_half_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"before")
    for save in (pieces(error=absent("a")), pieces(b"one", error=absent("a"))):
        code, _out, err = call(FakeEngine(save=save), "save", "-o", "x.tar", "a", cwd=str(tmp_path))
        assert code != 0
        assert "there is none" in err
        assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
        assert (tmp_path / "x.tar").read_bytes() == b"before"


def test_save_to_a_terminal_is_refused() -> None:
    code, out, err = call(FakeEngine(), "save", "a", tty=(False, True, False))
    assert (code, out) == (1, "")
    assert "terminal" in err
    assert call(FakeEngine(), "save", "--format", "zip", "a")[0] == 125


def test_import_from_a_file_and_from_a_pipe(tmp_path: Path) -> None:
    class Info:
        root = str(tmp_path)

    seen: list[tuple[bytes, dict[str, Any]]] = []

    def take(reference: str, **options: Any) -> Any:
        seen.append((Path(reference.removeprefix("archive:rootfs:")).read_bytes(), options))
        return image()

    (tmp_path / "r.tar").write_bytes(b"tree")
    engine = FakeEngine(info=Info, import_image=take)
    assert call(engine, "import", "-c", "CMD a", "r.tar", "n:1", cwd=str(tmp_path))[:2] == (0, A + "\n")
    assert call(engine, "import", "-m", "why", "--platform", "linux/arm64", "-", stdin=b"piped")[0] == 0
    assert seen == [
        (b"tree", {"name": "n:1", "changes": ("CMD a",), "message": "Imported from r.tar", "platform": ""}),
        (b"piped", {"name": "", "changes": (), "message": "why", "platform": "linux/arm64"}),
    ]


@pytest.mark.parametrize("command", [("load",), ("import", "-")])
def test_a_pipe_onto_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    class Info:
        root = str(tmp_path)

    monkeypatch.setattr(Path, "open", lambda _path, mode: open("/dev/full", mode))
    code, _out, err = call(FakeEngine(info=Info), *command, stdin=b"piped")
    assert code == 1
    assert err.startswith(f'wherry: file "{tmp_path}/tmp/load-')
    assert err.endswith('/archive": no space left on device\n')


def test_a_tree_has_a_relative_path() -> None:
    engine = FakeEngine(pull=lambda reference, **_: (step for step in ()))
    assert call(engine, "pull", "-q", "archive:rootfs:r.tar", cwd="/here")[1] == "archive:rootfs:/here/r.tar\n"


# -- history and tree ------------------------------------------------------------------------------------------------------


def test_history() -> None:
    config = {
        "history": [
            {"created": "2024-05-01T10:00:00Z", "created_by": "ADD  rootfs \x1b[31m"},
            {"created": "2024-05-01T10:00:00Z", "created_by": "CMD " + "x" * 60, "empty_layer": True, "comment": "c"},
        ]
    }
    engine = FakeEngine(image=image(config=config), layers=(layer(unpacked=5000), layer(B)))
    out = call(engine, "history", "busybox")[1].splitlines()
    assert out[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert out[1].startswith("a" * 12)
    assert out[1].rstrip().endswith("1MB"), "a layer that no history tells of"
    assert "…" in out[2]
    assert out[2].rstrip().endswith("c")
    assert out[3].startswith("<missing>")
    assert "5kB" in out[3]
    assert "\x1b" not in out[3]
    assert call(engine, "history", "-q", "busybox")[1].splitlines() == ["a" * 12, "<missing>", "<missing>"]
    whole = call(engine, "history", "--no-trunc", "-H", "false", "--format", "{{.ID}} {{.CreatedBy}} {{.Size}}", "x")
    assert whole[1].splitlines()[1] == "<missing> CMD " + "x" * 60 + " 0"
    assert json.loads(call(engine, "history", "--json", "x")[1])[2]["Size"] == "5kB"


def test_tree() -> None:
    files = [
        LayerFile("etc", "directory"),
        *(LayerFile(f"etc/f{number}", "file", number * 1000) for number in range(1, 8)),
        LayerFile("bin/sh", "symlink", 0, "busybox"),
        LayerFile("old\n", "whiteout"),
    ]
    engine = FakeEngine(
        image=image(),
        layers=(layer(shared=("other:1",), unpacked=2_000_000, created_by="ADD x"), layer(B)),
        layer_files=lambda name, digest, platform: (file for file in files),
    )
    out = call(engine, "image", "tree", "busybox")[1].splitlines()
    assert out[0] == "busybox:latest"
    assert out[1] == f"├─ {'a' * 12}  1MB, 2MB unpacked  [shared with other:1]"
    assert out[2].endswith("ADD x")
    assert out[3].endswith("7kB  etc/f7")
    assert out[8].endswith("and 5 more entries")
    assert out[-1] == "2 layers, 2MB, of which 1MB are shared with other images"
    every = call(engine, "image", "tree", "--files", "--layer", "2", "busybox")[1]
    assert "bin/sh -> busybox" in every
    assert "old\\n (removed)" in every
    assert "etc/\n" in every
    assert "a" * 12 not in every
    assert call(engine, "image", "tree", "--layer", "3", "busybox")[0] == 1
    (found,) = json.loads(call(engine, "image", "tree", "--json", "--files", "--layer", "aaaa", "busybox")[1])
    assert found["files"][0] == {"path": "etc", "kind": "directory", "size": 0, "target": ""}


# -- df and prune ----------------------------------------------------------------------------------------------------------

USAGE = DiskUsage(
    (ImageUse(A, ("docker.io/library/x:1",), 10**18, 3000, 1000, 1), ImageUse(B, (), 10**18, 2000, 1000, 0)),
    (
        ContainerUse("c0ffee" * 10, "one", "x:1", ("sh", "-c", "sleep 100000000"), 10**18, "running", 500),
        ContainerUse("beef" * 15, "two", "x:1", (), 10**18, "stopped", 300),
    ),
    4000,
    1000,
    (VolumeUse("data", "local", 700, 1), VolumeUse("old", "local", 300, 0), VolumeUse("far", "nfs", -1, 0)),
)


def test_df() -> None:
    engine = FakeEngine(disk_usage=USAGE)
    out = [line.split() for line in call(engine, "system", "df")[1].splitlines()]
    assert out == [
        ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"],
        ["Images", "2", "1", "4kB", "1kB", "(25%)"],
        ["Containers", "2", "1", "800B", "300B", "(37%)"],
        ["Local", "Volumes", "3", "1", "1kB", "300B", "(30%)"],
    ]
    assert (
        call(engine, "system", "df", "--format", "{{.Type}} {{.TotalCount}}")[1]
        == "Images 2\nContainers 2\nLocal Volumes 3\n"
    )
    text = call(engine, "system", "df", "-v")[1]
    assert "x            1         aaaaaaaaaaaa" in text
    assert '"sh -c sleep 10000000"' in text
    assert "data          1         700B" in text
    assert text.rstrip().endswith("N/A")
    assert json.loads(call(engine, "system", "df", "--json")[1])["layers"] == 4000


def prunable(**answers: Any) -> FakeEngine:
    images = (
        image(labels={"keep": "yes"}),
        image(id=B, names=(), created=1),
        image(id="sha256:" + "c" * 64, names=("docker.io/library/used:1",)),
    )
    return FakeEngine(
        images=images,
        containers=(container(image_digest="sha256:" + "c" * 64),),
        remove_image=lambda name, force: (f"Untagged: {name[7:9]}", f"Deleted: {name[7:9]}"),
        gc=GcReport(("sha256:dd",), (), 24),
        disk_usage=USAGE,
        **answers,
    )


@pytest.mark.parametrize(
    ("argv", "went"),
    [
        (["-f"], ["bb"]),
        (["-af"], ["aa", "bb"]),
        (["-f", "--filter", "dangling=false"], ["aa", "bb"]),
        (["-af", "--filter", "label!=keep"], ["bb"]),
        (["-af", "--filter", "label=keep=yes"], ["aa"]),
        (["-af", "--filter", "until=2001-01-01"], ["bb"]),
    ],
)
def test_prune(argv: list[str], went: list[str]) -> None:
    engine = prunable()
    code, out, _err = call(engine, "image", "prune", *argv)
    assert code == 0
    assert [args[0][7:9] for args in engine.called("remove_image")] == went
    lines = [text for name in went for text in (f"untagged: {name}", f"deleted: {name}")]
    assert out == "\n".join(["Deleted Images:", *lines, "deleted: sha256:dd", "", "Total reclaimed space: 24B", ""])


def test_prune_asks() -> None:
    engine = prunable()
    assert call(engine, "image", "prune", stdin=b"y\n")[0] == 1
    assert engine.called("remove_image") == []
    terminal = {"tty": (True, True, True)}
    assert "[y/N]" in call(engine, "image", "prune", stdin=b"n\n", **terminal)[1]
    assert engine.called("remove_image") == []
    assert "Total reclaimed space" in call(engine, "image", "prune", stdin=b"y\n", **terminal)[1]
    assert len(engine.called("remove_image")) == 1
    assert 'filter "unti"' in call(engine, "image", "prune", "-f", "--filter", "unti=1h")[2]
    assert "until" in call(engine, "image", "prune", "-f", "--filter", "until=soon")[2]


def idle(**answers: Any) -> FakeEngine:
    """What system prune finds: a container that runs and two that don't, a network in use and one that is not."""
    containers = (
        container(image_digest="sha256:" + "c" * 64),
        container(id="1" * 64, status="stopped", labels={"keep": ""}, image_digest="sha256:" + "c" * 64),
        container(id="2" * 64, status="created", created=1, image_digest="sha256:" + "c" * 64),
    )
    networks = [
        NetworkInfo(name, "bridge", NetworkConfig(name), builtin=name == "bridge") for name in ("bridge", "busy", "lab")
    ]
    absent_or_used = {"busy": InUse('network "busy"', "is used")}

    def remove_network(name: str) -> None:
        if name in absent_or_used:
            raise absent_or_used[name]

    engine = prunable(networks=networks, remove_network=remove_network, prune_volumes=("old",), **answers)
    engine.answers["containers"] = containers
    return engine


@pytest.mark.parametrize(
    ("argv", "went"),
    [(["-f"], "12"), (["-f", "--filter", "label!=keep"], "2"), (["-f", "--filter", "until=2001-01-01"], "2")],
)
def test_container_prune(argv: list[str], went: str) -> None:
    engine = idle()
    code, out, _err = call(engine, "container", "prune", *argv)
    assert code == 0
    assert engine.called("remove") == [(digit * 64,) for digit in went]
    assert out == "\n".join(
        ["Deleted Containers:", *(digit * 64 for digit in went), "", "Total reclaimed space: 0B", ""]
    )


def test_system_prune() -> None:
    engine = idle()
    code, out, _err = call(engine, "system", "prune", "-af", "--volumes")
    assert code == 0
    assert engine.called("remove") == [("1" * 64,), ("2" * 64,)]
    assert "Deleted Networks:\nlab\n\n" in out
    assert "Deleted Volumes:\nold\n\n" in out
    assert [args[0][7:9] for args in engine.called("remove_image")] == ["aa", "bb"]
    assert out.endswith("deleted: sha256:dd\n\nTotal reclaimed space: 24B\n")

    engine = idle()
    call(engine, "system", "prune", "-f", "--filter", "label=keep")
    assert engine.called("remove") == [("1" * 64,)]
    assert [name for name, _args, _more in engine.calls if name in {"remove_network", "prune_volumes"}] == []
    assert [args[0][7:9] for args in engine.called("remove_image")] == []


def test_prunes_ask() -> None:
    for command in (("network", "prune"), ("volume", "prune"), ("system", "reset")):
        engine = idle()
        assert "confirm it with --force" in call(engine, *command, stdin=b"y\n")[2]
        code, out, _err = call(engine, *command, stdin=b"n\n", tty=(True, True, True))
        assert (code, out.endswith("[y/N] Nothing was removed.\n")) == (0, True)
        assert not {name for name, _args, _more in engine.calls} & {"remove_network", "prune_volumes", "reset"}
    for command in (("container", "prune"), ("system", "prune")):
        engine = idle()
        assert "confirm it with --force" in call(engine, *command, stdin=b"y\n")[2]
        terminal = {"tty": (True, True, True)}
        assert "[y/N]" in call(engine, *command, stdin=b"n\n", **terminal)[1]
        assert engine.called("remove") == []
        assert "Total reclaimed space" in call(engine, *command, stdin=b"y\n", **terminal)[1]
        assert 'filter "unti"' in call(engine, *command, "-f", "--filter", "unti=1h")[2]
        assert "until" in call(engine, *command, "-f", "--filter", "until=soon")[2]
        assert len(engine.called("remove")) == 2


# -- images ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("busy*", "busybox", True),
        ("*", "a/b", False),
        ("*/*", "a/b", True),
        ("a/b:?", "a/b:1", True),
        ("a[bc]", "ac", True),
        ("a.b", "axb", False),
        ("r.example:5000/*:1", "r.example:5000/x:1", True),
    ],
)
def test_references_by_pattern(pattern: str, name: str, fits: bool) -> None:
    assert bool(_like(pattern).fullmatch(name)) is fits


def test_filters_of_images() -> None:
    images = (image(created=5 * 10**18), image(id=B, names=("docker.io/library/old:1",), created=10**18))
    engine = FakeEngine(images=images, image=lambda name: images[0])
    assert call(engine, "images", "-q", "--filter", "until=2020-01-01T00:00:00Z")[1] == "b" * 12 + "\n"
    assert call(engine, "images", "-q", "--filter", "before=busybox")[1] == "b" * 12 + "\n"
    assert call(engine, "images", "-q", "--filter", "reference=o*")[1] == "b" * 12 + "\n"
    labelled = FakeEngine(images=(image(labels={"a": "1", "b": ""}), image(id=B, labels={"a": "2"})))
    assert call(labelled, "images", "-q", "--filter", "label=a")[1] == "a" * 12 + "\n" + "b" * 12 + "\n"
    assert call(labelled, "images", "-q", "--filter", "label=a=2")[1] == "b" * 12 + "\n"
    assert call(labelled, "images", "-q", "--filter", "label=a", "--filter", "label=b")[1] == "a" * 12 + "\n", "both"
    assert call(engine, "images", "-q", "o?d")[1] == "b" * 12 + "\n", "a pattern, as docker takes it"
    assert call(engine, "images", "-q", "*:lat*")[1] == "a" * 12 + "\n"
    assert call(engine, "images", "-q", "old:2")[1] == ""
    assert call(engine, "images", "-q", "--filter", "dangling=0", "--filter", "since=busybox")[1] == ""
    assert call(engine, "images", "--format", "{{.Containers}} {{.UniqueSize}}")[1] == "N/A N/A\n" * 2
    for command in (("images",), ("image", "prune", "-f")):
        code, _out, err = call(engine, *command, "--filter", "dangling=maybe")
        assert (code, err) == (1, 'wherry: filter "dangling": "maybe" is neither true nor false\n')
    out = call(engine, "images", "--digests")[1].splitlines()
    assert out[0].split()[:3] == ["REPOSITORY", "TAG", "DIGEST"]
    assert "sha256:" + "b" * 64 in out[1]
    assert call(engine, "images", "--filter", "until=soon")[0] == 1
    code, _out, err = call(engine, "images", "a[z-a]")
    assert (code, err) == (1, 'wherry: pattern "a[z-a]": is none of a shell\'s\n')


def test_run_and_create_show_what_they_fetch() -> None:
    """On stderr, and only what comes from elsewhere. Steps come from several threads."""

    def fetching(*_args: Any) -> Any:
        tell = watching.get()
        with ThreadPoolExecutor(2) as pool:
            for digest in (A, B):
                pool.submit(tell, Progress(digest, "fetching", 0, 10))
                pool.submit(tell, Progress(digest, "done", 10, 10))
        tell(Progress("docker.io/library/busybox:latest", "done"))
        return container(id="1" * 64)

    engine = FakeEngine(run=fetching, create=fetching)
    for command in (("run", "-d"), ("create",)):
        code, out, err = call(engine, *command, "busybox")
        assert (code, out) == (0, "1" * 64 + "\n")
        assert sorted(err.splitlines()) == ["a" * 12 + ": Done", "b" * 12 + ": Done"]
        for options in (("-q", "busybox"), ("host:/bin/sh",), ("archive:/x.tar",)):
            assert call(engine, *command, *options) == (0, "1" * 64 + "\n", "")
    _code, out, err = call(engine, "run", "-d", "busybox", tty=(False, False, True))
    assert "Fetching" in err
    assert "\x1b[" not in out
    assert "\x1b[?25h" in err, "bars on a terminal, and the cursor is back"


@pytest.mark.parametrize("twin", [False, True])
def test_bars_end_before_the_container_writes(twin: bool) -> None:
    """Else the last look at them would be drawn over its first lines. The twin is not told that all is here."""

    def fetching(_request: Any, streams: Any) -> Any:
        tell = watching.get()
        tell(Progress(A, "fetching", 0, 10))
        tell(Progress(A, "done", 10, 10))
        if not twin:
            tell(Progress("docker.io/library/busybox:latest", "done"))
        os.write(streams.stderr, b"by the container\n")
        return container(id="1" * 64)

    _code, _out, err = call(FakeEngine(run=fetching), "run", "busybox", tty=(False, False, True))
    assert "Fetching" in err
    assert ("\x1b" in err.partition("by the container\n")[2]) is twin


def test_an_image_under_dockers_names() -> None:
    config = {
        "author": "me",
        "variant": "v8",
        "history": [{"comment": "first"}, {"comment": "last"}],
        "config": {"Cmd": ["x"]},
    }
    form = "{{.Author}} {{.Comment}} {{.Variant}} {{.Parent}}{{.Config.Cmd}} {{.RepoTags}}"
    assert call(FakeEngine(image=image(config=config)), "image", "inspect", "-f", form, "busybox")[1] == (
        "me last v8 [x] [busybox:latest]\n"
    )
    for history in ((), "text", ["text"], [{"comment": None}]):
        found = image(config={"history": history})
        assert call(FakeEngine(image=found), "image", "inspect", "-f", "{{.Comment}}", "busybox")[1] == "\n"


def test_one_image_that_two_manifests_name() -> None:
    names = ("docker.io/library/busybox:1", "docker.io/library/busybox:2", "127.0.0.1:5000/my/busybox@" + A)
    images = (image(names=names), image(names=("docker.io/library/other:1",), target=Descriptor("x", Digest(A), 1)))
    engine = FakeEngine(images=images, image=lambda name: images[0])
    assert [found["names"] for found in json.loads(call(engine, "images", "--json")[1])] == [
        list(names),
        ["docker.io/library/other:1"],
    ]
    (document,) = json.loads(call(engine, "image", "inspect", "busybox")[1])
    digest = images[0].target.digest
    assert document["RepoDigests"] == [f"busybox@{digest}", f"127.0.0.1:5000/my/busybox@{digest}"]
