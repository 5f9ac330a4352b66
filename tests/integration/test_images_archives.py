"""save, load and import against the tools of others: what one writes the others read, and the image stays the same."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from support.engines import Wherry
from support.images_area import image_layout
from support.layers import directory, link, member, tar
from support.registry import debian, push
from support.tools import buildah, docker, need, podman, run, skopeo
from wherry.api import Engine, Error, Invalid, NotFound, RunRequest
from wherry.layers.compression import zstd_module

NAME = "docker.io/library/busybox:latest"


@pytest.fixture
def loaded(engine: Engine, busybox_archive: Path) -> Engine:
    engine.load(f"archive:{busybox_archive}")
    engine.tag(NAME, "registry.example/tools/box:2")
    return engine


def save(engine: Engine, path: Path, *names: str, **options: Any) -> Path:
    with path.open("wb") as sink:
        for piece in engine.save(names, **options):
            sink.write(piece)
    return path


# -- what save writes is read by ... ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_skopeo(loaded: Engine, tmp_path: Path, form: Any) -> None:
    file = save(loaded, tmp_path / "x.tar", "busybox", "registry.example/tools/box:2", format=form)
    for name in (NAME, "registry.example/tools/box:2"):
        config = skopeo("inspect", "--config", "--raw", f"{form}:{file}:{name}", scratch=tmp_path)
        assert json.loads(config)["config"]["Cmd"] == ["sh"]
        skopeo("copy", "-q", f"{form}:{file}:{name}", f"dir:{tmp_path / 'out'}", scratch=tmp_path)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman(loaded: Engine, tmp_path: Path, form: Any) -> None:
    file = save(loaded, tmp_path / "x.tar", "busybox", format=form)
    podman(tmp_path / "podman", "load", "-q", "-i", file)
    (found,) = json.loads(podman(tmp_path / "podman", "images", "--format", "json"))
    assert found["Id"] == loaded.image("busybox").id.removeprefix("sha256:")
    # and back: what podman writes is the same image here
    for back in ("docker-archive", "oci-archive"):
        target = tmp_path / f"{back}.tar"
        podman(tmp_path / "podman", "save", "-q", "--format", back, "-o", target, found["Id"])
        before = loaded.image("busybox")
        (image,) = loaded.load(f"archive:{target}")
        assert image.layers == before.layers
        assert image.config["config"] == before.config["config"]


def test_docker(loaded: Engine, tmp_path: Path) -> None:
    file = save(loaded, tmp_path / "x.tar", "busybox", "registry.example/tools/box:2")
    script = f"docker load -q -i {file} >&2; docker images --no-trunc --format '{{{{.ID}}}} {{{{.Repository}}}}:{{{{.Tag}}}}'"
    lines = docker(tmp_path / "docker", f"{script}; docker save -o {tmp_path}/back.tar busybox").splitlines()
    id = loaded.image("busybox").id
    assert sorted(lines) == [f"{id} busybox:latest", f"{id} registry.example/tools/box:2"]
    assert [image.id for image in loaded.load(f"archive:{tmp_path}/back.tar")] == [id]


def test_umoci_and_skopeo_read_the_store_while_the_engine_runs(loaded: Engine, tmp_path: Path) -> None:
    need("umoci", "skopeo")
    store = Path(loaded.info().root) / "store/local"
    names = {NAME, "registry.example/tools/box:2"}
    deadline = time.monotonic() + 30
    while set(run("umoci", "ls", "--layout", store).split()) != names:  # it follows the database within moments
        assert time.monotonic() < deadline
    run("umoci", "unpack", "--image", f"{store}:{NAME}", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").is_file()
    skopeo("copy", "-q", f"oci:{store}:{NAME}", f"dir:{tmp_path / 'out'}", scratch=tmp_path)
    run("umoci", "stat", "--image", f"{store}:registry.example/tools/box:2")
    assert loaded.remove_image(NAME)


# -- our own way back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_what_is_saved_is_loaded(loaded: Engine, tmp_path: Path, form: Any) -> None:
    before = loaded.image("busybox")
    whole = b"".join(loaded.save(["busybox", "registry.example/tools/box:2"], format=form))
    assert whole == b"".join(loaded.save(["busybox", "registry.example/tools/box:2"], format=form)), "the same bytes"
    loaded.remove_image(before.id, force=True)
    assert loaded.images() == ()
    packed = tmp_path / "x.tar.zst"
    packed.write_bytes(zstd_module().compress(whole))
    (after,) = loaded.load(f"archive:{packed}")
    assert (after.id, after.target.digest, set(after.names)) == (before.id, before.target.digest, set(before.names))


def test_a_repository_means_all_its_tags(loaded: Engine) -> None:
    loaded.tag(NAME, "busybox:two")
    loaded.tag(NAME, "busyboxes:1")
    whole = b"".join(loaded.save(["busybox"]))
    index = json.loads(_member(whole, "manifest.json"))
    assert [item["RepoTags"] for item in index] == [[NAME, "docker.io/library/busybox:two"]]
    by_id = json.loads(_member(b"".join(loaded.save([loaded.image(NAME).id[7:19]])), "manifest.json"))
    assert [item["RepoTags"] for item in by_id] == [None]


def _member(whole: bytes, name: str) -> bytes:
    import io

    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        found = archive.extractfile(name)
        assert found is not None
        return found.read()


def test_an_image_that_has_only_its_sources_name(engine: Engine, busybox_image: Path) -> None:
    source = f"layout:{busybox_image}/oci:busybox"
    engine.load(source)
    items = json.loads(_member(b"".join(engine.save([source])), "manifest.json"))
    assert len(items) == 1
    assert items[0]["Config"] == f"blobs/{engine.image(source).id.replace(':', '/')}"


def test_errors_come_before_the_first_piece(loaded: Engine) -> None:
    for names, error in ((["busybox", "nothing"], NotFound), ([], Invalid)):
        with pytest.raises(error):
            next(loaded.save(names))
    with pytest.raises(Invalid):
        next(loaded.save(["busybox"], format="zip"))  # type: ignore[arg-type]


def test_an_image_that_is_being_saved_is_kept(loaded: Engine) -> None:
    pieces = loaded.save(["busybox"])
    whole = [next(pieces)]
    loaded.remove_image(loaded.image("busybox").id, force=True)
    loaded.gc()
    whole += pieces
    assert b"".join(whole).endswith(bytes(1024))
    assert json.loads(_member(b"".join(whole), "index.json"))["manifests"]
    assert loaded.gc().blobs != ()
    assert loaded.gc().blobs == ()


# -- import ----------------------------------------------------------------------------------------------------------------

TREE = tar(directory("etc"), member("etc/hello", data=b"hello"), link("link", "etc/hello"))


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd", "xz"])
def test_import(engine: Engine, tmp_path: Path, packing: str) -> None:
    import gzip

    packed = {
        "plain": TREE, "gzip": gzip.compress(TREE), "zstd": zstd_module().compress(TREE), "xz": lzma.compress(TREE),
    }[packing]  # fmt: skip
    (tmp_path / "r.tar").write_bytes(packed)
    changes = ("CMD /bin/true", "ENV A=b", "LABEL l=m")
    image = engine.import_image(f"archive:rootfs:{tmp_path}/r.tar", name="tree:1", changes=changes, message="why")
    assert image.names == ("docker.io/library/tree:1",)
    assert image.layers == (f"sha256:{hashlib.sha256(TREE).hexdigest()}",)
    assert image.config["config"] == {"Cmd": ["/bin/sh", "-c", "/bin/true"], "Env": ["A=b"], "Labels": {"l": "m"}}
    assert image.config["history"][0]["comment"] == "why"
    (layer,) = engine.layers("tree:1")
    assert layer.unpacked == -1
    assert layer.media_type.endswith({"plain": ".tar", "xz": ".tar"}.get(packing, f"+{packing}"))
    found = {file.path: (file.kind, file.size, file.target) for file in engine.layer_files("tree:1", layer.digest)}
    assert found == {
        "etc": ("directory", 0, ""), "etc/hello": ("file", 5, ""), "link": ("symlink", 0, "etc/hello"),
    }  # fmt: skip


def test_import_without_a_name_and_for_another_platform(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "r.tar").write_bytes(TREE)
    image = engine.import_image(f"archive:rootfs:{tmp_path}/r.tar", platform="linux/arm64/v8")
    assert (image.names, image.platform) == ((), "linux/arm64/v8")
    assert engine.image(image.id[7:19]).id == image.id
    assert engine.remove_image(image.id)
    assert engine.gc().blobs == ()


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, bytes(10240), TREE[:700], b"\x1f\x8b damaged"])
def test_import_of_what_is_no_tree(engine: Engine, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.tar").write_bytes(data)
    with pytest.raises(Invalid):
        engine.import_image(f"archive:rootfs:{tmp_path}/r.tar", name="tree:1")
    with pytest.raises(Error):
        engine.import_image(f"archive:rootfs:{tmp_path}/r.tar", name="tree:1", changes=("RUN x",))
    assert engine.images() == ()


def test_a_tree_runs_without_a_name(wherry: Wherry, tmp_path: Path, busybox_image: Path) -> None:
    need("umoci")
    run("umoci", "unpack", "--image", f"{busybox_image}/oci:busybox", tmp_path / "bundle")
    run("tar", "-C", tmp_path / "bundle/rootfs", "-cf", tmp_path / "r.tar", ".")
    said = wherry("run", "--rm", "archive:rootfs:r.tar", "cat", "/etc/os-release", cwd=tmp_path).stdout
    assert "Busybox" in said
    id = wherry("import", "-c", 'CMD ["echo", "made"]', "r.tar", "made:1", cwd=tmp_path).stdout.strip()
    assert wherry("run", "--rm", "made:1").stdout == "made\n"
    assert wherry("image", "inspect", "-f", "{{.Id}}", "made:1").stdout.strip() == id


# -- images that others make -----------------------------------------------------------------------------------------------


def test_an_image_by_buildah(wherry: Wherry, tmp_path: Path, busybox_archive: Path) -> None:
    """Made of ours by buildah, changed, and taken back by each of the ways it writes."""
    need("buildah", "docker-registry")
    base = tmp_path / "base.tar"
    wherry("load", "-i", busybox_archive)
    wherry("save", "-o", base, "busybox")
    made = tmp_path / "buildah"
    box = buildah(made, "from", "--pull=never", f"docker-archive:{base}").strip().splitlines()[-1]
    (tmp_path / "new").write_text("by buildah\n")
    buildah(made, "copy", box, tmp_path / "new", "/etc/new")
    buildah(made, "config", "--cmd", "cat /etc/new", "--label", "a=b", box)
    buildah(made, "commit", "-q", box, "built:1")
    for form in ("oci-archive", "docker-archive"):
        target = tmp_path / f"{form}.tar"
        buildah(made, "push", "-q", "localhost/built:1", f"{form}:{target}:localhost/built:{form}")
        wherry("load", "-i", target)
        assert wherry("run", "--rm", f"localhost/built:{form}").stdout == "by buildah\n"
    assert wherry("image", "inspect", "-f", "{{.Config.Labels.a}}", "localhost/built:oci-archive").stdout == "b\n"
    tree = wherry("image", "tree", "localhost/built:oci-archive").stdout
    assert "etc/new" in tree
    with debian(tmp_path / "registry") as registry:
        buildah(made, "push", "-q", "--tls-verify=false", "localhost/built:1", f"docker://{registry.host}/built:1")
        wherry("pull", "-q", f"{registry.host}/built:1")
        assert wherry("run", "--rm", f"{registry.host}/built:1").stdout == "by buildah\n"


CONTROL = """Package: box
Version: 1
Architecture: {architecture}
Maintainer: nobody <nobody@example.org>
Essential: yes
Description: what a Debian needs at least
"""


def _repository(directory: Path) -> str:
    """A line of sources.list for a repository of one package, which has busybox."""
    package, repository = directory / "package", directory / "repository"
    for path in (package / "DEBIAN", package / "bin", package / "etc", repository):
        path.mkdir(parents=True)
    control = CONTROL.format(architecture=run("dpkg", "--print-architecture").strip())
    (package / "DEBIAN/control").write_text(control)
    shutil.copy("/bin/busybox", package / "bin/busybox")
    (package / "bin/cat").symlink_to("busybox")
    (package / "etc/made").write_text("by mmdebstrap\n")
    run("dpkg-deb", "--root-owner-group", "-b", package, repository / "box.deb")
    data = (repository / "box.deb").read_bytes()
    found = f"Filename: ./box.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    (repository / "Packages").write_text(control + found)
    return f"deb [trusted=yes] copy:{repository} ./"


def test_an_image_by_mmdebstrap_through_a_registry(wherry: Wherry, tmp_path: Path, busybox_archive: Path) -> None:
    """Imported, saved, pushed by skopeo to Debian's registry, and pulled: the same image at each station."""
    need("mmdebstrap", "dpkg-deb", "apt-get", "docker-registry")
    source = _repository(tmp_path)
    tree = tmp_path / "tree.tar"
    run("mmdebstrap", "-q", "--variant=extract", "--include=box", "--mode=root", "", tree, source)
    wherry("import", "-c", 'CMD ["/bin/cat", "/etc/made"]', tree, "debian:made", timeout=120)
    assert wherry("run", "--rm", "debian:made").stdout == "by mmdebstrap\n"
    wherry("save", "--format", "oci-archive", "-o", tmp_path / "saved.tar", "debian:made")
    id = wherry("images", "--no-trunc", "-q").stdout
    with debian(tmp_path / "registry") as registry:
        push(f"oci-archive:{tmp_path}/saved.tar:docker.io/library/debian:made", registry.host, "debian:1")
        wherry("pull", f"{registry.host}/debian:1")
        assert wherry("images", "--no-trunc", "-q").stdout == id, "one image, in two packings: skopeo compresses"
        assert "2 ids" not in wherry("image", "inspect", id[7:19]).stderr
        gone = wherry("rmi", "-f", id.strip()).stdout
        assert gone.count("Untagged: ") == 2
        assert wherry("images", "-q").stdout == ""
        assert "Deleted" not in wherry("gc").stdout
        assert wherry("run", "--rm", f"{registry.host}/debian:1").stdout == "by mmdebstrap\n"


def test_a_layer_is_here_once(engine: Engine, tmp_path: Path) -> None:
    """Two images on one base: stored and unpacked once, and marked in the tree of each."""
    base = tar(directory("base"), member("base/file", data=b"b" * 4000))
    for name, layers in (("one", [base]), ("two", [base, tar(member("top", data=b"t" * 100))])):
        image_layout(tmp_path / name, layers)
        engine.load(f"layout:{tmp_path / name}")
        engine.tag(f"layout:{tmp_path / name}", f"{name}:1")
        engine.remove(engine.create(RunRequest(image=f"{name}:1", command=("x",))).id)
    one, two = engine.layers("one:1"), engine.layers("two:1")
    assert one[0].digest == two[0].digest
    assert one[0].shared == ("two:1",)
    assert two[0].shared == ("one:1",)
    assert two[1].shared == ()
    store = Path(engine.info().root) / "store/local/blobs/sha256"
    assert len(list(store.iterdir())) == 2 + 2 * 2, "two layers, and two documents for each image"
    usage = {image.names[0]: image for image in engine.disk_usage().images}
    shared = one[0].size + one[0].unpacked
    assert [image.shared for image in usage.values()] == [shared, shared]
    assert sum(image.size for image in usage.values()) - shared == engine.disk_usage().layers


def test_df_counts_layers_once_and_volumes(wherry: Wherry, busybox_archive: Path) -> None:
    wherry("load", "-i", busybox_archive)
    wherry("tag", "busybox", "other:1")
    wherry(
        "run",
        "--name",
        "one",
        "-v",
        "data:/data",
        "busybox",
        "sh",
        "-c",
        "head -c 5000 /dev/zero > /data/x; echo y > /y",
    )
    usage = json.loads(wherry("system", "df", "--json").stdout)
    (image,) = usage["images"]
    assert image["containers"] == 1
    assert image["size"] == usage["layers"] > 2_000_000
    assert usage["reclaimable"] == 0
    assert usage["containers"][0]["size"] > 0
    (volume,) = usage["volumes"]
    assert (volume["name"], volume["containers"]) == ("data", 1)
    assert volume["size"] >= 5000
    assert wherry("system", "df").stdout.count("\n") == 4
    wherry("rm", "one")
    assert json.loads(wherry("system", "df", "--json").stdout)["reclaimable"] == usage["layers"]
    assert "Total reclaimed space" in wherry("image", "prune", "-af").stdout
    assert json.loads(wherry("system", "df", "--json").stdout)["layers"] == 0
