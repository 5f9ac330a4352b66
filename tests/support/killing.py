"""Verbs on images, killed by SIGKILL at each of their durable steps, the engine or a worker: ``python -m support.killing``.

Arguments: a verb, whom to kill ("engine" or "worker"; "errors" and "worker-errors" kill nobody, but have the step fail with
ENOSPC, EIO, EMFILE and ENOMEM: with each where all steps are taken, else in turn), the snapshotter, a directory, and how many kills to
take at most (0: all). Steps are counted in a run that nobody kills; each kill has a state of its
own, which a fork of this process makes, another one checks. Prints one JSON object: steps, killed, whole (the verb was through before
its step came).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import apsw

import wherry
from support.images_area import World, image_layout, mounted, pack, world
from support.layers import directory, hard, link, member, tar, tree
from wherry.api import Error, NotFound, PluginFault
from wherry.engine.workers import zygote
from wherry_plugins.store.local.ingest import LocalIngest
from wherry_plugins.store.local.store import LocalStore

NAME = "docker.io/library/x:1"
LAYERS = [
    tar(directory("a"), member("a/one", data=b"1" * 3000), link("a/to", "one"), member("gone", data=b"x")),
    tar(member("a/two", data=b"2" * 5000), hard("a/three", "a/two"), member(".wh.gone")),
    tar(directory("b", mode=0o700, uid=7), *(member(f"b/{n}", data=os.urandom(100)) for n in range(6))),
]


ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ENOMEM)


class Steps:
    """Counts, and kills this process before the step with a number, or has that step fail."""

    def __init__(self, at: int = 0, *, error: int = 0) -> None:
        self.at = at
        self.error = error
        self.count = 0
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self.count += 1
            hit = self.count == self.at
        if hit and self.error:
            raise OSError(self.error, os.strerror(self.error))
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.step()
            return real(*arguments, **options)

        setattr(owner, name, wrapped)


_hooks: list[Callable[[], None]] = []
_connection = apsw.Connection


def _connect(*arguments: Any, **options: Any) -> Any:
    made = _connection(*arguments, **options)
    made.set_commit_hook(lambda: any(hook() for hook in _hooks))
    return made


def arm_engine(steps: Steps) -> None:
    """What the engine's process does to a disk: files that come, move, change and go, and transactions before they are committed."""
    for name in (
        "fsync",
        "link",
        "rename",
        "replace",
        "unlink",
        "mkdir",
        "rmdir",
        "ftruncate",
        "posix_spawn",
        "setxattr",
    ):
        steps.wrap(os, name)
    steps.wrap(LocalIngest, "write")
    _hooks.append(steps.step)


WORKER = """
import os, signal, sys
_left = [{at}]
def _hook(event, arguments):
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
        return
    if event.startswith("os.") or event == "open":
        _left[0] -= 1
        if not _left[0] and {error}:
            raise OSError({error}, os.strerror({error}))
        if not _left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(_hook)
"""


def arm_worker(made: World, at: int, error: int) -> None:
    """Each worker dies at its step at, those of what forked it counted too, or has it fail."""
    made.workers._nursery.rest()  # one that is there would go on without
    zygote._START = WORKER.format(at=at, error=error) + zygote._START


def verb(made: World, name: str, source: str) -> None:
    match name:
        case "pull":
            list(made.images.pull(source))
        case "load":
            made.images.load(source)
        case "unpack":
            made.images.ensure(NAME, made.drivers)
        case "import":
            made.images.import_image(
                f"archive:rootfs:{Path(source.removeprefix('archive:')).with_name('tree.tar')}", "x:1", (), ""
            )
        case "gc":
            made.images.gc()
        case "rmi":
            made.images.remove("x:1")


def prepare(made: World, name: str, source: str) -> None:
    """What the verb finds."""
    if name in ("unpack", "rmi", "gc"):
        made.images.load(source)
    if name in ("rmi", "gc"):
        made.images.ensure(NAME, made.drivers)
    if name == "gc":
        made.drivers.store.untag(NAME)
        ingest = made.drivers.store.ingest("fetch-sha256:abandoned")
        ingest.write(b"half")
        ingest.close()


def doctor(at: Path) -> None:
    """A whole engine over what was left: the first look may find and mend something, the second finds nothing."""
    with wherry.Engine(root=at / "root", run=at / "run", config=at / "config.toml") as engine:
        engine.doctor(repair=True)
        assert engine.doctor() == ()
        assert engine.doctor() == ()


def check(at: Path, snapshotter: str, name: str, source: str, expected: Any) -> None:
    """After a kill: nothing that is there is wrong, the verb can be done again, and what is left over can be collected."""
    root = at / "root"
    for path in (root / "store/local/blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    with world(at, snapshotter) as made:
        store = made.drivers.store
        rows = {info.digest.partition(":")[2] for info in store.walk()}
        assert rows == set(os.listdir(root / "store/local/blobs/sha256")), "each row has its file and the reverse"
        refs = [ref for ref, _offset in store.ingests()]
        assert len(refs) == len(os.listdir(root / "store/local/ingest"))
        whole(made)
        if name in ("gc", "rmi"):
            with contextlib.suppress(NotFound):
                verb(made, name, source)
            with contextlib.suppress(NotFound):
                made.images.remove("x:1")
        else:
            verb(made, name, source)
            whole(made)
            ready = made.images.ensure(NAME, made.drivers)
            if name != "import":
                mounts = made.drivers.snapshotter.prepare("c", ready.chain_id)
                with mounted(mounts, at / "mnt") as tree_root:
                    assert tree(tree_root) == expected, "the tree of the image"
                made.drivers.snapshotter.remove("c")
            made.images.remove("x:1")
        made.images.gc()
        again = made.images.gc()
        assert (again.blobs, again.snapshots) == ((), ())
        assert list(store.walk()) == []
        assert list(store.ingests()) == []
        assert list(made.drivers.snapshotter.walk()) == []
    assert os.listdir(root / "store/local/blobs/sha256") == []
    assert os.listdir(root / "store/local/ingest") == []
    assert os.listdir(root / f"snapshotter/{snapshotter}/snapshots") == []


def whole(made: World) -> None:
    """Each name leads to blobs that are there."""
    store = made.drivers.store
    there = {info.digest for info in store.walk()}
    for image in store.list():
        reached = [item.digest for item in made.images._documents.references(store, image.target)]
        assert len(reached) > 2
        assert set(reached) <= there, "an acknowledged name lacks blobs"


def in_child(work: Callable[[], int | None]) -> int:
    """Does the work in a fork; its answer, or -9 when it was killed. What it raises is printed, and ends this process, too."""
    pid = os.fork()
    if not pid:
        code = 70
        try:
            code = work() or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sys.exit("child hung")
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    if code == 70:
        sys.exit(1)
    return code


def again(made: World, name: str, source: str) -> None:
    """The same verb works, at once or when a driver that failed to begin is asked again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with contextlib.suppress(NotFound):  # gone by now, for a verb that removes
                verb(made, name, source)
        except PluginFault:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def attempt(
    name: str, victim: str, snapshotter: str, at: int, number: int, where: Path, source: str, report: Path
) -> int:
    """The verb, killed at a step, or failing there with the errno number; 0 when it came through, 3 when it failed because of that."""
    with world(where, snapshotter) as made:
        prepare(made, name, source)
        if victim.startswith("worker"):
            start = zygote._START
            arm_worker(made, at, number)
            try:
                verb(made, name, source)
            except (Error, OSError) as error:  # nothing else may come out
                if not number and "ended without an answer" not in str(error):
                    raise
            else:
                return 0
            zygote._START = start
            made.workers._nursery.rest()
            again(made, name, source)
            return 3
        steps = Steps(at, error=number)
        arm_engine(steps)
        try:
            verb(made, name, source)
        except (Error, OSError):  # nothing else may come out
            if victim == "engine":
                raise
            steps.at = 0
            again(made, name, source)
            return 3
        report.write_text(str(steps.count))
    return 0


def tree_of(where: Path, snapshotter: str, source: str, at: Path) -> dict[str, Any]:
    """The image's tree, as it is when nobody is killed."""
    with world(where, snapshotter) as made:
        ready = made.images.ensure(source, made.drivers)
        with mounted(made.drivers.snapshotter.prepare("c", ready.chain_id), at) as root:
            return tree(root)


def faults(points: range, *, errors: bool, whole: bool) -> list[tuple[int, int]]:
    """(step, errno to fail with or 0)."""
    if not errors:
        return [(at, 0) for at in points]
    if whole:
        return [(at, number) for at in points for number in ERRORS]
    return [(at, ERRORS[at % len(ERRORS)]) for at in points]


def main(name: str, victim: str, snapshotter: str, top: Path, most: int, without: str = "") -> None:
    """without "recovery": the twin, whose store does not end what a crash cut short."""
    if without == "recovery":
        LocalStore._recover = lambda self: None  # type: ignore[method-assign]
    image_layout(top / "layout", LAYERS, Env=["A=b"])
    index = json.loads((top / "layout/index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "x:1"}
    (top / "layout/index.json").write_text(json.dumps(index))
    source = f"archive:{pack(top / 'layout', top / 'x.tar')}"
    (top / "tree.tar").write_bytes(LAYERS[0])
    apsw.Connection = _connect  # type: ignore[misc]
    kept, report = top / "expected", top / "report"

    def look() -> None:
        kept.write_bytes(pickle.dumps(tree_of(top / "first", snapshotter, source, top / "mnt")))

    in_child(look)
    expected = pickle.loads(kept.read_bytes())

    def run(at: int, where: Path, number: int = 0) -> int:
        return in_child(lambda: attempt(name, victim, snapshotter, at, number, where, source, report))

    if victim.startswith("worker"):
        total = next(at for at in (16, 32, 64, 128, 256, 512) if run(at, top / f"probe{at}") == 0)
    else:
        assert run(0, top / "count") == 0
        total = int(report.read_text())
    killed = passed = 0
    points = range(1, total + 1, max(1, -(-total // most)) if most else 1)
    for at, number in faults(points, errors="errors" in victim, whole=not most):
        where = top / f"at{at}-{number}"
        code = run(at, where, number)
        assert code in (-9, 0, 3), code
        killed += code != 0
        passed += code == 0
        if victim == "engine" and killed % 3 == 1:
            in_child(partial(doctor, where))
        in_child(partial(check, where, snapshotter, name, source, expected))
        shutil.rmtree(where)
    print(json.dumps({"steps": total, "killed": killed, "whole": passed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])
