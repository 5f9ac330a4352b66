"""OCI image layouts as directories: made by hand, by umoci and by skopeo; and layouts that would have us read something else."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.engines import Wherry
from support.images_area import world
from support.layers import member, tar
from support.registry import Content, descriptor, image, index_of, layout
from support.tools import need
from wherry.api import Descriptor, Digest, Invalid, NotFound
from wherry.linux import path as lookups
from wherry.spec.distribution import INDEX, LAYER, MANIFEST
from wherry_plugins.transport.layout import transport as module
from wherry_plugins.transport.layout.transport import LayoutTransport


@pytest.fixture
def content() -> Content:
    return image(tar(member("file", data=b"hello")))


@pytest.fixture
def made(tmp_path: Path, content: Content) -> Path:
    return layout(tmp_path / "layout", content)


def blob(made: Path, key: str) -> Path:
    return made / "blobs/sha256" / key.partition(":")[2]


class TestReferences:
    def test_whole_tag_and_digest(self, made: Path, content: Content) -> None:
        source = LayoutTransport()
        for reference in (f"{made}", f"{made}:1", f"{made}@{content.target.digest}"):
            (named,) = source.resolve(reference, "linux/amd64")
            assert named.target.digest == content.target.digest
            assert named.target.size == content.target.size
            assert named.name == ""
            with source.fetch(reference, content.layers[0], 3) as stream:
                assert stream.read() == content.blobs[content.layers[0].digest][3:]

    def test_a_colon_in_the_name_of_the_directory(self, tmp_path: Path, content: Content) -> None:
        odd = layout(tmp_path / "a:b", content)
        source = LayoutTransport()
        assert source.resolve(f"{odd}", "")
        assert source.resolve(f"{odd}:1", "")

    def test_full_names(self, tmp_path: Path, content: Content) -> None:
        named = layout(tmp_path / "x", content)
        index = json.loads((named / "index.json").read_text())
        index["manifests"][0]["annotations"] = {"io.containerd.image.name": "docker.io/library/box:7"}
        (named / "index.json").write_text(json.dumps(index))
        assert LayoutTransport().resolve(f"{named}", "")[0].name == "docker.io/library/box:7"
        assert LayoutTransport().resolve(f"{named}:7", "")[0].target.digest == content.target.digest

    def test_what_is_not_there(self, made: Path, tmp_path: Path, content: Content) -> None:
        source = LayoutTransport()
        with pytest.raises(NotFound, match='has no image "2"; it has: 1'):
            source.resolve(f"{made}:2", "")
        with pytest.raises(NotFound, match="does not exist"):
            source.resolve(f"{tmp_path}/nowhere", "")
        with pytest.raises(Invalid, match="no image layout"):
            source.resolve(f"{tmp_path}", "")
        (tmp_path / "file").write_text("")
        with pytest.raises(Invalid, match="archive:"):
            source.resolve(f"{tmp_path}/file", "")
        with pytest.raises(Invalid, match="not an absolute path"):
            source.resolve("layout:1", "")
        with pytest.raises(Invalid, match="has the digest"):
            source.resolve(f"{made}@sha256:../../etc", "")
        with pytest.raises(NotFound):
            source.fetch(f"{made}", Descriptor(LAYER, Digest(f"sha256:{'0' * 64}"), 1), 0)


class TestHostile:
    def test_links_that_lead_out(self, made: Path, content: Content, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        target = blob(made, content.layers[0].digest)
        for way in ("/etc/hostname", str(tmp_path / "secret"), "../../../secret"):
            target.unlink()
            target.symlink_to(way)
            with pytest.raises(Invalid, match="can't be read"):
                LayoutTransport().fetch(f"{made}", content.layers[0], 0)
        target.unlink()
        (made / "blobs/sha256").rename(made / "elsewhere")
        (made / "blobs/sha256").symlink_to("../elsewhere")
        (made / "elsewhere" / target.name).write_bytes(b"inside")
        with LayoutTransport().fetch(f"{made}", content.layers[0], 0) as stream:
            assert stream.read() == b"inside", "a link that stays inside is one"

    def test_twin_that_follows_every_link(
        self, made: Path, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "secret").write_text("secret")
        target = blob(made, content.layers[0].digest)
        target.unlink()
        target.symlink_to("../../../secret")
        monkeypatch.setattr(module, "open_at", lambda fd, name, flags, resolve: lookups.open_at(fd, name, flags, 0))
        with LayoutTransport().fetch(f"{made}", content.layers[0], 0) as stream:
            assert stream.read() == b"secret"

    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    def test_documents(self, made: Path, name: str) -> None:
        file = made / name
        for text in (b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff"):
            file.write_bytes(text)
            with pytest.raises(Invalid):
                LayoutTransport().resolve(f"{made}", "")
        with file.open("wb") as large:
            large.truncate(10 << 30)
        with pytest.raises(Invalid, match="larger than 4 MiB"):
            LayoutTransport().resolve(f"{made}", "")
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(Invalid, match="not a regular file"):
            LayoutTransport().resolve(f"{made}", "")
        file.unlink()
        file.mkdir()
        with pytest.raises(Invalid):
            LayoutTransport().resolve(f"{made}", "")

    def test_versions_and_types(self, made: Path) -> None:
        (made / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
        with pytest.raises(Invalid, match="version"):
            LayoutTransport().resolve(f"{made}", "")
        (made / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (made / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [], "layers": []}))
        with pytest.raises(Invalid, match="ambiguous"):
            LayoutTransport().resolve(f"{made}", "")

    def test_bytes_that_are_not_the_digests(self, made: Path, content: Content, tmp_path: Path) -> None:
        for change in (b"X", b""):
            data = content.blobs[content.layers[0].digest]
            blob(made, content.layers[0].digest).write_bytes(change + data[1:])
            with world(tmp_path / f"w{len(change)}") as here:
                with pytest.raises(Invalid):
                    list(here.images.pull(f"layout:{made}"))
                assert content.layers[0].digest not in {found.digest for found in here.drivers.store.walk()}
                assert not list(here.drivers.store.list())


class TestPulls:
    def test_platforms(self, tmp_path: Path) -> None:
        platforms = {
            "linux/amd64": image(tar(member("a"))),
            "linux/arm64": image(tar(member("b")), architecture="arm64"),
        }
        content = index_of(platforms)
        made = layout(tmp_path / "layout", content)
        with world(tmp_path / "w") as here:
            list(here.images.pull(f"layout:{made}:1", "linux/arm64"))
            held = {found.digest for found in here.drivers.store.walk()}
            assert platforms["linux/arm64"].layers[0].digest in held
            assert platforms["linux/amd64"].layers[0].digest not in held

    def test_index_json_that_lists_the_platforms_itself(self, tmp_path: Path) -> None:
        """Two entries with one tag, as buildx writes them, are not two images."""
        platforms = {
            "linux/amd64": image(tar(member("a"))),
            "linux/arm64": image(tar(member("b")), architecture="arm64"),
        }
        made = layout(tmp_path / "layout", index_of(platforms))
        entries = []
        for platform, content in platforms.items():
            data = content.manifests[content.target.digest][1]
            spoken = {"os": "linux", "architecture": platform.partition("/")[2]}
            named = {"org.opencontainers.image.ref.name": "1"}
            entries.append(descriptor(MANIFEST, data, platform=spoken, annotations=named))
        text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        (made / "index.json").write_text(text)
        source = LayoutTransport()
        for reference in (f"{made}", f"{made}:1"):
            (named_arm,) = source.resolve(reference, "linux/arm64")
            assert named_arm.target.digest == platforms["linux/arm64"].target.digest
        with pytest.raises(NotFound, match="s390x"):
            source.resolve(f"{made}:1", "linux/s390x")

    def test_of_others_tools(self, busybox_image: Path, tmp_path: Path, wherry: Wherry) -> None:
        need("skopeo")
        copy = tmp_path / "copy"
        subprocess.run(
            ["skopeo", "copy", "-q", f"oci:{busybox_image / 'oci'}", f"oci:{copy}:box"], check=True, capture_output=True
        )
        assert wherry("run", "--rm", f"layout:{copy}:box", "echo", "hello").stdout == "hello\n"
        assert wherry("pull", "-q", "layout:copy:box", cwd=tmp_path).stdout == f"layout:{copy}:box\n"
