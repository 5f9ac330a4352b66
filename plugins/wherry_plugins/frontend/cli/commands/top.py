"""``wherry top``."""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import click

from wherry.api import ContainerProcess, Invalid
from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.listing import table
from wherry_plugins.frontend.cli.machine import memory
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.session import Session

Column = Callable[[ContainerProcess], str]


@lru_cache(1024)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _seconds(process: ContainerProcess) -> int:
    return max(1, (time.time_ns() - process.started) // 10**9)


def _clock(seconds: int) -> str:
    """ "[DD-]hh:mm:ss"."""
    days, rest = divmod(seconds, 86_400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def _began(process: ContainerProcess) -> str:
    began = time.localtime(process.started / 1e9)
    return time.strftime("%H:%M" if _seconds(process) < 86_400 else "%b%d", began)


def _command(process: ContainerProcess) -> str:
    return " ".join(process.command) or f"[{process.name}]"


def _cpu(process: ContainerProcess) -> float:
    """Per cent of one CPU, over its whole life, as ps(1) has it."""
    return process.cpu / _seconds(process) / 1e7


def _memory(process: ContainerProcess) -> float:
    return 100 * process.resident / memory()


#: By the names that ps(1) has under STANDARD FORMAT SPECIFIERS: head and text.
COLUMNS: dict[str, tuple[str, Column]] = {
    "pid": ("PID", lambda process: str(process.pid)),
    "ppid": ("PPID", lambda process: str(process.parent)),
    "user": ("USER", lambda process: _user(process.uid)),
    "uid": ("UID", lambda process: str(process.uid)),
    "gid": ("GID", lambda process: str(process.gid)),
    "c": ("C", lambda process: str(int(_cpu(process)))),
    "%cpu": ("%CPU", lambda process: f"{_cpu(process):.1f}"),
    "%mem": ("%MEM", lambda process: f"{_memory(process):.1f}"),
    "vsz": ("VSZ", lambda process: str(process.virtual // 1024)),
    "rss": ("RSS", lambda process: str(process.resident // 1024)),
    "nlwp": ("NLWP", lambda process: str(process.threads)),
    "stat": ("STAT", lambda process: process.state),
    "tty": ("TTY", lambda process: process.terminal or "?"),
    "stime": ("STIME", _began),
    "etime": ("ELAPSED", lambda process: _clock(_seconds(process))),
    "time": ("TIME", lambda process: _clock(process.cpu // 10**9)),
    "comm": ("COMMAND", lambda process: process.name),
    "args": ("COMMAND", _command),
}
_ALIASES = {
    "pcpu": "%cpu",
    "pmem": "%mem",
    "cmd": "args",
    "command": "args",
    "start_time": "stime",
    "tt": "tty",
    "s": "stat",
}
_FULL = (
    ("user", "UID"),
    ("pid", ""),
    ("ppid", ""),
    ("c", ""),
    ("stime", ""),
    ("tty", ""),
    ("time", ""),
    ("args", "CMD"),
)
_BSD = (
    ("user", ""), ("pid", ""), ("%cpu", ""), ("%mem", ""), ("vsz", ""), ("rss", ""), ("tty", ""), ("stat", ""), ("stime", "START"),
    ("time", ""), ("args", ""),
)  # fmt: skip


def chosen(words: Sequence[str]) -> list[tuple[str, Column]]:
    """The columns for options as ps(1) takes them: -ef, aux, -o LIST. Which processes is no question here. Invalid for others."""
    if not words:
        words = ("-ef",)
    names: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        letters = word.lstrip("-")
        if letters[-1:] == "o" and set(letters) <= set("aexo"):
            if not rest:
                raise Invalid(f'option "{word}"', "names no columns", 'write them behind it: "-o pid,comm"')
            names += [(name, "") for name in rest.pop(0).split(",")]
        elif set(letters) <= set("ef") and word.startswith("-"):
            names += _FULL
        elif set(letters) <= set("aux"):
            names += _BSD
        else:
            raise Invalid(f'option "{word}"', "not one of -ef, aux and -o LIST")
    return [_column(name, head) for name, head in names]


def _column(name: str, head: str) -> tuple[str, Column]:
    name, _, given = name.partition("=")
    found = COLUMNS.get(_ALIASES.get(name.lower(), name.lower()))
    if found is None:
        raise Invalid(f'column "{name}"', "there is none of that name", hint(name, COLUMNS))
    return given or head or found[0], found[1]


@click.command(
    "top",
    cls=Command,
    interspersed=False,
    help="List the processes of a running container, by the host's numbers. Options are those of ps(1) that choose columns: "
    "-ef (as without any), aux, -o LIST.",
    examples="wherry top web\nwherry top web -o pid,user,rss,args",
)
@argument("container", metavar="CONTAINER")
@argument("words", nargs=-1, metavar="[PS_OPTION...]")
def command(session: Session, *, container: str, words: tuple[str, ...]) -> int:
    """Prints a table."""
    columns = chosen(words)
    found = session.engine.processes(container)
    session.out(table([[head for head, _text in columns], *[[text(one) for _head, text in columns] for one in found]]))
    return 0
