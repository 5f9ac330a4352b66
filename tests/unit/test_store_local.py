"""store.local beyond the contract: the layout on disk, crashes between its steps, damage, and a newer format."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wherry.api import AlreadyExists, BlobInfo, Descriptor, Digest, Error, FailedPrecondition, InUse, Invalid, NotFound
from wherry_plugins.store.local.store import LocalStore

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def put(store: LocalStore, data: bytes, ref: str = "ref") -> Digest:
    ingest = store.ingest(ref)
    ingest.write(data)
    ingest.commit(len(data), digest(data), {})
    return digest(data)


def content(store: LocalStore, digest: Digest) -> bytes:
    with store.open(digest) as file:
        return file.read()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store" / "local"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def store(root: Path) -> Any:
    store = LocalStore(root)
    yield store
    store.close()


def test_the_layout_is_one_that_other_tools_read(store: LocalStore) -> None:
    config, manifest = b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}', {}
    put(store, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config),
            "size": len(config),
        },
        "layers": [],
    }
    text = json.dumps(manifest).encode()
    put(store, text)
    store.tag("docker.io/library/x:1", Descriptor(MANIFEST, digest(text), len(text), {"a": "b"}, "linux/arm64/v8"), {})
    store._write_late()
    index = json.loads((store.root / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["annotations"] == {"a": "b", "org.opencontainers.image.ref.name": "docker.io/library/x:1"}
    assert entry["platform"] == {"os": "linux", "architecture": "arm64", "variant": "v8"}
    found = subprocess.run(
        ["skopeo", "inspect", "--config", "--raw", f"oci:{store.root}:docker.io/library/x:1"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert found == config
    store.untag("docker.io/library/x:1")
    store._write_late()
    assert json.loads((store.root / "index.json").read_text())["manifests"] == []


def test_many_tags_write_the_index_few_times(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = LocalStore._write_index
    monkeypatch.setattr(LocalStore, "_write_index", lambda self: (written.append(1), real(self))[1])
    store._index_took = 0.02
    for number in range(100):
        store.tag(f"n{number}", Descriptor(MANIFEST, digest(b"1"), 1), {})
    assert len(written) < 90
    store.close()
    assert len(json.loads((store.root / "index.json").read_text())["manifests"]) == 100


def test_directories_are_for_their_owner_only(store: LocalStore) -> None:
    put(store, b"x")
    for path in (store.blobs, store.partial):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    ["sha256:../../etc/passwd", "sha256:" + "A" * 64, "sha512:" + "a" * 128, "md5:x", "", "sha256:" + "a" * 63 + "\n"],
)
def test_no_path_is_made_of_unchecked_text(store: LocalStore, text: str) -> None:
    for call in (store.info, store.open, store.delete):
        with pytest.raises(Invalid):
            call(Digest(text))
    ingest = store.ingest("r")
    with pytest.raises(Invalid):
        ingest.commit(0, Digest(text), {})
    with pytest.raises(Invalid):
        store.tag("n", Descriptor(MANIFEST, Digest(text), 1), {})


def test_a_write_goes_on_after_a_restart_and_hashes_what_was_there(store: LocalStore, root: Path) -> None:
    first = store.ingest("r")
    first.write(b"hello ")
    first.close()
    store.close()
    again = LocalStore(root)
    assert list(again.ingests()) == [("r", 6)]
    ingest = again.ingest("r")
    assert ingest.offset == 6
    ingest.write(b"world")
    assert ingest.commit(11, digest(b"hello world"), {"l": "1"}).labels == {"l": "1"}
    assert list(again.ingests()) == []
    again.close()


def test_a_wrong_digest_starts_afresh(store: LocalStore) -> None:
    ingest = store.ingest("r")
    ingest.write(b"wrong")
    with pytest.raises(Invalid):
        ingest.commit(5, digest(b"right"), {})
    assert ingest.offset == 0
    with pytest.raises(NotFound):
        store.info(digest(b"right"))
    ingest.write(b"right")
    ingest.commit(5, digest(b"right"), {})


def test_a_short_write_can_be_completed(store: LocalStore) -> None:
    ingest = store.ingest("r")
    ingest.write(b"abc")
    with pytest.raises(Invalid):
        ingest.commit(6, digest(b"abcdef"), {})
    assert ingest.offset == 3
    ingest.write(b"def")
    ingest.commit(6, digest(b"abcdef"), {})


def test_one_writer_a_ref_across_processes(store: LocalStore, root: Path) -> None:
    ingest = store.ingest("r")
    with pytest.raises(InUse):
        store.ingest("r")
    code = (
        "import sys; from pathlib import Path; from wherry_plugins.store.local.store import LocalStore; from wherry.api import InUse\n"
        "try: LocalStore(Path(sys.argv[1])).ingest('r')\nexcept InUse: sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root)], check=False).returncode == 7
    with pytest.raises(InUse):
        store.abort("r")
    ingest.close()
    store.abort("r")
    store.abort("r")
    assert list(store.partial.iterdir()) == []


def test_two_writers_of_one_blob(store: LocalStore) -> None:
    one, two = store.ingest("1"), store.ingest("2")
    for ingest in (one, two):
        ingest.write(b"same")
    one.commit(4, digest(b"same"), {"a": "1"})
    assert two.commit(4, digest(b"same"), {"b": "2"}).labels == {"a": "1", "b": "2"}
    with pytest.raises(AlreadyExists):
        store.ingest("3", Descriptor("x", digest(b"same"), 4))
    assert content(store, digest(b"same")) == b"same"
    assert list(store.partial.iterdir()) == []


def test_deletion_against_ingest_never_loses_an_acknowledged_blob(store: LocalStore) -> None:
    """Whoever was told that the blob is there can read it until the next deletion."""
    data, wrong = b"contended" * 100, []
    stop = threading.Event()

    def delete() -> None:
        while not stop.is_set():
            store.delete(digest(data))

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for number in range(100):
            put(store, data, f"r{number}")
            rows = store.database.all("SELECT deleting FROM blobs WHERE digest = ?", (digest(data),))
            with store.lock:
                row = store.database.row("SELECT deleting FROM blobs WHERE digest = ?", (digest(data),))
                if row == (0,) and not store.path(digest(data)).exists():
                    wrong.append((number, rows))
    finally:
        stop.set()
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("step", ["file without a row", "marked and unlinked"])
def test_a_crash_in_the_middle_is_mended_when_opened(store: LocalStore, root: Path, step: str) -> None:
    kept, gone = put(store, b"kept", "1"), put(store, b"gone", "2")
    with store.database.write() as execute:
        if step == "file without a row":
            execute("DELETE FROM blobs WHERE digest = ?", (gone,))
        else:
            execute("UPDATE blobs SET deleting = 1 WHERE digest = ?", (gone,))
    if step == "marked and unlinked":
        store.path(gone).unlink()
    store.close()
    again = LocalStore(root)
    assert [info.digest for info in again.walk()] == [kept]
    assert [path.name for path in again.blobs.iterdir()] == [kept.partition(":")[2]]
    put(again, b"gone", "3")
    assert content(again, gone) == b"gone"
    again.close()


def test_a_marked_blob_counts_as_absent_and_can_come_back(store: LocalStore) -> None:
    gone = put(store, b"gone")
    with store.database.write() as execute:
        execute("UPDATE blobs SET deleting = 1 WHERE digest = ?", (gone,))
    with pytest.raises(NotFound):
        store.open(gone)
    assert list(store.walk()) == []
    put(store, b"gone", "again")
    assert content(store, gone) == b"gone"


def test_a_mark_that_a_crash_left_is_taken_away(store: LocalStore, root: Path) -> None:
    """It may have been leased and named since: the next collection decides anew."""
    perhaps = put(store, b"perhaps")
    store.mark([perhaps])
    store.close()
    again = LocalStore(root)
    assert content(again, perhaps) == b"perhaps"
    assert again.sweep() == ()
    again.close()


def test_what_fsync_told_once_is_not_forgotten(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fsync(2) after a write-back error succeeds, the bytes are lost all the same."""
    from wherry_plugins.store.local import ingest as module

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "write-back failed")

    ingest = store.ingest("r")
    ingest.write(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", fail)
        with pytest.raises(OSError, match="write-back"):
            ingest.commit(4, digest(b"data"), {})
    assert ingest.offset == 0, "all has to be written again"
    ingest.write(b"data")
    ingest.commit(4, digest(b"data"), {})
    assert content(store, digest(b"data")) == b"data"


def test_a_commit_whose_row_fails_leaves_no_file_and_can_be_repeated(store: LocalStore) -> None:
    ingest = store.ingest("r")
    ingest.write(b"data")
    store.database._connection.set_commit_hook(lambda: True)  # every COMMIT becomes a rollback
    with pytest.raises(Exception, match=r"constraint|abort"):
        ingest.commit(4, digest(b"data"), {})
    store.database._connection.set_commit_hook(None)
    assert list(store.blobs.iterdir()) == []
    ingest.commit(4, digest(b"data"), {})
    assert content(store, digest(b"data")) == b"data"
    assert list(store.partial.iterdir()) == []


def test_an_ingest_never_writes_into_a_blob(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that could not take the partial name away leaves one that is the blob's file, too."""

    real = Path.unlink

    def fail(self: Path, missing_ok: bool = False) -> None:
        if self.parent == store.partial:
            raise OSError(errno.EIO, "no unlink")
        real(self, missing_ok=missing_ok)

    ingest = store.ingest("r")
    ingest.write(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        ingest.commit(4, digest(b"data"), {})
    assert len(list(store.partial.iterdir())) == 1
    again = store.ingest("r")
    assert again.offset == 0
    again.truncate()
    again.write(b"other")
    again.close()
    assert content(store, digest(b"data")) == b"data"


@pytest.mark.parametrize("verb", ["abort", "commit"])
def test_the_next_writer_keeps_its_row(store: LocalStore, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Another writer of the ref waits until the one that ends has taken its row away, however the steps fall."""
    first = store.ingest("r")
    first.write(b"data")
    if verb == "abort":
        first.close()
    tried: list[BaseException | None] = []
    real = store.database.write

    @contextlib.contextmanager
    def write(**options: Any) -> Any:
        with real(**options) as execute:
            yield execute
        if not tried:
            monkeypatch.setattr(store.database, "write", real)
            try:
                store.ingest("r").close()
                tried.append(None)
            except InUse as error:
                tried.append(error)

    monkeypatch.setattr(store.database, "write", write)
    if verb == "abort":
        store.abort("r")
    else:
        first.commit(4, digest(b"data"), {})
    assert [type(found) for found in tried] == [InUse], "it came while the row was being taken away"
    store.ingest("r").close()
    assert list(store.ingests()) == [("r", 0)]


def test_a_full_disk_keeps_no_name_from_going(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.tag("n", Descriptor(MANIFEST, digest(b"1"), 1), {})

    def full(self: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        store._index_written = -1e9
        store.untag("n")
    assert list(store.list()) == []
    store._write_index()
    assert json.loads((store.root / "index.json").read_text())["manifests"] == []


def test_a_lost_file_is_told(store: LocalStore) -> None:
    put(store, b"x")
    store.path(digest(b"x")).unlink()
    with pytest.raises(Error, match="doctor"):
        store.open(digest(b"x"))


@pytest.mark.parametrize("twin", [False, True])
def test_a_blob_that_goes_while_it_is_opened(store: LocalStore, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """It is absent, not lost. The twin believes its first look."""
    digest = put(store, b"x")
    real = LocalStore.info
    looks: list[BlobInfo] = []

    def info(self: LocalStore, wanted: Digest) -> BlobInfo:
        if twin and looks:
            return looks[0]
        found = real(self, wanted)
        looks.append(found)
        self.delete(wanted)
        return found

    monkeypatch.setattr(LocalStore, "info", info)
    with pytest.raises(Error, match="file is gone" if twin else "is not in the store"):
        store.open(digest)


def test_a_layout_that_a_full_disk_cut_short(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            LocalStore(root)
    LocalStore(root).close()
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_compare_and_swap(store: LocalStore) -> None:
    one, two = Descriptor(MANIFEST, digest(b"1"), 1), Descriptor(MANIFEST, digest(b"2"), 1)
    with pytest.raises(FailedPrecondition):
        store.tag("n", one, {}, expected=one.digest)
    store.tag("n", one, {"l": "1"})
    with pytest.raises(FailedPrecondition):
        store.tag("n", two, {}, expected=two.digest)
    store.tag("n", two, {}, expected=one.digest)
    with pytest.raises(FailedPrecondition):
        store.untag("n", expected=one.digest)
    assert store.resolve("n").target == two
    store.untag("n", expected=two.digest)
    store.untag("n", expected=two.digest)


def test_prefixes_are_plain_text(store: LocalStore) -> None:
    for name in ("a%b", "a_b", "aXb"):
        store.tag(name, Descriptor(MANIFEST, digest(b"1"), 1), {})
    assert [image.name for image in store.list("a%")] == ["a%b"]
    assert [image.name for image in store.list("a_")] == ["a_b"]


def test_a_newer_store_is_refused_and_not_touched(store: LocalStore, root: Path) -> None:
    put(store, b"x")
    with store.database.write() as execute:
        execute("PRAGMA user_version = 99")
    store.close()
    (root / "index.json").unlink()
    before = {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}
    with pytest.raises(FailedPrecondition, match="format 99"):
        LocalStore(root)
    assert {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))} == before


def test_rubbish_is_no_database(root: Path) -> None:
    (root / "store.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(Error):
        LocalStore(root)


def test_every_open_file_is_synced_before_its_row(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from wherry_plugins.store.local import ingest as module

    steps: list[str] = []
    real_fsync, real_link = os.fsync, os.link
    monkeypatch.setattr(module.os, "fsync", lambda fd: (steps.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(module.os, "link", lambda old, new: (steps.append("link"), real_link(old, new))[1])
    store.database._connection.set_commit_hook(lambda: bool(steps.append("commit")))
    put(store, b"x")
    store.database._connection.set_commit_hook(None)
    assert steps == ["commit", "fsync", "link", "fsync", "commit"]


def test_a_full_disk_says_at_which_file(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    ingest = store.ingest("r")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space") as caught:
            ingest.write(b"data")
    assert Path(str(caught.value.filename)).parent == store.root / "ingest"
    ingest.close()
