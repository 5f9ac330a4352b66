"""Starting the shim: ``python -m wherry.shim.launch --run DIR --root DIR [--config FILE] [--python EXE] [--no-engine]``.

Returns 0 once <run>/shim.sock answers, whether this call started the shim or another did; else prints why and returns 1, or
REFUSED where what it prints is an error of the user's to mend, whole with its hint.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time

from wherry import __version__
from wherry.linux import process
from wherry.oci import idmaps
from wherry.shim import rootless, scope, wire
from wherry.shim.boot import ShimOptions

#: What of the caller's environment the engine sees.
_KEPT = (
    "HOME", "LANG", "LOGNAME", "NO_PROXY", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER", "no_proxy",
)  # fmt: skip
_KEPT_PREFIXES = ("LC_", "WHERRY_", "XDG_", "HTTP_", "HTTPS_", "http_", "https_", "REGISTRY_")
_PATIENCE = 10.0
REFUSED = 2
_REFUSED = "refused: "  # how the shim's process says so
_USAGE = "usage: python -m wherry.shim.launch --run DIR --root DIR [--config FILE] [--python EXE] [--no-engine]"


class LaunchOptions:
    """The command line."""

    def __init__(self, argv: list[str]) -> None:
        """ValueError says what is wrong with it."""
        self.values = {"run": "", "root": "", "config": "", "python": sys.executable}
        self.engine = True
        left = list(argv)
        while left:
            word = left.pop(0)
            name = word.removeprefix("--")
            if word == "--no-engine":
                self.engine = False
            elif word.startswith("--") and name in self.values and left:
                self.values[name] = left.pop(0)
            else:
                raise ValueError(_USAGE)
        if not self.values["run"] or not self.values["root"]:
            raise ValueError(_USAGE)
        for name in ("run", "root", "config"):
            if self.values[name]:
                self.values[name] = os.path.abspath(self.values[name])


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}


def answers(run: str) -> bool:
    """Whether a shim listens."""
    try:
        wire.connect(f"{run}/shim.sock").close()
    except OSError:
        return False
    return True


def lock(run: str) -> int:
    """The descriptor that holds <run>'s lock, -1 when another process has it."""
    fd = os.open(f"{run}/shim.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def compile_ahead() -> None:
    """Writes what bytecode is missing: a shim that compiled its own modules would keep two megabytes of the compiler's memory."""
    core = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for package in ("linux", "oci", "shim"):
        top = f"{core}/{package}"
        for name in os.listdir(top):
            if name.endswith(".py") and not _compiled(f"{top}/{name}"):
                import py_compile

                try:
                    py_compile.compile(f"{top}/{name}", doraise=True)
                except (OSError, py_compile.PyCompileError):
                    return  # read-only, perhaps: it runs all the same


def _compiled(source: str) -> bool:
    top, name = os.path.split(source)
    try:
        made = os.stat(f"{top}/__pycache__/{name[:-3]}.{sys.implementation.cache_tag}.pyc").st_mtime_ns
    except OSError:
        return False
    return made >= os.stat(source).st_mtime_ns


def launch(place: LaunchOptions) -> None:
    """Returns when a shim answers. OSError, RuntimeError (what the shim itself said), IdMapError."""
    run = place.values["run"]
    os.makedirs(run, 0o700, exist_ok=True)
    for owner in (
        os.lstat(run).st_uid,
        os.stat(run).st_uid,
    ):  # a link to it, too: whose it is may lead it elsewhere later
        if owner != os.geteuid():
            raise RuntimeError(f'run directory "{run}": belongs to user {owner}; name another with --run')
    maps = idmaps.own(os.getuid(), os.getgid(), login_name()) if os.geteuid() else None
    held = lock(run)
    end = time.monotonic() + _PATIENCE
    while held < 0:  # one is there, or on its way
        if answers(run):
            return
        if time.monotonic() > end:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), f"{run}/shim.sock")
        time.sleep(0.01)
        held = lock(run)
    compile_ahead()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.setsid()
            if os.fork() == 0:
                _become(place, held, writer, maps)
        finally:
            os._exit(1)
    os.close(writer)
    os.close(held)
    os.waitpid(pid, 0)
    said = b""
    while piece := os.read(reader, 4096):
        said += piece
        if said.startswith(b"ready\n"):
            return
    text = said.decode(errors="replace").strip()
    if text.startswith(_REFUSED):
        what, _colon, cause = text.removeprefix(_REFUSED).partition(": ")
        raise idmaps.IdMapError(what, cause)
    raise RuntimeError(text or f"it ended at once; see {run}/shim.log")


def login_name() -> str:
    """The user's name by the user database, "" where it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _become(place: LaunchOptions, held: int, writer: int, maps: idmaps.IdMaps | None) -> None:
    """The shim, in the second child: never returns. maps: of the user namespace that an ordinary user's goes into."""
    run = place.values["run"]
    try:
        os.umask(0o022)
        os.chdir("/")
        if maps is not None:
            scope.enter(run)
            rootless.enter(run, maps)
        null = os.open("/dev/null", os.O_RDWR)
        log = os.open(f"{run}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        listener = wire.listen(f"{run}/shim.sock")
        for fd, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(fd, number)
        # whatever else the caller had open is not for containers to hold
        process.close_others((0, 1, 2, held, writer, listener.fileno()))
        program = os.path.realpath(sys.executable)
        record = {
            "run": run,
            "root": place.values["root"],
            "config": place.values["config"],
            "python": place.values["python"] if place.engine else "",
            "exe": program,
            "core": os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
            "version": __version__,
            "env": environment(),
            "lock": held,
            "listener": listener.detach(),
            "ready": writer,
            "state": -1,
        }
        ShimOptions(record).execute()
    except OSError as error:
        os.write(writer, f"{error.filename or 'shim'}: {error.strerror}".encode())
    except idmaps.IdMapError as error:
        os.write(writer, f"{_REFUSED}{error}".encode())
    finally:
        os._exit(1)


def main() -> int:
    try:
        launch(LaunchOptions(sys.argv[1:]))
    except idmaps.IdMapError as error:
        os.write(2, f"wherry: {error}\n".encode())
        return REFUSED
    except (OSError, RuntimeError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        os.write(2, f"wherry: {text}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
