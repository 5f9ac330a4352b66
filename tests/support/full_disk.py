"""Engines on a full disk, each in a process of its own, so that the disk can be unmounted after it: ``python -m support.full_disk``.

Arguments: a verb of this module, the disk, the run directory, and what the verb wants.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import wherry
from wherry.api import Engine, Error, RunRequest
from wherry.engine.state.reserve import SIZE, DiskReserve

MIB = 1 << 20


@contextlib.contextmanager
def opened(disk: Path, run: Path) -> Iterator[Engine]:
    with wherry.Engine(root=disk / "root", run=run) as engine:
        yield engine


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, left: int = 0) -> None:
    """Takes all of the disk but about so many bytes."""
    fd = os.open(disk / f"fill{len(list(disk.glob('fill*')))}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    size = 0
    try:
        for piece in (MIB, 64 << 10, 1 << 10):
            with contextlib.suppress(OSError):
                while free(disk) > left:
                    step = min(piece, max(free(disk) - left, 1))
                    os.posix_fallocate(fd, size, step)
                    size += step
    finally:
        os.close(fd)


def empty(disk: Path) -> None:
    for path in disk.glob("fill*"):
        path.unlink()


def sound(engine: Engine) -> None:
    """Blobs are what their names say, and doctor, twice, has nothing to say."""
    root = Path(engine.info().root)
    for path in (root / "store/local/blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert engine.doctor() == ()
    assert engine.doctor() == ()


def tells(error: Error | OSError) -> bool:
    """Whether an error says what is the matter."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return "full" in str(error) or "no space left" in str(error).lower()


def leftovers(disk: Path) -> list[str]:
    return [name for place in ("blobs/sha256", "ingest") for name in os.listdir(disk / "root/store/local" / place)]


def bring(disk: Path, run: Path, small: str, big: str, left: str) -> None:
    """A pull that has only so much room; then, with all room, another."""
    with opened(disk, run) as engine:
        engine.load(small)
        before = [image.id for image in engine.images()]
        fill(disk, int(left))
        problem: Error | OSError | None = None
        try:
            list(engine.pull(big))
        except (Error, OSError) as error:
            problem = error
        if problem is None:
            assert int(left) > 6 * MIB, "it can't have fitted"
        else:
            assert tells(problem), repr(problem)
            assert [image.id for image in engine.images()] == before
        sound(engine)
        empty(disk)
        assert list(engine.pull(big))[-1].status == "done"
        sound(engine)
        for image in engine.images():
            engine.remove_image(image.id, force=True)
        engine.gc()
        assert leftovers(disk) == []


def prepare(disk: Path, run: Path, busybox: str, small: str, keep: str) -> None:
    """Images and a container on a disk that is then full. keep "": without the reserve."""
    if not keep:
        DiskReserve.used = lambda self: contextlib.nullcontext()  # type: ignore[method-assign]
    with opened(disk, run) as engine:
        (image,) = engine.load(busybox)
        engine.load(small)
        engine.create(RunRequest(image=image.names[0], command=("true",), name="one"))
        if keep:
            assert (disk / "root/reserve").stat().st_size == SIZE
    fill(disk)
    assert free(disk) < 4096


def make_room(disk: Path, run: Path, keep: str) -> None:
    """Container and images go, on the full disk, by an engine that is started there."""
    if not keep:
        DiskReserve.used = lambda self: contextlib.nullcontext()  # type: ignore[method-assign]
    with opened(disk, run) as engine:
        engine.remove("one")
        for image in engine.images():
            engine.remove_image(image.id, force=True)
        engine.gc()
        assert engine.images() == ()
        assert engine.containers(all=True) == ()
        sound(engine)
        engine.gc()
        assert leftovers(disk) == []
        assert free(disk) > MIB


if __name__ == "__main__":
    verb, disk_, run_, *rest = sys.argv[1:]
    globals()[verb](Path(disk_), Path(run_), *rest)
