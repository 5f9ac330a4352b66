"""Workers: what they do, what they can't see, and how they end."""

from __future__ import annotations

import encodings
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from support.layers import Inside, digest, link, member, tar, tree
from wherry.api import Descriptor, Digest, IdMap, Invalid, Mount, Unavailable
from wherry.engine.workers import zygote as module
from wherry.engine.workers.pool import WorkerPool
from wherry.layers import apply, listing
from wherry.layers.archive import Archive
from wherry.spec.distribution import LAYER
from wherry_plugins.transport.archive.transport import ArchiveTransport

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    (tmp_path / "run").mkdir()
    made = WorkerPool(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def root(tmp_path: Path) -> tuple[Mount, ...]:
    (tmp_path / "fs").mkdir()
    return (Mount("bind", str(tmp_path / "fs"), "", ("rbind", "rw")),)


def unpack(
    pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path, data: bytes, wanted: str = "", **more: Any
) -> str:
    path = tmp_path / "blob"
    path.write_bytes(data)
    with path.open("rb") as stream:
        return pool.unpack(root, Descriptor("", wanted or digest(data), len(data)), stream, **more)  # type: ignore[arg-type]


def test_unpack_and_usage(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    data = tar(member("f", data=b"x" * 100_000), member("g", data=b"y"))
    assert unpack(pool, root, tmp_path, data) == digest(data)
    assert sorted(os.listdir(tmp_path / "fs")) == ["f", "g"]
    size, inodes = pool.usage(root)
    assert 100_000 < size < 200_000
    assert inodes == 3


def test_copy(pool: WorkerPool, tmp_path: Path) -> None:
    """One directory onto another, whatever is in it; the engine has no part in it."""
    for name in ("a/d", "b", "c"):
        (tmp_path / "top" / name).mkdir(parents=True)
    source = tmp_path / "top/a"
    (source / "d/file").write_bytes(os.urandom(100_000))
    os.link(source / "d/file", source / "again")
    (source / "link").symlink_to("/nowhere")
    os.mkfifo(source / "fifo", 0o622)
    for name in ("d/file", "link", "fifo"):
        os.setxattr(source / name, "trusted.kept", name.encode(), follow_symlinks=False)
    os.chown(source / "d", 5, 6)
    mounts = (Mount("bind", str(tmp_path / "top"), "", ("bind", "rw")),)
    pool.copy(mounts, "a", "b")
    assert tree(tmp_path / "top/b", times=True) == tree(source, times=True)
    pool.copy(mounts, "a", "c", IdMap(((0, 1000, 10),), ((0, 2000, 10),)), reflink=False)
    assert ((tmp_path / "top/c/d").stat().st_uid, (tmp_path / "top/c/d").stat().st_gid) == (1005, 2006)
    with pytest.raises(FileNotFoundError):
        pool.copy(mounts, "gone", "b")


def test_ids_are_mapped(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    idmap = IdMap(((0, 100_000, 1000),), ((0, 200_000, 1000),))
    unpack(pool, root, tmp_path, tar(member("f", uid=5, gid=6)), idmap=idmap)
    assert ((tmp_path / "fs/f").stat().st_uid, (tmp_path / "fs/f").stat().st_gid) == (100_005, 200_006)
    with pytest.raises(Invalid, match="owner 1000"):
        unpack(pool, root, tmp_path, tar(member("f", uid=1000)), idmap=idmap)


def test_errors_come_back_typed(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="digest"):
        unpack(pool, root, tmp_path, tar(member("f")), digest(b"other"))
    with pytest.raises(Invalid, match="cut short"):
        unpack(pool, root, tmp_path, tar(member("f", data=b"x" * 1000))[:700])
    with pytest.raises(FileNotFoundError):
        pool.usage((Mount("bind", "/nowhere", "", ("rbind", "ro")),))
    with pytest.raises(OSError):
        unpack(pool, (Mount("bind", str(tmp_path / "fs"), "", ("rbind", "ro")),), tmp_path, tar(member("f")))
    with pytest.raises(Invalid, match="root"):
        pool.usage(())


def test_a_tar_is_described(pool: WorkerPool, tmp_path: Path) -> None:
    data = tar(member("f", data=b"x" * 100_000), member("g", data=b"y"))
    path = tmp_path / "r.tar"
    for packed, suffix in ((data, ""), (gzip.compress(data), "+gzip")):
        path.write_bytes(packed)
        with path.open("rb") as stream:
            found = pool.describe(stream)
        assert found == Descriptor(LAYER + suffix, Digest(digest(packed)), len(packed), {"diff-id": digest(data)})
    for bad, why in ((data[:700], "cut short"), (bytes(10240), "empty"), (b"no tar at all" * 100, "checksum")):
        path.write_bytes(bad)
        with path.open("rb") as stream, pytest.raises(Invalid, match=why):
            pool.describe(stream)


def listed(pool: WorkerPool, tmp_path: Path, blob: bytes) -> list[Any]:
    (tmp_path / "blob").write_bytes(blob)
    with (tmp_path / "blob").open("rb") as stream, (tmp_path / "spool").open("w+b") as spool:
        count = pool.entries(stream, spool)
        spool.seek(0)
        found = [json.loads(line) for line in spool]
    assert len(found) == count
    return found


def test_a_layer_is_listed(pool: WorkerPool, tmp_path: Path) -> None:
    data = tar(
        member("./d/", tarfile.DIRTYPE), member("d/f\n\udcff", data=b"x" * 5), link("l", "d/f"), member("d/.wh.gone"),
        member("d/.wh..wh..opq"), member("p", tarfile.FIFOTYPE),
    )  # fmt: skip
    wanted = [
        ["d", "directory", 0, ""], ["d/f\n\\xff", "file", 5, ""], ["l", "symlink", 0, "d/f"], ["d/gone", "whiteout", 0, ""],
        ["d", "opaque", 0, ""], ["p", "fifo", 0, ""],
    ]  # fmt: skip
    assert listed(pool, tmp_path, data) == listed(pool, tmp_path, gzip.compress(data)) == wanted
    for bad, why in ((data[:700], "cut short"), (b"no tar at all" * 100, "checksum")):
        with pytest.raises(Invalid, match=why):
            listed(pool, tmp_path, bad)


@pytest.mark.parametrize("twin", [False, True])
def test_a_layer_of_too_many_entries_is_not_listed(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """A hundred kilobytes that name two hundred thousand files: neither the spool nor the reader would know an end."""
    piece = tar(member("f"))[:512]
    blob = gzip.compress(piece * 200_000, 9)
    assert len(blob) < 500_000
    if not twin:
        with pytest.raises(Invalid, match="bomb"):
            listed(pool, tmp_path, blob)
        assert (tmp_path / "spool").stat().st_size < 8 << 20
        return
    monkeypatch.setattr(listing, "afford", lambda *_: None)
    inside = Inside(tmp_path)  # where the step can be left out
    with (tmp_path / "blob").open("w+b") as stream, (tmp_path / "spool").open("w+b") as spool:
        stream.write(blob)
        stream.seek(0)
        assert inside.entries(stream, spool) == 200_000


def test_links_count_as_names_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets go into the list as well, four kilobytes for each entry."""
    monkeypatch.setattr(apply, "COST_FREE", 20_000)
    blob = gzip.compress(tar(*(link(f"l{number}", "x" * 4000) for number in range(10))))
    (tmp_path / "blob").write_bytes(blob)
    with (tmp_path / "blob").open("rb") as stream, (tmp_path / "spool").open("w+b") as spool:
        with pytest.raises(Invalid, match="bomb"):
            Inside(tmp_path).entries(stream, spool)


@pytest.mark.parametrize("twin", [False, True])
def test_the_engine_itself_reads_no_tar(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """Python that goes through a hundred thousand headers would slow down every other request."""
    read: list[object] = []
    real = Archive.__init__

    def reading(self: Archive, *arguments: Any, **options: Any) -> None:
        read.append(self)
        real(self, *arguments, **options)

    monkeypatch.setattr(Archive, "__init__", reading)
    (tmp_path / "r.tar").write_bytes(lzma.compress(tar(member("f", data=b"x" * 100_000))))
    transport = ArchiveTransport(tmp_path, 1 << 30, Inside(tmp_path) if twin else pool)
    try:
        (found,) = transport.resolve(f"rootfs:{tmp_path}/r.tar", "linux/amd64")
        assert found.target.size
    finally:
        transport.close()
    assert bool(read) == twin
    read.clear()
    assert len(listed(Inside(tmp_path) if twin else pool, tmp_path, tar(member("f")))) == 1
    assert bool(read) == twin


def test_a_worker_does_not_see_the_host(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    """Whatever a link says, "/" is the snapshot; and the directories of the host's tree are not even mounted."""
    unpack(
        pool,
        root,
        tmp_path,
        tar(link("up", "/" + "../" * 30 + str(tmp_path).lstrip("/")), member("up/evil", data=b"e")),
    )
    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "fs" / str(tmp_path).lstrip("/") / "evil").read_bytes() == b"e"


def test_mounts_stay_inside_the_worker(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    unpack(pool, root, tmp_path, tar(member("f")))
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.listdir(tmp_path / "run/worker") == []


def test_python_of_the_image_is_not_imported(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    """CVE-2019-14271's kind: after the root changed, a lazy import would run the image's own modules."""
    code = b"open('/ran', 'w').write('x')\n"
    names = [
        f"{directory}/{name}"
        for directory in ("usr/lib/python3.13/encodings", "encodings")
        for name in ("idna.py", "cp437.py")
    ]
    data = tar(*(member(name, data=code) for name in names), member("\udcff-odd", data=b"x"), member("ü", data=b"x"))
    unpack(pool, root, tmp_path, data)
    with pytest.raises(Invalid):
        unpack(pool, root, tmp_path, data[: len(data) // 2])
    assert not (tmp_path / "fs/ran").exists()


LAZY = """
import wherry.layers.apply as module
_real = module.apply
def _lazy(*arguments, **options):
    done = _real(*arguments, **options)
    try:
        b"x".decode("cp437")
    except LookupError:
        pass
    return done
module.apply = _lazy
"""
KEPT = """
class _Kept(list):
    def clear(self):
        pass
sys.meta_path = _Kept(sys.meta_path)
"""


@pytest.mark.parametrize("twin", [False, True])
def test_no_import_once_the_root_is_the_images(
    pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    """A worker that asks for a codec when it is too late. The twin has not forgotten how to import: the image's module runs."""
    start = module._START.replace("main()", f"exec({LAZY + (KEPT if twin else '')!r}); main()")
    assert start != module._START
    monkeypatch.setattr(module, "_START", start)
    name = str(Path(encodings.__file__).parent / "cp437.py")
    unpack(pool, root, tmp_path, tar(member(name, data=b"open('/ran', 'w').write('x')\n")))
    assert (tmp_path / "fs/ran").exists() is twin


def test_a_stem_that_does_not_answer_is_replaced(
    pool: WorkerPool, root: tuple[Mount, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINGER", 60.0)
    pool.usage(root)
    stem = pool._nursery._stem
    assert stem is not None
    assert stem[1].gettimeout(), "one that was stopped would hold up all jobs"
    stem[1].settimeout(0.1)
    os.kill(stem[0], signal.SIGSTOP)
    assert pool.usage(root)[1] == 1
    assert pool._nursery._stem not in (None, stem)
    assert not Path(f"/proc/{stem[0]}").exists()


def _fifo(tmp_path: Path) -> tuple[Any, int]:
    """A stream that gives nothing until its writer does."""
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb"), writer


def test_at_most_one_a_cpu(pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    real = WorkerPool._ask

    def counted(self: WorkerPool, *args: Any) -> bytes:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            return real(self, *args)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(WorkerPool, "_ask", counted)
    (tmp_path / "x").mkdir()
    mounts = (Mount("bind", str(tmp_path / "x"), "", ("rbind", "ro")),)
    threads = [threading.Thread(target=pool.usage, args=(mounts,)) for _ in range(3 * (os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= (os.cpu_count() or 1)


def _work(pool: WorkerPool, root: tuple[Mount, ...], stream: BinaryIO, caught: list[BaseException]) -> None:
    """Has a worker unpack what the stream brings; its error is kept."""
    try:
        pool.unpack(root, Descriptor("", digest(b""), 0), stream)  # type: ignore[arg-type]
    except BaseException as error:
        caught.append(error)


def test_close_kills_what_works(pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path) -> None:
    stream, writer = _fifo(tmp_path)
    caught: list[BaseException] = []
    thread = threading.Thread(target=_work, args=(pool, root, stream, caught))
    thread.start()
    while not pool._pids:
        time.sleep(0.01)
    pool.close()
    thread.join()
    os.close(writer)
    stream.close()
    assert isinstance(caught[0], Unavailable)
    with pytest.raises(Unavailable, match="stopping"):
        pool.usage(root)


def test_a_worker_dies_with_its_engine(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "fs").mkdir()
    code = """
import os, sys, threading
from pathlib import Path
from wherry.api import Descriptor, Mount
from wherry.engine.workers.pool import WorkerPool
top = Path(sys.argv[1])
pool = WorkerPool(top / "run")
stream = os.fdopen(0, "rb")
root = (Mount("bind", str(top / "fs"), "", ("rbind", "rw")),)
threading.Thread(target=pool.unpack, args=(root, Descriptor("", "sha256:" + "0" * 64, 0), stream), daemon=True).start()
while not pool._pids: pass
print(*pool._pids, flush=True)
threading.Event().wait()
"""
    engine = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert engine.stdout is not None
    worker = int(engine.stdout.readline())
    time.sleep(0.3)
    assert Path(f"/proc/{worker}").exists()
    assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, 0)
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("the worker lives on")
    for pipe in (engine.stdin, engine.stdout):
        assert pipe is not None
        pipe.close()


def test_a_worker_that_dies_is_unavailable(
    pool: WorkerPool, root: tuple[Mount, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START", "import os; os._exit(3)")
    with pytest.raises(Unavailable, match="without an answer"):
        pool.usage(root)


def test_a_worker_has_what_it_needs_open_and_nothing_else(
    pool: WorkerPool, root: tuple[Mount, ...], tmp_path: Path
) -> None:
    """Not what other threads have open just now, nor what the program around the engine leaves to its children."""
    kept = os.memfd_create("for-children", 0)
    ours = [os.pidfd_open(os.getpid()), kept]
    stream, writer = _fifo(tmp_path)
    caught: list[BaseException] = []
    threads = [threading.Thread(target=_work, args=(pool, root, stream, caught))]
    try:
        threads[0].start()
        pid = _when(lambda: next(iter(pool._pids), 0))
        seen = _when(lambda: found if _has_a_root(found := _open(pid)) and set(found) <= {0, 1, 2, 3, 4} else {})
        assert not any("for-children" in what or "pidfd" in what for what in seen.values())
    finally:
        os.close(writer)
        threads[0].join()
        stream.close()
        for fd in ours:
            os.close(fd)


def _open(pid: int) -> dict[int, str]:
    """A worker's descriptors, once it is one."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def _has_a_root(found: dict[int, str]) -> bool:
    """The root of its tree is the last thing that a worker opens before it reads the stream."""
    return any(fd != 2 and what.startswith("/") and "memfd" not in what for fd, what in found.items())


def _when(look: Any) -> Any:
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
