"""The shim's small parts: log files, ledger, arena, JSON, events, the line cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.shim import arena, compact, launch
from wherry.shim.journal import Journal
from wherry.shim.logfile import HEAD, LogFile, encode_json, encode_local, timestamp
from wherry.shim.output import boundary
from wherry.shim.server import Shim
from wherry.shim.wire import Fault

TIME = 1_700_000_000_123_456_789


def decoded(data: bytes) -> bytes:
    """The bytes that json-file records stand for; each is one line at most."""
    found = b""
    for line in data.splitlines():
        entry = json.loads(line)
        assert list(entry) == ["log", "stream", "time"]
        text = entry["log"].encode("utf-8", "surrogateescape")
        assert b"\n" not in text[:-1]
        found += text
    return found


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.lists(st.sampled_from([b"\n", b"\\n", b'"', b"\xff", b"a"])).map(b"".join)
)
def test_json_lines_keep_every_byte(data: bytes) -> None:
    assert decoded(encode_json(data, 0, TIME)) == data


def test_json_lines_are_those_of_docker() -> None:
    assert encode_json(b"a\tb\xc3\xa9\n", 1, TIME).decode() == (
        '{"log":"a\\tb\u00e9\\n","stream":"stderr","time":"2023-11-14T22:13:20.123456789Z"}\n'
    )
    assert encode_json(b"no end", 0, TIME).count(b"\n") == 1
    assert timestamp(0) == "1970-01-01T00:00:00.000000000Z"


def test_local_records() -> None:
    record = encode_local(b"data", 1, TIME)
    assert HEAD.unpack(record[: HEAD.size]) == (4, TIME, 1)
    assert record[HEAD.size :] == b"data"


@given(st.text().map(str.encode), st.integers(1, 50))
def test_a_cut_does_not_split_a_character(data: bytes, limit: int) -> None:
    cut = boundary(data, limit)
    assert 0 < cut <= limit or not data
    if cut >= 4:
        data[:cut].decode()


def files(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.parent.iterdir()}


def test_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path), "local", 20, 3, None)
    for text in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"):
        log.open()
        if log.full():
            log.rotate()
        log.write(text, 0)
    log.close()
    assert {name: data[HEAD.size :: HEAD.size + 1] for name, data in files(path).items()} == {
        "log": b"78", "log.1": b"56", "log.2": b"34",
    }  # fmt: skip


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_rotation_cut_short_at_any_rename_moves_nothing_twice(tmp_path: Path, kept: int) -> None:
    for stop in range(6):
        directory = tmp_path / f"{kept}-{stop}"
        directory.mkdir()
        path = directory / "log"
        for number in range(1, kept):
            (directory / f"log.{number}").write_bytes(b"old %d" % number)
        path.write_bytes(b"current")
        done = subprocess.run(
            [
                sys.executable, "-c",
                "import os, sys; from wherry.shim.logfile import LogFile; left = int(sys.argv[3])\n"
                "def counted(call):\n"
                "    def counting(*args, **kwargs):\n"
                "        global left\n"
                "        if not left: os._exit(9)\n"
                "        left -= 1\n"
                "        return call(*args, **kwargs)\n"
                "    return counting\n"
                "log = LogFile(sys.argv[1], 'local', 4, int(sys.argv[2]), None); log.open()\n"
                "os.rename, os.unlink, os.open = counted(os.rename), counted(os.unlink), counted(os.open)\n"
                "log.rotate()",
                str(path), str(kept), str(stop),
            ],
            check=False,
        )  # fmt: skip
        assert done.returncode in (0, 9)
        log = LogFile(str(path), "local", 4, kept, len(b"current"))
        log.open()
        if log.size:
            log.rotate()
        log.close()
        expected = {"log": b""}
        if kept > 1:
            expected["log.1"] = b"current"
        expected |= {f"log.{number + 1}": b"old %d" % number for number in range(1, kept - 1)}
        assert files(path) == expected, stop


def test_a_broken_batch_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"whole, and what was cut short")
    log = LogFile(str(path), "local", 0, 1, 5)
    log.open()
    log.close()
    assert path.read_bytes() == b"whole"


def test_a_write_that_fails_leaves_the_log_as_it_was() -> None:
    log = LogFile("/dev/full", "local", 0, 1, None)
    log.open()
    with pytest.raises(OSError, match="No space"):
        log.write(b"data", 0)
    assert log.size == 0
    log.close()


def test_the_ledger_is_replayed_and_shrinks() -> None:
    ledger = Journal()
    task = {"id": "a", "exec_id": "", "status": "running"}
    ledger.note(task=task)
    ledger.note(task={**task, "exec_id": "x"})
    ledger.note(sandbox={"id": "box"})
    ledger.note(sandbox={"id": "gone"})
    ledger.note(unbox="gone")
    ledger.note(forget=["a", "x"])
    os.pwrite(ledger.fd, b'{"task": {"id', os.fstat(ledger.fd).st_size)  # torn
    expected = ({("a", ""): task}, {"box": {"id": "box"}})
    assert Journal(ledger.fd).read() == expected
    while not ledger.heavy():
        ledger.note(task=task)
    ledger.rewrite([{"task": task}, {"sandbox": {"id": "box"}}])
    assert not ledger.heavy()
    again = Journal(ledger.fd)
    assert again.read() == expected
    assert os.fstat(ledger.fd).st_blocks < 64
    os.close(ledger.fd)


def test_arena_words() -> None:
    fd = arena.make()
    words, slots = arena.Arena(fd), arena.Slots(fd)
    first, second = slots.take(), slots.take()
    assert words.log(first) is None
    words.set_log(first, 1 << 39, 1, 70_000)
    assert words.log(first) == (1 << 39, 1, 70_000)
    words.set_log(first, 5)
    assert words.log(first) == (5, 0, -1)
    words.set_shared(first, 1, True)
    assert (words.shared(first, 0), words.shared(first, 1), words.shared(second, 1)) == (False, True, False)
    slots.give(first)
    assert slots.take() == first
    assert words.log(first) is None
    assert not words.shared(first, 1)
    slots.adopt({0, 3})
    assert {slots.take(), slots.take(), slots.take()} == {1, 2, 4}
    os.close(fd)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_compact_json_is_json(value: object) -> None:
    assert compact.dumps(value) == json.dumps(value)
    assert compact.dumps(value, separators=(",", ":")) == json.dumps(value, separators=(",", ":"))
    assert compact.loads(json.dumps(value).encode()) == value


def test_compact_json_refuses_what_json_does() -> None:
    script = (
        "from wherry.shim import compact; compact.install(); import json\n"
        "for text in ('', '{', '[1,', '1 2', 'nope', '{a:1}', '[1]]', '[' * 100000, '\"a\\nb\"'):\n"
        "    try: json.loads(text)\n"
        "    except (ValueError, RecursionError): continue\n"
        "    raise SystemExit(text)\n"
        "try: json.dumps(object())\n"
        "except TypeError: raise SystemExit(0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def launched(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start in a run directory that is ours, by a link that is another user's; Reached once it is taken for good."""
    (directory / "ours").mkdir(mode=0o700)
    (directory / "link").symlink_to("ours")
    os.chown(directory / "link", 1000, 1000, follow_symlinks=False)

    def reached(_run: str) -> int:
        raise Reached

    monkeypatch.setattr(launch, "lock", reached)
    launch.launch(launch.LaunchOptions(["--run", str(directory / "link"), "--root", str(directory / "root")]))


class Reached(Exception):
    pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a link away")
@pytest.mark.parametrize(
    ("status", "streams", "said"),
    [
        ("stopped", None, "is stopped"),
        ("running", None, "its streams went straight to whoever started it"),
        ("running", SimpleNamespace(key="k"), "its streams have ended"),
    ],
)
def test_why_there_is_nothing_to_attach_to(status: str, streams: object, said: str) -> None:
    """Between the end of its output and its own, a container has streams no more, and was not started without."""
    task = SimpleNamespace(name="container c", status=status, streams=streams)
    shim: Any = SimpleNamespace(
        tasks=SimpleNamespace(get=lambda _container, _exec_id: task), keeper=SimpleNamespace(streams={})
    )
    with pytest.raises(Fault) as caught:
        Shim._with_streams(shim, {"container": "c", "exec_id": ""})
    assert caught.value.record["cause"] == said


def test_a_run_directory_by_another_s_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could lead it to a socket of their own a moment later."""
    with pytest.raises(RuntimeError, match="belongs to user 1000"):
        launched(tmp_path, monkeypatch)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a link away")
def test_a_run_directory_by_another_s_link_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.os, "lstat", os.stat)
    with pytest.raises(Reached):
        launched(tmp_path, monkeypatch)
