"""CVE-2019-5736 through the whole engine: a container that waits for whoever joins it, to write to the program that it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import engine_of_a_module
from support.running import execute
from wherry.api import Bind, Engine, RunRequest

pytestmark = pytest.mark.shared
BOUND = 60.0
IMAGE = "host:/bin/sh,/bin/cp,/bin/sleep"

#: Holds the program of each process that it can look into, and opens it for writing once nobody executes it any more. It appends
#: nothing: that it could is all that counts.
SPINNER = """
while :; do
    for p in /proc/[0-9]*; do
        [ $p = /proc/1 ] && continue
        name=; read name < $p/comm && echo "met $name"
        { for again in 1 2 3 4 5 6 7 8; do true >> /proc/self/fd/9 && echo "writable $name" && break; done } 9< $p/exe
    done
done 2> /dev/null >> /out/log
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        yield made


def said(engine: Engine, out: Path, command: str, wanted: str) -> str:
    """What a spinner has met by the time that it met what is wanted, while command is executed beside it again and again."""
    out.mkdir()
    mounts = (Bind("bind", str(out), "/out"),)
    id = engine.run(RunRequest(IMAGE, ("/bin/sh", "-c", SPINNER), mounts=mounts, remove=True)).id
    try:
        deadline = time.monotonic() + BOUND
        while wanted not in (log := (out / "log").read_text() if (out / "log").exists() else ""):
            assert time.monotonic() < deadline, f"it never said {wanted!r}: {set(log.splitlines())}"
            execute(engine, id, "/bin/sh", "-c", command)
        return log
    finally:
        engine.remove(id, force=True)


def test_who_joins_a_container_is_not_written_to(engine: Engine, tmp_path: Path) -> None:
    log = said(engine, tmp_path / "out", ":", "met wherry-shim")
    assert "writable" not in log


def test_who_joins_a_container_is_not_written_to_twin(engine: Engine, tmp_path: Path) -> None:
    """What lies where the container may write, and may be looked into, it does write to: the spinner is good enough."""
    command = "cp /bin/sleep /decoy; /decoy 0.01"
    assert "writable decoy" in said(engine, tmp_path / "out", command, "writable decoy")
