"""The thin client as a process: what it imports, what it sends, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wherry
from wherry.client import cold, hot
from wherry.linux import framing
from wherry_plugins.frontend.cli.command import CommandGroup
from wherry_plugins.frontend.cli.main import ROOT

SCRIPT = Path(wherry.__file__).parent / "client" / "wherry"
#: Nothing but what is built into the interpreter or frozen; each more would be a file to find and read.
ALLOWED = {"_frozen_importlib", "_frozen_importlib_external", "_imp", "_io", "_json", "_signal", "_socket", "_thread", "_warnings",
    "_weakref", "_abc", "_codecs", "abc", "builtins", "codecs", "encodings", "encodings.aliases", "encodings.utf_8", "io", "marshal",
    "posix", "sys", "time", "winreg", "zipimport", "linecache", "_contextvars", "_typing", "_stat", "stat", "errno"}  # fmt: skip


class Engine:
    """Listens where an engine would; each client's first frame goes to a function that plays the engine's part."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.run.mkdir(exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(run / "engine.sock"))
        self.socket.listen()
        self.hello: dict[str, Any] = {}

    def serve(self, part: Any) -> threading.Thread:
        def play() -> None:
            sock, _address = self.socket.accept()
            sock.settimeout(20)
            reader = framing.Reader(sock)
            frame = reader.next()
            assert frame is not None
            self.hello, fds = frame
            with sock:
                part(sock, reader, fds)
            for fd in fds:
                os.close(fd)

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def engine(engine_dirs: Any) -> Iterator[Engine]:
    engine_dirs.run.parent.mkdir(parents=True, exist_ok=True)
    found = Engine(engine_dirs.run)
    yield found
    found.socket.close()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The script beside an interpreter of its own, with its bytecode saved, as an installation has it."""
    import py_compile

    (tmp_path / "bin" / "__pycache__").mkdir(parents=True)
    script = tmp_path / "bin" / "wherry"
    shutil.copy(SCRIPT, script)
    script.chmod(0o755)
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable))
    compiled = script.parent / "__pycache__" / f"wherry.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(hot.__file__, str(compiled), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    return script


def exits(code: int) -> Any:
    return lambda sock, _reader, _fds: framing.send(sock, {"exit": code})


def run(program: Path, engine: Engine, *argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [str(program), "--run", str(engine.run), *argv]
    return subprocess.run(command, capture_output=True, timeout=30, check=False, **options)


def test_version_is_the_packages() -> None:
    assert wherry.__version__ == hot.VERSION


def test_import_budget(program: Path, engine: Engine) -> None:
    engine.serve(exits(0))
    command = [
        str(program.parent / "python3"),
        "-I",
        "-S",
        "-X",
        "utf8",
        "-X",
        "importtime",
        str(program),
        "--run",
        str(engine.run),
        "ps",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    modules = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    } - {"imported package"}
    assert modules - ALLOWED == set()


def test_the_script_stays_short() -> None:
    """Python parses it at every start, 10 us a line."""
    code = [line for line in SCRIPT.read_text().splitlines() if line and not line.startswith("#")]
    assert len(code) <= 32


def test_hello(program: Path, engine: Engine, tmp_path: Path) -> None:
    engine.serve(exits(7))
    name = b"caf\xe9"
    done = run(
        program, engine, "ps", os.fsdecode(name), "--x=y", cwd=tmp_path, env={"A": 'ü\n"', "B": os.fsdecode(name)}
    )
    assert done.returncode == 7
    hello = engine.hello
    assert (hello["wherry"], hello["version"], hello["frontend"]) == (1, wherry.__version__, "cli")
    assert hello["argv"] == ["ps", name.decode("utf-8", "surrogateescape"), "--x=y"]
    assert hello["cwd"] == str(tmp_path)
    assert hello["given"] == {"run": str(engine.run)}
    assert hello["environ"]["A"] == 'ü\n"'
    assert hello["environ"]["B"] == name.decode("utf-8", "surrogateescape")
    assert hello["tty"] == [False, False, False]
    assert hello["size"] == [0, 0]


def test_streams_are_the_clients(program: Path, engine: Engine) -> None:
    def copy(sock: socket.socket, _reader: Any, fds: list[int]) -> None:
        os.write(fds[1], os.read(fds[0], 100))
        os.write(fds[2], b"error\n")
        framing.send(sock, {"out": "framed\n"})
        framing.send(sock, {"exit": 0})

    engine.serve(copy)
    done = run(program, engine, "x", input=b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\nframed\n", b"error\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_become_dev_null(program: Path, engine: Engine, closed: str) -> None:
    seen: list[bool] = []

    def look(sock: socket.socket, _reader: Any, fds: list[int]) -> None:
        seen.append(len(fds) == 3 and any(os.fstat(fd).st_rdev == os.makedev(1, 3) for fd in fds))
        framing.send(sock, {"exit": 5})

    engine.serve(look)
    done = subprocess.run(
        ["sh", "-c", f'"$1" --run "$2" ps {closed}', "sh", str(program), str(engine.run)], timeout=30, check=False
    )
    assert (done.returncode, seen) == (5, [True])


def test_through_links_and_the_path(program: Path, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w").symlink_to(program)
    for command, path in (
        ([str(tmp_path / "other" / "w")], ""),
        (["wherry"], f"{program.parent}:"),
        (["w"], f"{tmp_path}/other:"),
    ):
        engine.serve(exits(9))
        done = subprocess.run(
            [*command, "--run", str(engine.run), "ps"], env={"PATH": path + os.environ["PATH"]}, timeout=30, check=False
        )
        assert done.returncode == 9


def test_global_options(program: Path, engine: Engine) -> None:
    engine.serve(exits(0))
    done = subprocess.run(
        [str(program), f"--run={engine.run}", "--root", "/r", "--config=c", "run", "--root", "x"],
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert engine.hello["given"] == {"run": str(engine.run), "root": "/r", "config": "c"}
    assert engine.hello["argv"] == ["run", "--root", "x"]


def test_signals_are_passed_on(program: Path, engine: Engine) -> None:
    got: list[int] = []
    ready = threading.Event()

    def part(sock: socket.socket, reader: Any, _fds: list[int]) -> None:
        framing.send(sock, {"attached": True})
        ready.set()
        while len(got) < 4:
            got.append(reader.next()[0]["signal"])
        framing.send(sock, {"exit": 143})

    engine.serve(part)
    child = subprocess.Popen([str(program), "--run", str(engine.run), "run"])
    assert ready.wait(20)
    time.sleep(0.2)  # it is past installing its handlers then
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        child.send_signal(number)
        time.sleep(0.05)
    assert child.wait(20) == 143
    assert got == [2, 2, 10, 15]


def test_a_second_interrupt_ends_a_client_whose_engine_hangs(program: Path, engine: Engine) -> None:
    over = threading.Event()
    engine.serve(lambda _sock, _reader, _fds: over.wait(20))
    child = subprocess.Popen([str(program), "--run", str(engine.run), "pull", "x"])
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    over.set()


def test_an_engine_that_dies_in_the_middle(program: Path, engine: Engine, engine_dirs: Any) -> None:
    engine.serve(lambda sock, _reader, _fds: framing.send(sock, {"attached": True}))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "wherry"), "--run", str(engine.run), "ps"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 125
    assert done.stderr.startswith(
        "wherry: engine: it went away before the command was done; containers keep running; see "
    )


def test_a_refusal(program: Path, engine: Engine) -> None:
    engine.serve(
        lambda sock, _reader, _fds: framing.send(sock, {"err": "wherry: no\n", "error": {"what": "x"}, "exit": 125})
    )
    done = run(program, engine, "ps")
    assert (done.returncode, done.stderr) == (125, b"wherry: no\n")


def test_raw_mode_and_back(program: Path, engine: Engine) -> None:
    go = threading.Event()

    def part(sock: socket.socket, reader: Any, _fds: list[int]) -> None:
        framing.send(sock, {"raw": True})
        frames.append(reader.next()[0])
        assert go.wait(20)
        framing.send(sock, {"exit": 0})

    frames: list[dict[str, Any]] = []
    engine.serve(part)
    pid, master = pty.fork()
    if pid == 0:
        os.execv(str(program), [str(program), "--run", str(engine.run), "run", "-it"])
    before = termios.tcgetattr(master)
    deadline = time.monotonic() + 20
    while termios.tcgetattr(master)[3] & termios.ICANON:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not termios.tcgetattr(master)[3] & (termios.ECHO | termios.ISIG)
    assert engine.hello["tty"] == [True, True, True]
    termios.tcsetwinsize(master, (33, 99))
    os.kill(pid, signal.SIGWINCH)
    while not frames:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert frames == [{"resize": [33, 99]}]
    go.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert termios.tcgetattr(master) == before
    os.close(master)


def test_a_run_directory_with_a_long_path(program: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_PATH)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{here}/engine.sock")
    listener.listen()

    def part() -> None:
        sock, _address = listener.accept()
        with sock:
            framing.Reader(sock).feed()
            framing.send(sock, {"exit": 6})

    thread = threading.Thread(target=part)
    thread.start()
    assert subprocess.run([str(program), "--run", str(deep), "ps"], timeout=30, check=False).returncode == 6
    thread.join()
    listener.close()
    os.close(here)


@pytest.mark.parametrize("damage", ["stale", "cut", "other magic", "no bytecode"])
def test_bytecode_that_does_not_fit_is_not_run(program: Path, engine: Engine, damage: str) -> None:
    """The interpreter here has no wherry to fall back on: that it asks for it shows that the bytecode was not taken."""
    (compiled,) = (program.parent / "__pycache__").iterdir()
    data = compiled.read_bytes()
    compiled.write_bytes(
        {
            "stale": data[:8] + bytes(8) + data[16:],
            "cut": data[:200],
            "other magic": bytes(4) + data[4:],
            "no bytecode": b"",
        }[damage]
    )
    (program.parent / "python3").unlink()
    (program.parent / "python3").symlink_to(Path(sys.executable).resolve())
    done = run(program, engine, "ps", env={"PATH": os.environ["PATH"]})
    assert re.search(rb"No module named '?wherry", done.stderr)


def test_help_version_and_check_need_no_engine(wherry: Any, engine_dirs: Any, tmp_path: Path) -> None:
    assert wherry("--version").stdout == f"wherry {hot.VERSION}\n"
    assert wherry("--help").stdout.startswith("Usage: wherry")
    assert wherry("run", "--help").stdout.startswith("Usage: wherry run")
    assert "engine: not running" in wherry("version").stdout
    assert "engine: not running" in wherry("engine", "status", code=3).stdout
    assert json.loads(wherry("engine", "status", "--json", code=3).stdout)["engine"] is None
    assert wherry("engine", "stop").stdout == "engine was not running\n"
    (tmp_path / "good.toml").write_text("version = 1\n")
    (tmp_path / "bad.toml").write_text("version = 1\nwrong = 2\n")
    assert wherry("config", "check", "good.toml", cwd=tmp_path).stdout == "good.toml: valid\n"
    assert "wrong" in wherry("config", "check", "bad.toml", cwd=tmp_path, code=1).stderr
    assert (
        wherry("config", "check", "none.toml", cwd=tmp_path, code=125).stderr
        == 'wherry: file "none.toml": no such file or directory\n'
    )
    assert not engine_dirs.run.exists() or not (engine_dirs.run / "engine.sock").exists()


class Shim:
    """Listens where a shim would and says yes to all."""

    def __init__(self, run: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(run / "shim.sock"))
        self.socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _address = self.socket.accept()
            except OSError:
                return
            with sock:
                reader = framing.Reader(sock)
                while (frame := reader.next()) is not None:
                    self.asked.append(frame[0])
                    framing.send(sock, {"id": frame[0]["id"], "ok": {}})


def installed(run: Path) -> subprocess.CompletedProcess[str]:
    """``wherry ps`` by the script of this environment, which has all of the client."""
    command = [str(Path(sys.executable).parent / "wherry"), "--run", str(run), "ps"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_an_engine_of_another_version_is_restarted(engine: Engine) -> None:
    shim = Shim(engine.run)

    def both() -> None:
        engine.serve(lambda sock, _reader, _fds: framing.send(sock, {"mismatch": "9.9"})).join(20)
        engine.serve(exits(4)).join(20)

    thread = threading.Thread(target=both, daemon=True)
    thread.start()
    assert installed(engine.run).returncode == 4
    thread.join(20)
    assert [(one["op"], one.get("restart")) for one in shim.asked] == [("engine", True)]
    shim.socket.close()


def test_an_engine_that_stays_of_another_version(engine: Engine) -> None:
    shim = Shim(engine.run)

    def both() -> None:
        for _ in range(2):
            engine.serve(lambda sock, _reader, _fds: framing.send(sock, {"mismatch": "9.9"})).join(20)

    thread = threading.Thread(target=both, daemon=True)
    thread.start()
    assert "met another one after a restart" in installed(engine.run).stderr
    thread.join(20)
    shim.socket.close()


def test_what_the_shim_refuses_is_said(engine_dirs: Any) -> None:
    engine_dirs.run.mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(engine_dirs.run / "shim.sock"))
    listener.listen()

    def part() -> None:
        sock, _address = listener.accept()
        with sock:
            framing.Reader(sock).next()
            error = {"class": "Unavailable", "what": "engine", "cause": "no room", "hint": "make some"}
            framing.send(sock, {"id": 1, "error": error})

    thread = threading.Thread(target=part, daemon=True)
    thread.start()
    assert installed(engine_dirs.run).stderr == "wherry: engine: no room; make some\n"
    thread.join(20)
    listener.close()
    (engine_dirs.run / "shim.sock").unlink()


def test_a_directory_of_another_users_is_not_spoken_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command says (arguments, environment) is not for whoever laid a socket there; and the twin, without the look."""
    heard: list[str] = []

    def connect(run: str, name: str = "engine.sock") -> object:
        heard.append(run)
        raise OSError(2, "nobody listens")

    monkeypatch.setattr(hot, "connect", connect)
    monkeypatch.setattr(hot, "owner", lambda path: 12345)
    assert hot.attempt(str(tmp_path), ["ps"], {}) == "foreign"
    assert heard == []
    monkeypatch.setattr(hot, "owner", lambda path: -1)
    assert hot.attempt(str(tmp_path), ["ps"], {}) == "2"
    assert heard == [str(tmp_path)]


def test_where_an_ordinary_users_engine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hot.user_run("/some/where", 1000) == "/some/where/wherry"
    monkeypatch.setattr(hot, "owner", lambda path: 1000 if path == "/run/user/1000" else -1)
    assert hot.user_run("", 1000) == "/run/user/1000/wherry"
    assert hot.user_run("", 1001) == "/tmp/wherry-run-1001"


@pytest.mark.skipif(os.geteuid() != 0, reason="listens as another user")
def test_a_socket_of_another_users_is_not_spoken_to(tmp_path: Path) -> None:
    """Also where the directory became that user's after it was looked at."""
    short = Path(tempfile.mkdtemp(dir="/tmp", prefix="wh"))
    try:
        for uid, refused in ((12345, True), (0, False)):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(short / "engine.sock"))
                os.seteuid(uid)  # listen(2) is what counts (unix(7), SO_PEERCRED)
                try:
                    listener.listen()
                finally:
                    os.seteuid(0)
                if refused:
                    with pytest.raises(PermissionError):
                        hot.connect(str(short))
                else:
                    hot.connect(str(short)).close()
            (short / "engine.sock").unlink()
    finally:
        shutil.rmtree(short)


def test_help_of_every_group_needs_no_engine() -> None:
    groups = {name for name in ROOT.list_commands(None) if isinstance(ROOT.get_command(None, name), CommandGroup)}
    assert set(cold.GROUPS) == groups
    assert cold.needs_no_engine(["network"])
    assert cold.needs_no_engine(["network", "create", "--help"])
    assert not cold.needs_no_engine(["network", "ls"])
