"""A container in the foreground: its streams are the client's, its exit code too."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from wherry.api import Error, Exit, Invalid, Stdio
from wherry_plugins.frontend.cli.keys import watched
from wherry_plugins.frontend.cli.session import ClientGone, Session

UNKNOWN = 125


def stdio(session: Session, *, interactive: bool, tty: bool) -> Stdio:
    """The client's descriptors. Invalid when a terminal is asked for and stdin is none, as docker has it."""
    if tty and interactive and not session.tty[0]:
        raise Invalid("terminal", "the client's stdin is not a terminal", 'leave out "-t"')
    if len(session.fds) < 3:
        raise Invalid("streams", "the client passed none")
    return Stdio(
        stdin=session.fds[0] if interactive else -1,
        stdout=session.fds[1],
        stderr=-1 if tty else session.fds[2],
        terminal=tty,
        rows=session.rows,
        columns=session.columns,
        hold_stdin=tty and interactive,  # who detaches by the keys may come back
        token=os.urandom(8).hex(),
    )


@contextmanager
def foreground(session: Session, streams: Stdio, keys: bytes) -> Iterator[Stdio]:
    """The streams to give to a process that has the client's meanwhile. Signals are kept until ``follow``; if the process has the
    client's terminal with its stdin, that is raw, and keys let go of it."""
    raw = streams.terminal and streams.stdin >= 0
    with (
        session.holding(),
        watched(streams, keys if raw else b"", leaving(session)) as given,
        session.raw() if raw else nullcontext(),
    ):
        yield given


def background(*, interactive: bool, tty: bool) -> Stdio:
    """Nobody attached; stdin kept open when it was asked for."""
    return Stdio(terminal=tty, hold_stdin=interactive)


def forward(
    session: Session, container: str, *, exec_id: str = "", tty: bool = False, proxy: bool = True
) -> Callable[[dict[str, Any]], None]:
    """What to do with the client's frames: signals to the process, the terminal's size too, and letting go at the end.

    With a terminal the client sends no signals of the keyboard, and one from elsewhere ends the client alone, as docker's.
    """

    def deliver(frame: dict[str, Any]) -> None:
        if "resize" in frame:
            rows, columns = frame["resize"]
            session.engine.resize(container, int(rows), int(columns), exec_id)
        elif "signal" in frame:
            number = int(frame["signal"])
            if tty or not proxy:
                session.exit(128 + number)
                session.gone = True
                let_go()
            else:
                session.engine.kill(container, signal.Signals(number).name.removeprefix("SIG"), exec_id)
        elif "gone" in frame:
            let_go()

    def let_go() -> None:
        try:
            session.let_go()
        finally:
            session.release()

    return deliver


def leaving(session: Session) -> Callable[[], None]:
    """What the detach keys do: the container is let go first, so that it sees no end of its input, then the client ends."""

    def leave() -> None:
        try:
            session.let_go()
        finally:
            session.exit(0)

    return leave


def follow(
    session: Session, container: str, streams: Stdio, *, exec_id: str = "", tty: bool = False, proxy: bool = True
) -> int:
    """Waits for the end of a started process whose streams the client has; its exit code."""
    session.let_go = lambda: session.engine.detach(container, streams.token, exec_id)
    session.deliver(forward(session, container, tty=tty, proxy=proxy, exec_id=exec_id))
    if session.gone:
        session.let_go()
        raise ClientGone
    session.send({"attached": True})
    return exit_code(session, container, session.engine.wait(container, exec_id))


def exit_code(session: Session, container: str, ended: Exit | None) -> int:
    """The code of an exit, 125 with a message when it is unknown."""
    if ended is None or ended.code is None:
        session.err(f'wherry: container "{container[:12]}": its exit code is unknown: the shim was lost\n')
        return UNKNOWN
    return ended.code


def write_cidfile(session: Session, name: str, identifier: str) -> None:
    """A new file with the id. OSError."""
    fd = os.open(session.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, identifier.encode())
    finally:
        os.close(fd)


def each(session: Session, names: tuple[str, ...], action: Callable[[str], str | None]) -> int:
    """Runs action for every name and prints what it answers; one that fails does not keep the others from it."""
    code = 0
    for name in names:
        try:
            answer = action(name)
        except (Error, OSError) as error:
            from wherry_plugins.frontend.cli.main import report

            code = report(session, error)
        else:
            if answer:
                session.line(answer)
    return code
