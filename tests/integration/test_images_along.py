"""Layers that are unpacked while they are fetched: early, and never seen before all is verified."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from support import registry
from support.images_area import World, world
from support.layers import directory, member, tar
from support.registry import Content, Handler, Scripted, image
from wherry.api import Invalid, Mount, Unavailable
from wherry.engine.images.incoming import IncomingLayers, PartialBlob
from wherry_plugins.store.local.ingest import LocalIngest

BOTH = pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])
TWIN = pytest.mark.parametrize("twin", [False, True])
NOISE = "snapshotter/*/snapshots/**/noise"
LAYER = tar(directory("d"), member("d/early", data=b"e"), member("noise", data=os.urandom(3 << 20)))


def found(made: World) -> list[Path]:
    return list(made.root.glob("snapshotter/*/snapshots/**/d/early"))


def halves(handler: Handler, data: bytes, between: Any) -> bool:
    """A layer whose second half comes when between has returned; False: it never comes."""
    handler.reply(200, data[: len(data) // 2], Content_Length=str(len(data)))
    handler.wfile.flush()
    if between() is False:
        return handler.hang_up()
    handler.wfile.write(data[len(data) // 2 :])
    return True


def until(look: Any, seconds: float = 30) -> bool:
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if look():
            return True
        pause.wait(0.02)
    return False


@BOTH
@TWIN
def test_a_layer_is_unpacked_while_it_comes(
    tmp_path: Path, snapshotter: str, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """Its first file is there when its last has not come; and the snapshot is nothing yet. The twin waits for all of it."""
    if twin:
        monkeypatch.setattr(IncomingLayers, "tap", lambda self, digest: self.landed(digest))
    content = image(LAYER)
    seen: list[Any] = []

    with world(tmp_path / "w", snapshotter) as made:

        def between() -> None:
            seen.append(until(lambda: found(made), 0.5 if twin else 30))
            seen.append({info.kind for info in made.drivers.snapshotter.walk()} | {"active"})
            seen.append(content.layers[0].digest in {info.digest for info in made.drivers.store.walk()})

        def script(handler: Handler) -> bool:
            return handler.is_layer and halves(handler, content.blobs[content.layers[0].digest], between)

        with Scripted(content, script) as server:
            *_, last = made.images.pull(f"registry:{server.host}/x:1")
        assert last.status == "done"
        assert seen == [not twin, {"active"}, False]
        assert found(made)
        assert {info.kind for info in made.drivers.snapshotter.walk()} == {"committed"}


def disguised(content: Content) -> tuple[Content, bytes]:
    """The same tar in other bytes of the same length, in the place of the layer: the diff-id is right, the digest is not."""
    wanted = content.layers[0].digest
    other = bytearray(content.blobs[wanted])
    assert other[4:8] == b"\0\0\0\0"
    other[4] = 1  # gzip's mtime
    assert gzip.decompress(bytes(other)) == gzip.decompress(content.blobs[wanted])
    return content._replace(blobs={**content.blobs, wanted: bytes(other)}), bytes(other)


@BOTH
@TWIN
def test_a_wrong_digest_leaves_nothing(
    tmp_path: Path, snapshotter: str, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """The store has its word when all is unpacked. The twin does not wait for it, and keeps a snapshot of bytes that were refused."""
    content, _data = disguised(image(LAYER))
    if twin:
        monkeypatch.setattr(IncomingLayers, "landed", lambda self, digest: None)
    real = LocalIngest.commit

    def commit(self: LocalIngest, size: int | None, digest: Any, labels: Any) -> Any:
        if digest == content.layers[0].digest:
            assert until(lambda: found(made) and not made.workers._pids)
        return real(self, size, digest, labels)

    monkeypatch.setattr(LocalIngest, "commit", commit)
    with world(tmp_path / "w", snapshotter) as made, Scripted(content) as server:
        with pytest.raises(Invalid, match="have the digest"):
            list(made.images.pull(f"registry:{server.host}/x:1"))
        assert [info.digest for info in made.drivers.store.walk() if info.digest == content.layers[0].digest] == []
        assert ({info.kind for info in made.drivers.snapshotter.walk()} == {"committed"}) is twin
        assert list(made.drivers.store.list()) == []


@BOTH
def test_a_fetch_that_ends_early_says_why(tmp_path: Path, snapshotter: str) -> None:
    """Not the worker that read along; what it made goes, and the next pull goes on where this one ended."""
    content = image(LAYER)
    data, broken = content.blobs[content.layers[0].digest], threading.Event()
    more = "\n[plugin.transport.registry]\nretries = 1\npatience = 2\n"
    with world(tmp_path / "w", snapshotter, more) as made:

        def script(handler: Handler) -> bool:
            if not handler.is_layer or broken.is_set():
                return False
            if "Range" in handler.headers:
                return handler.reply(503)
            return halves(handler, data, lambda: not until(lambda: found(made)))

        with Scripted(content, script) as server:
            with pytest.raises(Unavailable) as caught:
                list(made.images.pull(f"registry:{server.host}/x:1"))
            assert "worker" not in str(caught.value)
            assert list(made.drivers.snapshotter.walk()) == []
            assert not made.workers._pids
            broken.set()
            list(made.images.pull(f"registry:{server.host}/x:1"))
            assert server.requests[-1].headers["range"].startswith("bytes=")
        assert found(made)


@TWIN
def test_slow_registries_keep_nobody_from_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """As many layers as may be read along stand still; other workers do their work. In the twin these take the others' places."""
    content = image(*(tar(directory("d"), member(f"d/{n}", data=os.urandom(1 << 20))) for n in range(3)))
    go = threading.Event()
    with world(tmp_path / "w") as made:
        cpus = made.images._unpacker._along._value
        if twin:
            real = made.workers._ask

            def asked(request: bytes, stream: Any, feed: Any) -> bytes:
                if feed is None:
                    return real(request, stream, feed)
                with made.workers._slots:
                    return real(request, stream, feed)

            monkeypatch.setattr(made.workers, "_ask", asked)

        def script(handler: Handler) -> bool:
            layers = {layer.digest: content.blobs[layer.digest] for layer in content.layers}
            name = handler.path.rpartition("/")[2]
            return name in layers and halves(handler, layers[name], lambda: go.wait(60))

        with Scripted(content, script) as server:
            puller = threading.Thread(target=lambda: list(made.images.pull(f"registry:{server.host}/x:1")))
            puller.start()
            try:
                assert until(lambda: len(made.workers._pids) == min(cpus, 3))
                (tmp_path / "x").mkdir()
                mounts = (Mount("bind", str(tmp_path / "x"), "", ("rbind", "ro")),)
                done = threading.Event()
                other = threading.Thread(target=lambda: (made.workers.usage(mounts), done.set()))
                other.start()
                assert done.wait(1 if twin else 30) is not (twin and cpus <= 3)
            finally:
                go.set()
                puller.join(60)
            other.join(30)
        assert not puller.is_alive()


@BOTH
@TWIN
def test_what_was_read_along_is_nothing_when_the_fetch_begins_anew(
    tmp_path: Path, snapshotter: str, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """A power cut left zeros in the middle of a plain layer: nothing in it looks wrong, and the worker has ended well before the store
    says that these are not the bytes. The twin takes its word."""
    monkeypatch.setattr(registry.gzip, "compress", lambda data, *_args, **_more: data)
    content = image(LAYER, layer_type=registry.LAYER)
    wanted, real = content.layers[0].digest, LocalIngest.commit
    tries: list[int] = []
    if twin:
        monkeypatch.setattr(PartialBlob, "whole", True)
    with world(tmp_path / "w", snapshotter) as made:

        def commit(self: LocalIngest, size: int | None, digest: Any, labels: Any) -> Any:
            if digest == wanted:
                assert tries or until(lambda: found(made) and not made.workers._pids)
                tries.append(1)
            return real(self, size, digest, labels)

        monkeypatch.setattr(LocalIngest, "commit", commit)
        ingest = made.drivers.store.ingest(f"fetch-{wanted}")
        ingest.write(LAYER[: 1 << 20] + bytes(1 << 20))
        ingest.close()
        with Scripted(content) as server:
            if twin:
                with pytest.raises(Invalid, match="unpacks to the diff-id"):
                    list(made.images.pull(f"registry:{server.host}/x:1"))
                return
            assert list(made.images.pull(f"registry:{server.host}/x:1"))[-1].status == "done"
        assert len(tries) == 2
        assert until(lambda: [path.read_bytes() in LAYER for path in made.root.glob(NOISE)] == [True])
