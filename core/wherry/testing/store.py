"""What every image store must do: blobs by digest, resumable writes, references by name."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from wherry.errors import AlreadyExists, Error, InUse, Invalid, NotFound
from wherry.interfaces.common import Digest
from wherry.interfaces.store import Store
from wherry.testing.harness import Harness
from wherry.testing.references import ABSENT, References, descriptor_of, digest_of


def put(driver: Store, data: bytes, ref: str = "put", **labels: str) -> Digest:
    """Writes one blob in two chunks and answers its digest."""
    ingest = driver.ingest(ref)
    middle = len(data) // 2
    ingest.write(data[:middle])
    ingest.write(memoryview(data)[middle:])
    return ingest.commit(len(data), digest_of(data), labels).digest


def get(driver: Store, digest: Digest) -> bytes:
    with driver.open(digest) as stream:
        return stream.read()


def walked(driver: Store) -> list[str]:
    return sorted(blob.digest for blob in driver.walk())


class StoreContract(References):
    """The clauses of the store kind. See ``wherry.interfaces.store``."""

    family = "store"

    # blobs

    def test_committed_blob_is_visible(self, driver: Store) -> None:
        data = b"some bytes of a layer"
        digest = put(driver, data, kind="layer")
        info = driver.info(digest)
        assert (info.digest, info.size, dict(info.labels)) == (digest, len(data), {"kind": "layer"})
        assert info.created > 10**18, "created is in nanoseconds since the epoch"
        assert get(driver, digest) == data

    def test_uncommitted_blob_is_not_visible(self, driver: Store) -> None:
        data = b"half a thing"
        ingest = driver.ingest("early")
        ingest.write(data)
        for look in (driver.info, driver.open):
            with pytest.raises(NotFound):
                look(digest_of(data))
        assert walked(driver) == []
        ingest.close()
        assert walked(driver) == []

    def test_partial_blob_can_be_read(self, driver: Store) -> None:
        ingest = driver.ingest("read along")
        ingest.write(b"early, ")
        with ingest.reader() as stream:
            assert os.pread(stream.fileno(), 100, 0) == b"early, "
            ingest.write(b"late")
            assert os.pread(stream.fileno(), 100, 0) == b"early, late"
            ingest.commit(None, digest_of(b"early, late"), {})
            assert os.pread(stream.fileno(), 100, 0) == b"early, late"

    def test_wrong_digest_is_invalid_and_not_visible(self, driver: Store) -> None:
        ingest = driver.ingest("wrong")
        ingest.write(b"these bytes")
        claimed = digest_of(b"other bytes")
        with pytest.raises(Invalid):
            ingest.commit(None, claimed, {})
        assert walked(driver) == []
        for digest in (claimed, digest_of(b"these bytes")):
            with pytest.raises(NotFound):
                driver.info(digest)

    def test_wrong_size_is_invalid_and_not_visible(self, driver: Store) -> None:
        data = b"twelve bytes"
        ingest = driver.ingest("wrong")
        ingest.write(data)
        with pytest.raises(Invalid):
            ingest.commit(len(data) + 1, digest_of(data), {})
        assert walked(driver) == []
        with pytest.raises(NotFound):
            driver.info(digest_of(data))

    def test_size_may_be_left_open(self, driver: Store) -> None:
        data = b"of unknown length"
        ingest = driver.ingest("open-ended")
        ingest.write(data)
        assert ingest.commit(None, digest_of(data), {}).size == len(data)

    def test_empty_blob(self, driver: Store) -> None:
        ingest = driver.ingest("empty")
        info = ingest.commit(0, digest_of(b""), {})
        assert info.size == 0
        assert get(driver, info.digest) == b""

    def test_stream_is_seekable_and_has_fileno(self, driver: Store) -> None:
        data = bytes(range(256)) * 64
        digest = put(driver, data)
        with driver.open(digest) as stream:
            assert stream.seek(1000) == 1000
            assert stream.read(16) == data[1000:1016]
            assert os.pread(stream.fileno(), len(data) + 1, 0) == data
            assert os.fstat(stream.fileno()).st_size == len(data)

    def test_streams_have_positions_of_their_own(self, driver: Store) -> None:
        digest = put(driver, b"0123456789")
        with driver.open(digest) as first, driver.open(digest) as second:
            assert first.read(4) == b"0123"
            assert second.read(2) == b"01"
            assert first.read(2) == b"45"

    def test_missing_blob_is_not_found(self, driver: Store) -> None:
        put(driver, b"another blob")
        with pytest.raises(NotFound):
            driver.info(ABSENT)
        with pytest.raises(NotFound):
            driver.open(ABSENT)
        with pytest.raises(NotFound):
            driver.label(ABSENT, {"a": "b"})

    def test_hostile_digest_names_no_file(self, driver: Store, harness: Harness[Store]) -> None:
        secret = harness.directory / "secret"
        secret.write_text("not for readers of blobs")
        up = "../" * 12
        for text in (f"sha256:{up}{secret}", f"sha256:{secret}", f"../{secret}", "sha256:", "sha256:..", ""):
            with pytest.raises((Invalid, NotFound)):
                driver.open(Digest(text))
            with pytest.raises((Invalid, NotFound)):
                driver.info(Digest(text))

    def test_walk_lists_each_blob_once(self, driver: Store) -> None:
        digests = sorted(put(driver, b"blob %d" % index, f"ref-{index}") for index in range(20))
        assert walked(driver) == digests
        assert {blob.size for blob in driver.walk()} == {6, 7}

    def test_delete_is_idempotent(self, driver: Store) -> None:
        kept, gone = put(driver, b"kept"), put(driver, b"gone")
        driver.delete(gone)
        driver.delete(gone)
        driver.delete(ABSENT)
        assert walked(driver) == [kept]
        with pytest.raises(NotFound):
            driver.open(gone)
        assert put(driver, b"gone") == gone, "a deleted blob can be written again"

    # marks, by which gc deletes in two steps

    def test_marked_blob_counts_as_absent(self, driver: Store) -> None:
        kept, marked = put(driver, b"kept"), put(driver, b"marked")
        driver.mark([marked, ABSENT])
        for look in (driver.info, driver.open, lambda digest: driver.label(digest, {"a": "b"})):
            with pytest.raises(NotFound):
                look(marked)
        assert walked(driver) == [kept]
        assert get(driver, kept) == b"kept"

    def test_unmarked_blob_is_as_before(self, driver: Store) -> None:
        digest = put(driver, b"leased meanwhile", a="b")
        before = driver.info(digest)
        driver.mark([digest])
        driver.unmark([digest, ABSENT])
        assert driver.info(digest) == before
        assert driver.sweep() == ()
        assert get(driver, digest) == b"leased meanwhile"

    def test_sweep_deletes_what_is_marked(self, driver: Store) -> None:
        kept, one, two = put(driver, b"kept"), put(driver, b"one"), put(driver, b"two!")
        driver.mark([one, two])
        gone = driver.sweep()
        assert {info.digest: info.size for info in gone} == {one: 3, two: 4}
        driver.unmark([one])
        assert walked(driver) == [kept]
        assert driver.sweep() == (), "what went does not go again"
        assert put(driver, b"one") == one, "a swept blob can be written again"

    def test_marked_blob_is_not_written_before_it_is_gone(self, driver: Store) -> None:
        data = b"wanted again"
        driver.mark([put(driver, data)])
        with pytest.raises(InUse):
            driver.ingest("again", descriptor_of(data))
        driver.sweep()
        ingest = driver.ingest("again", descriptor_of(data))
        ingest.write(data)
        ingest.commit(len(data), digest_of(data), {})
        assert get(driver, digest_of(data)) == data

    def test_commit_over_a_mark_lasts(self, driver: Store) -> None:
        """Bytes that were under way when the same ones were marked: who was told that they are there can rely on it."""
        data = b"under way"
        late = driver.ingest("late")
        late.write(data)
        digest = put(driver, data, "early", by="early")
        driver.mark([digest])
        late.commit(len(data), digest, {})
        assert get(driver, digest) == data
        assert driver.sweep() == ()
        assert get(driver, digest) == data

    def test_restart_takes_marks_away(self, driver: Store, harness: Harness[Store]) -> None:
        """Whoever marked died before it could look who leases; the next collection does."""
        digest = put(driver, b"perhaps leased")
        driver.mark([digest])
        driver = harness.reopen()
        assert driver.sweep() == ()
        assert get(driver, digest) == b"perhaps leased"

    def test_stream_outlives_the_sweep(self, driver: Store) -> None:
        digest = put(driver, b"being read" * 100)
        with driver.open(digest) as stream:
            driver.mark([digest])
            driver.sweep()
            assert stream.read() == b"being read" * 100

    def test_sweep_beside_writers(self, driver: Store) -> None:
        """Each writer has its blob when its commit answered, however many sweeps run."""
        blobs = [b"contended %d" % (index % 4) for index in range(40)]
        digests = sorted({digest_of(data) for data in blobs})
        stop = threading.Event()

        def collect() -> None:
            while not stop.is_set():
                driver.mark(digests)
                driver.sweep()

        def write(index: int) -> None:
            put(driver, blobs[index], f"ref-{index}")

        with ThreadPoolExecutor(5) as pool:
            collector = pool.submit(collect)
            try:
                list(pool.map(write, range(len(blobs))))
            finally:
                stop.set()
            collector.result()
        driver.unmark(digests)
        for digest in walked(driver):
            get(driver, Digest(digest))
        for ref in ("last", "over the last"):
            assert put(driver, blobs[0], ref) == digest_of(blobs[0])
            assert get(driver, digest_of(blobs[0])) == blobs[0]

    def test_aborted_ref_is_the_next_writers(self, driver: Store) -> None:
        """abort of a ref that is being written again is InUse, and takes nothing from the writer."""
        driver.ingest("shared").close()
        driver.abort("shared")
        ingest = driver.ingest("shared")
        ingest.write(b"mine")
        with pytest.raises(InUse):
            driver.abort("shared")
        assert list(driver.ingests()) == [("shared", 4)]
        ingest.commit(4, digest_of(b"mine"), {})

    def test_labels_are_set_and_removed(self, driver: Store) -> None:
        digest = put(driver, b"labelled", first="1", second="2")
        answer = driver.label(digest, {"second": None, "third": "3", "absent": None})
        assert dict(answer.labels) == {"first": "1", "third": "3"}
        assert dict(driver.info(digest).labels) == {"first": "1", "third": "3"}
        assert [dict(blob.labels) for blob in driver.walk()] == [{"first": "1", "third": "3"}]

    def test_blobs_survive_reopening(self, driver: Store, harness: Harness[Store]) -> None:
        digest = put(driver, b"durable", a="b")
        driver.label(digest, {"c": "d"})
        before = driver.info(digest)
        driver = harness.reopen()
        assert driver.info(digest) == before
        assert dict(driver.info(digest).labels) == {"a": "b", "c": "d"}
        assert get(driver, digest) == b"durable"

    # writes

    def test_present_blob_is_not_written_again(self, driver: Store) -> None:
        data = b"already there"
        put(driver, data)
        with pytest.raises(AlreadyExists):
            driver.ingest("again", descriptor_of(data))
        assert [ref for ref, _ in driver.ingests()] == []
        driver.ingest("absent", descriptor_of(b"not there")).close()

    def test_two_writers_of_one_blob(self, driver: Store) -> None:
        data = b"fetched twice at once"
        first, second = driver.ingest("one"), driver.ingest("two")
        for ingest in (first, second):
            ingest.write(data)
        first.commit(len(data), digest_of(data), {"by": "first"})
        try:
            second.commit(len(data), digest_of(data), {})
        except AlreadyExists:
            driver.abort("two")
        assert walked(driver) == [digest_of(data)]
        assert get(driver, digest_of(data)) == data
        assert list(driver.ingests()) == []

    def test_write_resumes_where_it_ended(self, driver: Store) -> None:
        ingest = driver.ingest("resumed")
        assert ingest.offset == 0
        assert ingest.write(b"first half, ") == 12
        assert ingest.offset == 12
        ingest.close()
        ingest = driver.ingest("resumed")
        assert ingest.offset == 12
        ingest.write(b"second half")
        whole = b"first half, second half"
        ingest.commit(len(whole), digest_of(whole), {})
        assert get(driver, digest_of(whole)) == whole

    def test_write_survives_reopening(self, driver: Store, harness: Harness[Store]) -> None:
        ingest = driver.ingest("kept")
        ingest.write(b"before the crash, ")
        ingest.close()
        driver = harness.reopen()
        assert list(driver.ingests()) == [("kept", 18)]
        ingest = driver.ingest("kept")
        assert ingest.offset == 18
        ingest.write(b"after it")
        whole = b"before the crash, after it"
        ingest.commit(len(whole), digest_of(whole), {})
        assert get(driver, digest_of(whole)) == whole

    def test_truncate_starts_over(self, driver: Store) -> None:
        ingest = driver.ingest("cut")
        ingest.write(b"the wrong beginning")
        ingest.truncate()
        assert ingest.offset == 0
        ingest.write(b"right")
        ingest.commit(5, digest_of(b"right"), {})
        assert get(driver, digest_of(b"right")) == b"right"

    def test_one_writer_for_each_ref(self, driver: Store) -> None:
        first = driver.ingest("single")
        with pytest.raises(InUse):
            driver.ingest("single")
        driver.ingest("other").close()
        first.write(b"undisturbed")
        first.close()
        driver.ingest("single").close()

    def test_refs_are_any_text(self, driver: Store, harness: Harness[Store]) -> None:
        """A ref that looks like a path writes nowhere else: it is data or it is Invalid."""
        before = set(harness.directory.parent.iterdir()) | set(harness.directory.iterdir()) | {harness.root}
        for ref in (
            "../../outside",
            "/outside",
            "a/b/../../../../outside",
            "with space",
            "x" * 300,
            "manifest-sha256:ab",
        ):
            try:
                ingest = driver.ingest(ref)
            except Invalid:
                continue
            ingest.write(b"ref")
            ingest.close()
            assert ref in dict(driver.ingests())
            ingest = driver.ingest(ref)
            assert ingest.offset == 3
            ingest.close()
            driver.abort(ref)
        after = set(harness.directory.parent.iterdir()) | set(harness.directory.iterdir()) | {harness.root}
        assert not [path for path in after - before if "outside" in path.name]
        assert not [path for path in harness.root.rglob("outside*") if harness.context.root not in path.parents]

    def test_abort_is_idempotent(self, driver: Store) -> None:
        driver.abort("never was")
        ingest = driver.ingest("dropped")
        ingest.write(b"partial")
        ingest.close()
        driver.abort("dropped")
        driver.abort("dropped")
        assert list(driver.ingests()) == []
        assert driver.ingest("dropped").offset == 0

    def test_open_writes_are_listed(self, driver: Store) -> None:
        first = driver.ingest("one")
        first.write(b"abc")
        driver.ingest("two").close()
        assert sorted(driver.ingests()) == [("one", 3), ("two", 0)]
        first.commit(3, digest_of(b"abc"), {})
        driver.abort("two")
        assert list(driver.ingests()) == []

    # many at once

    def test_threads_write_side_by_side(self, driver: Store) -> None:
        blobs = [os.urandom(5000 + index) for index in range(32)]

        def write(index: int) -> str:
            return put(driver, blobs[index], f"ref-{index}")

        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(write, range(len(blobs))))
        assert walked(driver) == sorted(digests)
        assert all(get(driver, Digest(digest)) == data for digest, data in zip(digests, blobs, strict=True))

    def test_one_thread_gets_the_ref(self, driver: Store) -> None:
        def take(_: int) -> Any:
            try:
                return driver.ingest("contended")
            except InUse:
                return None

        with ThreadPoolExecutor(8) as pool:
            taken = [ingest for ingest in pool.map(take, range(24)) if ingest is not None]
        assert len(taken) == 1
        taken[0].close()

    def test_failed_commit_can_be_repaired(self, driver: Store) -> None:
        """After Invalid the ref is free again, by abort, and the right bytes can be written."""
        ingest = driver.ingest("repair")
        ingest.write(b"wrong")
        with pytest.raises(Error):
            ingest.commit(5, digest_of(b"right"), {})
        ingest.close()
        driver.abort("repair")
        assert put(driver, b"right", "repair") == digest_of(b"right")
