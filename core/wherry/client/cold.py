"""What the client does when no engine answers as it should: ``python -I -m wherry.client.cold CAUSE SCRIPT ARGUMENTS``.

It starts shim and engine, restarts an engine of another version, serves ``wherry engine`` and ``wherry config check``, and
runs what needs no engine (help, version) by the command line's plugin in this process. CAUSE is "" (not tried), "stale" (the
script found no bytecode to run), the errno of connect(2), "mismatch", "closed", or the text of another failure.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from wherry.client import hot

GROUPS = ("config", "container", "engine", "image", "network", "system", "volume")
ABSENT = {str(errno.ENOENT), str(errno.ECONNREFUSED)}
NOT_RUNNING = 3
"""Exit code of ``engine status`` without an engine, as of LSB init scripts."""
REFUSED = 2
"""Exit code of ``wherry.shim.launch`` where what it prints is the whole error."""


def fail(what: str, cause: str, hint: str = "", code: int = 125) -> NoReturn:
    """One line on stderr, then exit."""
    text = f"wherry: {what}: {cause}" + (f"; {hint}" if hint else "") + "\n"
    try:
        os.write(2, text.encode("utf-8", "surrogateescape"))
    finally:
        os._exit(code)


def say(text: str) -> None:
    """One line on stdout; a closed one is ignored."""
    try:
        os.write(1, (text + "\n").encode("utf-8", "surrogateescape"))
    except OSError:
        pass


class EngineLocation:
    """Where this command's engine lives: absolute run and root directories, the config file ("" for the search order). root_named:
    it was asked for, by option or environment."""

    def __init__(self, given: dict[str, str]) -> None:
        environ = os.environ
        named = given.get("config") or environ.get("WHERRY_CONFIG", "")
        self.config = os.path.abspath(named) if named else ""
        engine = engine_table(self.config)
        self.root_named = bool(given.get("root") or environ.get("WHERRY_ROOT"))
        run = given.get("run") or environ.get("WHERRY_RUN") or engine.get("run") or hot.run_directory(given)
        root = given.get("root") or environ.get("WHERRY_ROOT") or engine.get("root") or default_root()
        self.run, self.root = os.path.abspath(str(run)), os.path.abspath(str(root))


def default_root() -> str:
    """/var/lib/wherry for root, else wherry in the XDG data directory."""
    if os.geteuid() == 0:
        return "/var/lib/wherry"
    return str(Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()) / "wherry")


def engine_table(config: str) -> dict[str, Any]:
    """[engine] of the config file in effect; what is wrong with the file is the engine's to say."""
    import tomllib

    home = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    for path in [config] if config else [f"{home}/wherry/config.toml", "/etc/wherry/config.toml"]:
        try:
            table = tomllib.loads(Path(path).read_text()).get("engine")
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}
    return {}


def ask(run: str, op: str, **arguments: Any) -> Any:
    """One request to the shim. OSError when none answers; an error of its own ends this command."""
    from wherry.linux import framing

    with socket.socket(fileno=hot.connect(run, "shim.sock").detach()) as sock:
        sock.settimeout(120)
        framing.send(sock, {"id": 1, "op": op, **arguments})
        reader = framing.Reader(sock)
        while (frame := reader.next()) is not None:
            answer, fds = frame
            for fd in fds:
                os.close(fd)
            if answer.get("id") == 1:
                if error := answer.get("error"):
                    raise Refused(error)
                return answer.get("ok")
    raise ConnectionResetError(errno.ECONNRESET, "the shim closed the connection")


class Refused(Exception):
    """The shim's typed error: class, what, cause, hint."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(error.get("cause", ""))
        self.error = error

    def fail(self) -> NoReturn:
        fail(self.error.get("what", "shim"), self.error.get("cause", "unknown"), self.error.get("hint", ""))


def check_runtime(place: EngineLocation) -> None:
    """An ordinary user's runtime directory has to be that user's: another one's is left over from su(1) or sudo(8)."""
    base, uid = os.environ.get("XDG_RUNTIME_DIR", ""), os.geteuid()
    if not uid or not base or place.run != os.path.abspath(f"{base}/wherry"):
        return
    found = hot.owner(os.path.realpath(base))
    if found != uid:
        cause = "no such directory" if found < 0 else f"belongs to user {found}, not to {uid}"
        fail(f'XDG_RUNTIME_DIR "{base}"', cause, "set it to a directory of your own, or unset it")


def start(place: EngineLocation, *, restart: bool = False) -> None:
    """An engine answers when this returns: through the shim, which is started first where none runs."""
    check_runtime(place)
    arguments: dict[str, Any] = {"restart": True} if restart else {}
    if place.config:
        arguments["config"] = place.config
    try:
        try:
            ask(place.run, "engine", **arguments)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET}:
                raise
            launch(place)
            ask(place.run, "engine")
    except Refused as refused:
        if (tail := log_tail(place.run)) and refused.error.get("cause", "").encode() not in tail:
            os.write(2, tail)
        refused.fail()
    except OSError as error:
        fail("shim", (error.strerror or str(error)).lower(), f'see "{place.run}/engine.log"')


def check_root(place: EngineLocation) -> None:
    """Fails where a root is named and the shim of the run directory serves another one: it would start that one's engine."""
    if not place.root_named:
        return
    try:
        actual = ask(place.run, "hello").get("root", "")
    except (OSError, Refused):
        return  # there is none, or it will say why
    if actual and os.path.realpath(actual) != os.path.realpath(place.root):
        fail(
            f'root "{place.root}"',
            f'the engine at {place.run} has the root "{actual}"',
            f'stop that one first ("wherry --run {place.run} engine stop"), or name another --run',
        )


def launch(place: EngineLocation) -> None:
    command = [sys.executable, "-I", "-m", "wherry.shim.launch", "--run", place.run, "--root", place.root]
    command += ["--config", place.config] if place.config else []
    done = subprocess.run(
        [*command, "--python", sys.executable], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        text = lines[-1] if lines else f"exit code {done.returncode}"
        if done.returncode == REFUSED:
            os.write(2, f"{text}\n".encode("utf-8", "surrogateescape"))
            os._exit(125)
        fail("shim", text.removeprefix("wherry: "), f'see "{place.run}/engine.log"')


def log_tail(run: str, lines: int = 5) -> bytes:
    try:
        data = Path(run, "engine.log").read_bytes()[-4096:]
    except OSError:
        return b""
    return b"".join(b"  " + line + b"\n" for line in data.splitlines()[-lines:])


def engine_pid(run: str) -> int:
    """The process that listens on engine.sock (SO_PEERCRED, unix(7)), 0 for none."""
    try:
        with socket.socket(fileno=hot.connect(run).detach()) as sock:
            pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(pid)
    except OSError:
        return 0


def stop(place: EngineLocation) -> None:
    """Ends the engine, then the shim when no container is left."""
    if pid := engine_pid(place.run):
        try:
            pidfd = os.pidfd_open(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except ProcessLookupError:
            pass
        except PermissionError:
            fail("engine", f"not permitted to stop process {pid}", "be root or its owner")
        else:
            if not select.select([pidfd], [], [], 60)[0]:
                fail("engine", f"process {pid} has not stopped after 60 s", f'see "{place.run}/engine.log"')
    try:
        ask(place.run, "quit")
    except Refused as refused:
        if refused.error.get("class") != "InUse":
            refused.fail()
        say(f"engine stopped; containers keep running: {refused.error.get('cause', '')}")
        return
    except OSError:
        pass
    say("engine stopped" if pid else "engine was not running")


def status(place: EngineLocation, arguments: list[str], given: dict[str, str]) -> NoReturn:
    cause = hot.attempt(place.run, ["engine", "status", *arguments], given)
    if cause == "mismatch":
        fail("engine", "it runs and is of another version", 'run "wherry engine restart"', code=NOT_RUNNING)
    if cause not in ABSENT:
        unreachable(place, cause)
    try:
        hot.connect(place.run, "shim.sock")
        shim = "running"
    except OSError:
        shim = "not running"
    if "--json" in arguments:
        say(json.dumps({"engine": None, "shim": shim, "root": place.root, "run": place.run}, indent=2))
    else:
        say(f"engine: not running\nshim:   {shim}\nroot:   {place.root}\nrun:    {place.run}")
    os._exit(NOT_RUNNING)


def engine(place: EngineLocation, argv: list[str], given: dict[str, str]) -> NoReturn:
    """``wherry engine VERB``, which must work without an engine."""
    verb, *arguments = argv[1:] or [""]
    if verb == "status" and arguments in ([], ["--json"]):
        status(place, arguments, given)
    if arguments or verb not in {"start", "stop", "restart"}:
        offline(argv, given)
    if verb == "stop":
        stop(place)
        os._exit(0)
    check_root(place)
    if verb == "restart":
        start(place, restart=True)
        say(f"engine restarted, pid {engine_pid(place.run)}")
    elif pid := engine_pid(place.run):
        say(f"engine runs already, pid {pid}")
    else:
        start(place)
        say(f"engine started, pid {engine_pid(place.run)}")
    os._exit(0)


def check_config(argv: list[str], given: dict[str, str]) -> NoReturn:
    """``wherry config check FILE``: every error of the file on a line; exit code 1 when there is one."""
    if len(argv) != 3 or argv[2].startswith("-"):
        offline(argv, given)
    from wherry.kernel.config import check

    try:
        text = Path(argv[2]).read_text()
    except (OSError, ValueError) as error:
        fail(f'file "{argv[2]}"', (getattr(error, "strerror", "") or "not UTF-8 text").lower())
    problems = check(text, argv[2])
    for problem in problems:
        os.write(2, f"wherry: {problem}\n".encode("utf-8", "surrogateescape"))
    if not problems:
        say(f"{argv[2]}: valid")
    os._exit(1 if problems else 0)


def needs_no_engine(argv: list[str]) -> bool:
    return (
        not argv
        or argv[0].startswith("-")
        or argv[0] in {"help", "version"}
        or argv[1:2] == ["--help"]
        or (argv[0] in GROUPS and (len(argv) == 1 or argv[2:3] == ["--help"]))
    )


def offline(argv: list[str], given: dict[str, str]) -> NoReturn:
    """Has the command line's plugin serve argv in this process, over a socket pair, without an engine."""
    import threading
    from importlib.metadata import entry_points

    from wherry.interfaces.contributions import Connection
    from wherry.linux import framing

    near, far = socket.socketpair()

    def serve() -> None:
        frame = framing.Reader(far).next()
        if frame is None:
            return
        for point in entry_points(group="wherry.plugins", name="frontend.cli"):
            registration = point.load().wherry_frontend()
            frontend = registration.init(registration.config(), None)
            frontend.handle(Connection(far, frame[0], tuple(frame[1]), os.geteuid(), os.getegid(), os.getpid()))
            return
        far.close()

    threading.Thread(target=serve, daemon=True).start()
    client = hot.Client(near)
    try:
        client.hello(argv, given)
        client.talk()
    except (OSError, hot.EngineLost):
        pass
    fail("command line", "its plugin frontend.cli is not installed or failed")


def unreachable(place: EngineLocation, cause: str) -> NoReturn:
    check_runtime(place)
    if cause == "foreign":
        fail(f'run directory "{place.run}"', f"belongs to user {hot.owner(place.run)}", "name another by --run")
    if cause == str(errno.EACCES):
        fail(
            "engine",
            f'no permission to connect to "{place.run}/engine.sock"',
            "be root, or set WHERRY_RUN and WHERRY_ROOT",
        )
    if cause.isdigit():
        fail("engine", f'connect to "{place.run}/engine.sock": {os.strerror(int(cause)).lower()}')
    fail("engine", "it went away before the command was done", f'containers keep running; see "{place.run}/engine.log"')


def save_bytecode(script: str) -> None:
    """Leaves what the script looks for beside it, where that is permitted; see the script."""
    import py_compile

    target = Path(script).parent / "__pycache__" / f"wherry.{sys.implementation.cache_tag}.pyc"
    try:
        py_compile.compile(hot.__file__, str(target), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    except OSError:
        pass


def main() -> None:
    cause, script, *rest = sys.argv[1:]
    hot.fill_stdio()
    if cause == "stale":
        save_bytecode(script)
    given, argv = hot.split(rest)
    if argv and argv[0] in hot.GLOBALS:
        fail(f'option "{argv[0]}"', "it needs a value")
    if argv == ["--version"]:
        say(f"wherry {hot.VERSION}")
        os._exit(0)
    place = EngineLocation(given)
    if argv and argv[0] == "engine":
        engine(place, argv, given)
    if argv[:2] == ["config", "check"]:
        check_config(argv, given)
    if cause in {"", "stale"} or (cause in ABSENT and place.run != os.path.abspath(hot.run_directory(given))):
        cause = hot.attempt(place.run, argv, given) if argv else str(errno.ENOENT)
    if cause in ABSENT and needs_no_engine(argv):
        offline(argv, given)
    if cause in ABSENT or cause == "mismatch":
        start(place, restart=cause == "mismatch")
        cause = hot.attempt(place.run, argv, given)
        if cause == "mismatch":
            fail(
                "engine",
                f"a client of version {hot.VERSION} met another one after a restart",
                "install them anew together",
            )
    unreachable(place, cause)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        os._exit(130)
