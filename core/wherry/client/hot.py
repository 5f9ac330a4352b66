"""What the client does while an engine answers: send the command, serve the terminal, exit as told.

It runs in an interpreter without site-packages and imports only what costs nothing there, hence the underscored modules and
annotations that are evaluated. A frame is a 4-byte big-endian length and JSON (``wherry.linux.framing``). The first carries
argv, cwd, environment, facts of the terminal and the descriptors 0, 1, 2. Then {"signal": n} and {"resize": [rows, columns]}
go up; {"raw": bool}, {"attached": true}, {"out": text}, {"err": text}, {"mismatch": version} and at last {"exit": code} come
down. Whatever else happens, no engine above all, is ``wherry.client.cold``'s, which replaces this process.
"""

import posix
import sys
from _json import encode_basestring_ascii as quote
from _signal import (  # type: ignore[import-not-found]  # not in typeshed
    SIGALRM,
    SIGCONT,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
    signal,
)
from _socket import AF_UNIX, SCM_RIGHTS, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket

VERSION = "0.1.0"
#: Options before the command, each with a value.
GLOBALS = ("--config", "--root", "--run")
#: The second of these ends a client that is not attached to a container, whatever the engine does.
FATAL = (SIGHUP, SIGINT, SIGQUIT, SIGTERM)
PATH_LIMIT = 107  # sun_path in unix(7)


class EngineLost(Exception):
    """The engine went away ("closed") or is of another version ("mismatch")."""


class Client:
    """One command on one socket."""

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self.cooked: list[object] | None = None
        """The terminal's attributes while it is raw."""
        self.attached = False
        self.patience = 2
        self.early: list[int] | None = []
        """Signals that came before the command was sent; None once it is."""

    def hello(self, argv: list[str], given: dict[str, str]) -> None:
        """Sends the command. Signals are caught from before it is sent: after that the engine is at work, and has to hear of them."""
        tty = [posix.isatty(fd) for fd in (0, 1, 2)]
        columns, rows = posix.get_terminal_size(tty.index(True)) if True in tty else (0, 0)
        umask = posix.umask(0o77)
        posix.umask(umask)
        environ = {decode(key): decode(value) for key, value in posix.environ.items()}
        body = (
            f'{{"wherry":1,"version":"{VERSION}","frontend":"cli","argv":[{",".join(map(quote, argv))}],"cwd":{quote(cwd())},'
            f'"environ":{mapping(environ)},"given":{mapping(given)},"tty":{str(tty).lower()},"size":[{rows},{columns}],'
            f'"umask":{umask},"fds":3}}'
        ).encode()
        body = len(body).to_bytes(4, "big") + body
        self.catch()
        rights = b"".join([fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2)])
        if rest := body[self.sock.sendmsg([body], [(SOL_SOCKET, SCM_RIGHTS, rights)]) :]:
            self.sock.sendall(rest)
        early, self.early = self.early or [], None
        for number in early:
            self.signalled(number, None)

    def catch(self) -> None:
        for number in (*FATAL, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT):
            signal(number, self.signalled)

    def send(self, body: bytes) -> None:
        try:
            self.sock.sendall(len(body).to_bytes(4, "big") + body)
        except OSError:
            pass  # talk() learns why

    def signalled(self, number: int, _frame: object) -> None:
        """Runs while talk() waits, never inside a frame."""
        if self.early is not None:
            self.early.append(number)
            return
        if number in {SIGWINCH, SIGCONT}:
            if self.cooked:
                self.raw()  # the shell of a stopped client has set its own
                columns, rows = posix.get_terminal_size(0)
                self.send(b'{"resize":[%d,%d]}' % (rows, columns))
            return
        self.send(b'{"signal":%d}' % number)
        self.patience -= number in FATAL and not self.attached
        if not self.patience:
            self.exit(128 + number)

    def talk(self) -> None:
        """Serves the engine until it says how to exit: never returns. Raises Lost, OSError."""
        buffer = b""
        while data := self.sock.recv(65536):
            buffer += data
            while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "big")):
                body, buffer = buffer[4:end], buffer[end:]
                if body.startswith(b'{"exit":'):
                    self.exit(int(body[8:-1]))
                elif body == b'{"attached":true}':
                    self.attached = True
                elif body == b'{"raw":true}':
                    self.raw()
                elif body == b'{"raw":false}':
                    self.cook()
                else:
                    self.other(body)
        raise EngineLost("closed")

    def other(self, body: bytes) -> None:
        import json

        for key, text in json.loads(body).items():
            if key == "mismatch":
                raise EngineLost(key)
            if key in {"out", "err"}:
                self.write(1 + (key == "err"), text)
            if key == "exit":
                self.exit(text)

    def write(self, fd: int, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            try:
                data = data[posix.write(fd, data) :]
            except BlockingIOError:
                from select import POLLOUT, poll

                room = poll()
                room.register(fd, POLLOUT)
                room.poll()

    def raw(self) -> None:
        """As cfmakeraw(3)."""
        import termios as t

        try:
            mode = t.tcgetattr(0)
            self.cooked = self.cooked or [*mode[:6], mode[6][:]]
            mode[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
            mode[1] &= ~t.OPOST
            mode[2] = mode[2] & ~(t.CSIZE | t.PARENB) | t.CS8
            mode[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
            mode[6][t.VMIN], mode[6][t.VTIME] = 1, 0
            t.tcsetattr(0, t.TCSANOW, mode)
        except t.error:
            pass  # it has hung up

    def cook(self) -> None:
        """The terminal as it was; nothing happens when it is."""
        if self.cooked:
            import termios

            try:
                termios.tcsetattr(0, termios.TCSANOW, self.cooked)  # type: ignore[arg-type]  # what tcgetattr gave
            except termios.error:
                pass  # it has hung up
            self.cooked = None

    def exit(self, code: int) -> None:
        self.cook()
        posix._exit(code)  # 1 ms less than finalisation; nothing is buffered


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def mapping(pairs: dict[str, str]) -> str:
    return "{" + ",".join([quote(key) + ":" + quote(value) for key, value in pairs.items()]) + "}"


def cwd() -> str:
    """The working directory, "" when it was removed."""
    try:
        return decode(posix.getcwdb())
    except OSError:
        return ""


def split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The global options, by name without dashes, and the rest. One that lacks its value stays in the rest."""
    given = {}
    while argv and argv[0].partition("=")[0] in GLOBALS:
        name, equals, value = argv[0].partition("=")
        if not equals and len(argv) < 2:
            break
        given[name[2:]] = value if equals else argv[1]
        argv = argv[1:] if equals else argv[2:]
    return given, argv


def run_directory(given: dict[str, str]) -> str:
    """--run, $WHERRY_RUN, /run/wherry for root, else wherry in $XDG_RUNTIME_DIR or /run/user/UID, else /tmp/wherry-run-UID."""
    if run := given.get("run") or decode(posix.environ.get(b"WHERRY_RUN", b"")):
        return run
    uid = posix.geteuid()
    if uid == 0:
        return "/run/wherry"
    return user_run(decode(posix.environ.get(b"XDG_RUNTIME_DIR", b"")), uid)


def user_run(base: str, uid: int) -> str:
    """An ordinary user's run directory; base is $XDG_RUNTIME_DIR."""
    if base:
        return base + "/wherry"
    return f"/run/user/{uid}/wherry" if owner(f"/run/user/{uid}") == uid else f"/tmp/wherry-run-{uid}"


def owner(path: str) -> int:
    """The uid of what is at a path, not following a link; -1 where nothing is."""
    try:
        return posix.lstat(path).st_uid
    except OSError:
        return -1


def connect(run: str, name: str = "engine.sock") -> socket:
    """A stream to a socket in the run directory. OSError when nothing listens there, or neither root nor this user does."""
    path = f"{run}/{name}"
    if len(path.encode("utf-8", "surrogateescape")) > PATH_LIMIT:
        path = f"/proc/self/fd/{posix.open(run, posix.O_PATH | posix.O_CLOEXEC)}/{name}"
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.connect(path)
    uid = int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], sys.byteorder)
    if uid not in (0, posix.geteuid()):  # a directory in /tmp may be somebody else's since it was looked at
        sock.close()
        raise OSError(13, "the socket is another user's")
    return sock


def fill_stdio() -> None:
    """A closed 0, 1 or 2 becomes /dev/null, before a socket takes its number."""
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


def attempt(run: str, argv: list[str], given: dict[str, str]) -> str:
    """Runs the command on the engine and exits; returns only when that failed: the errno of connect, or why it was lost."""
    if owner(run) not in (-1, 0, posix.geteuid()):
        return "foreign"  # what this command says is not for that user to hear
    try:
        client = Client(connect(run))
    except OSError as error:
        return str(error.errno)
    try:
        client.hello(argv, given)
        client.talk()
    except (OSError, EngineLost) as error:
        client.cook()
        return str(error)
    return ""


def main() -> None:
    fill_stdio()
    given, argv = split(sys.argv[1:])
    cause = ""
    if argv and argv[0] not in {"engine", "--version"} and argv[:2] != ["config", "check"]:
        cause = attempt(run_directory(given), argv, given)
    posix.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", "-m", "wherry.client.cold", cause, *sys.argv])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before or after the stretch in which signals are forwarded
        posix._exit(130)
