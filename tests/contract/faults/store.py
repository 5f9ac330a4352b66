"""Faulty image stores, one for each clause."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from attrs import evolve

from contract.faults import planted
from contract.reference.store import FileIngest, FileStore
from wherry.api import AlreadyExists, BlobInfo, Context, Descriptor, Digest, Image, Labels, NotFound
from wherry.testing import StoreContract


def breaks(*clauses: str):
    return planted(StoreContract, *clauses)


@breaks("committed_blob_is_visible")
class ForgetsLabelsAtCommit(FileStore):
    def publish(self, ingest: FileIngest, data: bytes, digest: Digest, labels: Labels) -> BlobInfo:
        return super().publish(ingest, data, digest, {})


@breaks("committed_blob_is_visible")
class CreatedInSeconds(FileStore):
    def info(self, digest: Digest) -> BlobInfo:
        return evolve(super().info(digest), created=int(time.time()))


class EagerIngest(FileIngest):
    def write(self, data: bytes | memoryview, /) -> int:
        import hashlib

        written = super().write(data)
        whole = self.path.read_bytes()
        digest = Digest("sha256:" + hashlib.sha256(whole).hexdigest())
        self.store.state.table("blobs")[digest] = {"number": 0, "size": len(whole), "created": 0, "labels": {}}
        return written


@breaks("uncommitted_blob_is_not_visible")
class ShowsPartialBlobs(FileStore):
    ingest_class = EagerIngest


class FixedIngest(FileIngest):
    def reader(self) -> BinaryIO:
        copy = self.path.with_name("copy")
        copy.write_bytes(self.path.read_bytes())
        return copy.open("rb")


@breaks("partial_blob_can_be_read")
class ReadersSeeWhatWasThere(FileStore):
    ingest_class = FixedIngest


class TrustingIngest(FileIngest):
    def verify(self, data: bytes, size: int | None, digest: Digest) -> None:
        return


@breaks(
    "wrong_digest_is_invalid_and_not_visible", "wrong_size_is_invalid_and_not_visible", "failed_commit_can_be_repaired"
)
class NeverVerifies(FileStore):
    ingest_class = TrustingIngest


class LateIngest(FileIngest):
    def commit(self, size: int | None, digest: Digest, labels: Labels) -> BlobInfo:
        info = self.store.publish(self, self.path.read_bytes(), digest, labels)
        self.verify(self.store.file("blob", self.store.blob(digest)["number"]).read_bytes(), size, digest)
        return info


@breaks("wrong_digest_is_invalid_and_not_visible", "wrong_size_is_invalid_and_not_visible")
class VerifiesAfterPublishing(FileStore):
    ingest_class = LateIngest


class StrictIngest(FileIngest):
    def verify(self, data: bytes, size: int | None, digest: Digest) -> None:
        super().verify(data, -1 if size is None else size, digest)


@breaks("size_may_be_left_open")
class WantsASize(FileStore):
    ingest_class = StrictIngest


@breaks("empty_blob")
class RefusesEmptyBlobs(FileStore):
    def open(self, digest: Digest) -> BinaryIO:
        if self.info(digest).size == 0:
            raise NotFound(f"blob {digest}", "empty")
        return super().open(digest)


@breaks("stream_is_seekable_and_has_fileno")
class StreamsFromMemory(FileStore):
    def open(self, digest: Digest) -> BinaryIO:
        with super().open(digest) as file:
            return io.BytesIO(file.read())


@breaks("streams_have_positions_of_their_own")
class SharesOneStream(FileStore):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.streams: dict[str, BinaryIO] = {}

    def open(self, digest: Digest) -> BinaryIO:
        if digest not in self.streams:
            self.streams[digest] = super().open(digest)
        return self.streams[digest]

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()


@breaks("missing_blob_is_not_found")
class MakesUpInfo(FileStore):
    def info(self, digest: Digest) -> BlobInfo:
        return BlobInfo(digest, 0, 0, {})


@breaks("hostile_digest_names_no_file")
class OpensAnyPath(FileStore):
    def open(self, digest: Digest) -> BinaryIO:
        try:
            return super().open(digest)
        except NotFound:
            (self.context.root / "blobs").mkdir(exist_ok=True)
            return (self.context.root / "blobs" / digest.partition(":")[2]).open("rb")


@breaks("walk_lists_each_blob_once")
class WalksTwice(FileStore):
    def walk(self) -> Iterator[BlobInfo]:
        yield from super().walk()
        yield from super().walk()


@breaks("delete_is_idempotent")
class DeletesOnce(FileStore):
    def delete(self, digest: Digest) -> None:
        self.info(digest)
        super().delete(digest)


@breaks("marked_blob_counts_as_absent", "marked_blob_is_not_written_before_it_is_gone")
class MarksNothing(FileStore):
    def mark(self, digests: Collection[Digest]) -> None:
        return


@breaks("marked_blob_counts_as_absent")
class WalksMarked(FileStore):
    def walk(self) -> Iterator[BlobInfo]:
        marks, self.marks = self.marks, set()
        try:
            return super().walk()
        finally:
            self.marks = marks


@breaks("unmarked_blob_is_as_before")
class DeletesWhenMarked(FileStore):
    def mark(self, digests: Collection[Digest]) -> None:
        for digest in digests:
            self.delete(digest)


@breaks("unmarked_blob_is_as_before")
class UnmarksNothing(FileStore):
    def unmark(self, digests: Collection[Digest]) -> None:
        return


@breaks("sweep_deletes_what_is_marked")
class SweepsTheMarksOnly(FileStore):
    def sweep(self) -> tuple[BlobInfo, ...]:
        self.marks.clear()
        return ()


@breaks("sweep_deletes_what_is_marked")
class SweepsAll(FileStore):
    def sweep(self) -> tuple[BlobInfo, ...]:
        self.mark([Digest(digest) for digest in self.state.table("blobs")])
        return super().sweep()


@breaks("marked_blob_is_not_written_before_it_is_gone")
class WritesOverMarks(FileStore):
    def ingest(self, ref: str, expected: Descriptor | None = None) -> FileIngest:
        marked = expected is not None and expected.digest in self.marks
        return super().ingest(ref, None if marked else expected)


@breaks("commit_over_a_mark_lasts")
class KeepsTheMark(FileStore):
    def publish(self, ingest: FileIngest, data: bytes, digest: Digest, labels: Labels) -> BlobInfo:
        marked = digest in self.marks
        info = super().publish(ingest, data, digest, labels)
        if marked:
            self.marks.add(digest)
        return info


@breaks("restart_takes_marks_away")
class SweepsWhenClosed(FileStore):
    def close(self) -> None:
        self.sweep()


@breaks("stream_outlives_the_sweep")
class CutsFiles(FileStore):
    def delete(self, digest: Digest) -> None:
        self.file("blob", self.state.table("blobs")[digest]["number"]).write_bytes(b"")
        super().delete(digest)


@breaks("sweep_beside_writers")
class SweepsWithoutALock(FileStore):
    def publish(self, ingest: FileIngest, data: bytes, digest: Digest, labels: Labels) -> BlobInfo:
        known = self.state.table("blobs").get(digest)
        if known is None:
            return super().publish(ingest, data, digest, labels)
        self.mark([digest])
        self.sweep()  # of another thread, between the look and the write
        info = super().publish(ingest, data, digest, labels)
        self.state.table("blobs")[digest] = known
        return info


@breaks("aborted_ref_is_the_next_writers")
class AbortsUnderTheWriter(FileStore):
    def abort(self, ref: str) -> None:
        self.release(ref)
        super().abort(ref)


@breaks("labels_are_set_and_removed")
class ReplacesLabels(FileStore):
    def label(self, digest: Digest, labels: Mapping[str, str | None]) -> BlobInfo:
        kept = {key: text for key, text in labels.items() if text is not None}
        self.state.table("blobs")[digest]["labels"] = kept
        return self.info(digest)


@breaks("blobs_survive_reopening", "references_survive_reopening", "write_survives_reopening")
class RemembersNothing(FileStore):
    def __init__(self, config, context: Context) -> None:
        (context.root / "state.json").unlink(missing_ok=True)
        super().__init__(config, context)


@breaks("present_blob_is_not_written_again")
class WritesAgain(FileStore):
    def ingest(self, ref: str, expected: Descriptor | None = None) -> FileIngest:
        return super().ingest(ref)


@breaks("two_writers_of_one_blob")
class AppendsTheSecond(FileStore):
    def publish(self, ingest: FileIngest, data: bytes, digest: Digest, labels: Labels) -> BlobInfo:
        if digest in self.state.table("blobs"):
            with self.file("blob", self.blob(digest)["number"]).open("ab") as file:
                file.write(data)
        return super().publish(ingest, data, digest, labels)


@breaks("two_writers_of_one_blob")
class KeepsTheSecondWrite(FileStore):
    def publish(self, ingest: FileIngest, data: bytes, digest: Digest, labels: Labels) -> BlobInfo:
        if digest in self.state.table("blobs"):
            return self.info(digest)
        return super().publish(ingest, data, digest, labels)


class FreshIngest(FileIngest):
    def __init__(self, store: FileStore, ref: str, path: Path) -> None:
        path.write_bytes(b"")
        super().__init__(store, ref, path)


@breaks("write_resumes_where_it_ended", "write_survives_reopening", "refs_are_any_text")
class AlwaysStartsOver(FileStore):
    ingest_class = FreshIngest


class StubbornIngest(FileIngest):
    def truncate(self) -> None:
        self.offset = 0


@breaks("truncate_starts_over")
class KeepsTheBytes(FileStore):
    ingest_class = StubbornIngest


@breaks("one_writer_for_each_ref", "one_thread_gets_the_ref")
class LetsTwoWrite(FileStore):
    def ingest(self, ref: str, expected: Descriptor | None = None) -> FileIngest:
        self.writers.clear()
        return super().ingest(ref, expected)


@breaks("one_thread_gets_the_ref")
class ChecksBeforeItLocks(FileStore):
    def ingest(self, ref: str, expected: Descriptor | None = None) -> FileIngest:
        taken = ref in self.writers
        time.sleep(0.02)
        if not taken:
            self.writers.discard(ref)
        return super().ingest(ref, expected)


@breaks("refs_are_any_text")
class RefsArePaths(FileStore):
    def ingest(self, ref: str, expected: Descriptor | None = None) -> FileIngest:
        ingest = super().ingest(ref, expected)
        if ref.startswith("../"):
            (self.context.root / ref).write_text("mine")
        return ingest


@breaks("abort_is_idempotent")
class AbortsOnce(FileStore):
    def abort(self, ref: str) -> None:
        if ref not in self.state.table("writes"):
            raise NotFound(f"ingest {ref!r}", "not there")
        super().abort(ref)


@breaks("abort_is_idempotent")
class AbortKeepsTheBytes(FileStore):
    def abort(self, ref: str) -> None:
        return


@breaks("open_writes_are_listed")
class ListsNoOffsets(FileStore):
    def ingests(self) -> Iterator[tuple[str, int]]:
        return ((ref, 0) for ref, _ in super().ingests())


@breaks("tag_and_resolve")
class DropsTheLabelsOfATag(FileStore):
    def tag(self, name: str, target: Descriptor, labels: Labels, *, expected: Digest | None = None) -> Image:
        return super().tag(name, target, {}, expected=expected)


@breaks("tag_and_resolve")
class ResolvesByPrefix(FileStore):
    def resolve(self, name: str) -> Image:
        for known in self.state.table("images"):
            if name.startswith(known):
                return super().resolve(known)
        return super().resolve(name)


@breaks("descriptor_is_kept_whole")
class DropsThePlatform(FileStore):
    def resolve(self, name: str) -> Image:
        image = super().resolve(name)
        return evolve(image, target=evolve(image.target, platform=""))


@breaks("tag_moves")
class TagsOnce(FileStore):
    def tag(self, name: str, target: Descriptor, labels: Labels, *, expected: Digest | None = None) -> Image:
        if name in self.state.table("images"):
            raise AlreadyExists(f"image {name!r}", "tagged")
        return super().tag(name, target, labels, expected=expected)


@breaks("tag_compares_and_swaps", "untag_compares", "one_swap_wins")
class NeverCompares(FileStore):
    def compare(self, name: str, expected: Digest | None) -> None:
        return


@breaks("one_swap_wins")
class ComparesBeforeItLocks(FileStore):
    def tag(self, name: str, target: Descriptor, labels: Labels, *, expected: Digest | None = None) -> Image:
        self.compare(name, expected)
        time.sleep(0.02)
        return super().tag(name, target, labels)


@breaks("untag_is_idempotent")
class UntagsOnce(FileStore):
    def untag(self, name: str, *, expected: Digest | None = None) -> None:
        self.resolve(name)
        super().untag(name, expected=expected)


@breaks("list_takes_a_prefix")
class ListsByPattern(FileStore):
    def list(self, prefix: str = "") -> Iterator[Image]:
        import fnmatch

        return (image for image in super().list() if fnmatch.fnmatch(image.name, prefix.replace("%", "*") + "*"))


@breaks("threads_write_side_by_side")
class OneFileForAllWrites(FileStore):
    def file(self, kind: str, number: int) -> Path:
        return self.context.root / (kind if kind == "write" else f"{kind}-{number}")
