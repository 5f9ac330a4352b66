"""``wherry run``."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import click

from wherry.api import AlreadyExists, Error, NotFound, RunRequest, Stdio
from wherry_plugins.frontend.cli.command import RUN_CODES, Command, option
from wherry_plugins.frontend.cli.creation import build_request, creation_options
from wherry_plugins.frontend.cli.keys import keys_option, watched
from wherry_plugins.frontend.cli.session import ClientGone, Session
from wherry_plugins.frontend.cli.streams import background, follow, leaving, stdio, write_cidfile
from wherry_plugins.frontend.cli.tracefile import traced, write_trace
from wherry_plugins.frontend.cli.watching import shown


@click.command(
    "run",
    cls=Command,
    interspersed=False,
    codes=RUN_CODES,
    help="Create a container from IMAGE and start it, by default with its output here and its exit code as ours.\n\n"
    "IMAGE is a reference, or TRANSPORT:REFERENCE such as archive:busybox.tar or host:/bin/sh.",
    examples="""
        wherry run --rm host:/bin/sh sh -c 'echo hello from PID $$'
        wherry run -it --rm archive:busybox.tar sh
        wherry run -d --name db -v ./data:/data --memory 512m redis
        wherry run --rm --variant research --trace start.json busybox true
    """,
)
@option("-d", "--detach", is_flag=True, help="Leave it in the background and print its id")
@option("--sig-proxy", is_flag=True, default=True, help="Pass signals on to the container (true)")
@keys_option
@creation_options
def command(session: Session, *, sig_proxy: bool, detach_keys: bytes, **options: Any) -> int:
    """The exit code of the container; 125 to 127 when it did not come to that, as docker's."""
    cidfile, trace, quiet = options["cidfile"], options["trace"], options["quiet"]
    request = build_request(session, **options)
    if cidfile and Path(session.path(cidfile)).exists():
        raise AlreadyExists(
            f'file "{cidfile}"', "it exists and may belong to another container", "remove it or name another"
        )
    if request.detach:
        with traced(session, trace), shown(session, request.image, quiet=quiet):
            container = session.engine.run(request, background(interactive=request.interactive, tty=request.tty))
        if cidfile:
            write_cidfile(session, cidfile, container.id)
        if trace:
            write_trace(session, trace, container.id)
        session.line(container.id)
        return 0
    with session.holding():
        streams = stdio(session, interactive=request.interactive, tty=request.tty)
        if not (request.tty and request.interactive):
            return _foreground(session, request, streams, cidfile, trace, sig_proxy=sig_proxy, quiet=quiet)
        with watched(streams, detach_keys, leaving(session)) as streams:
            return _foreground(session, request, streams, cidfile, trace, sig_proxy=sig_proxy, quiet=quiet)


def _foreground(
    session: Session, request: RunRequest, streams: Stdio, cidfile: str, trace: str, *, sig_proxy: bool, quiet: bool
) -> int:
    engine = session.engine
    raw = request.tty and request.interactive
    with traced(session, trace), shown(session, request.image, quiet=quiet):
        if not raw and not cidfile:
            identifier = engine.run(request, streams).id
        else:  # in two steps: messages of a pull want a cooked terminal, and the file is there before the process
            identifier = engine.create(request).id
    if cidfile:
        write_cidfile(session, cidfile, identifier)
    with session.raw() if raw else nullcontext():
        try:
            if raw or cidfile:
                if session.gone:
                    raise ClientGone
                engine.start(identifier, streams)
        except (Error, OSError, ClientGone):
            if trace:
                with suppress(Error, OSError):
                    write_trace(session, trace, identifier)
            if request.remove:
                with suppress(NotFound):  # the engine's own failed start has removed it
                    engine.remove(identifier, force=True)
            raise
        try:
            return follow(session, identifier, streams, tty=request.tty, proxy=sig_proxy)
        finally:
            if trace:
                write_trace(session, trace, identifier)
