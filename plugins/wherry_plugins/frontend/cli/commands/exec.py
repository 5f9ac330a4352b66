"""``wherry exec``."""

from __future__ import annotations

import click

from wherry.api import ExecRequest
from wherry_plugins.frontend.cli.command import EXEC_CODES, Command, argument, option
from wherry_plugins.frontend.cli.creation import environment
from wherry_plugins.frontend.cli.keys import keys_option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import background, follow, foreground, stdio


@click.command(
    "exec",
    cls=Command,
    interspersed=False,
    codes=EXEC_CODES,
    help="Run COMMAND in a running container, in all its namespaces and limits.",
    examples="wherry exec db redis-cli ping\nwherry exec -it -u root web sh",
)
@option("-d", "--detach", is_flag=True, help="Leave it in the background")
@option("-i", "--interactive", is_flag=True, help="Pass stdin to it")
@option("-t", "--tty", is_flag=True, help="Give it a terminal")
@option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass the client's own")
@option("--env-file", multiple=True, metavar="FILE", help="Read variables from a file")
@option("-w", "--workdir", default="", metavar="DIR", help="Directory to start in")
@option("-u", "--user", default="", metavar="USER[:GROUP]", help="Name or id")
@option("--privileged", is_flag=True, help="With all capabilities")
@keys_option
@argument("container", metavar="CONTAINER")
@argument("words", nargs=-1, required=True, metavar="COMMAND [ARG...]")
def command(
    session: Session,
    *,
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str,
    user: str,
    privileged: bool,
    detach_keys: bytes,
    container: str,
    words: tuple[str, ...],
) -> int:
    """The exit code of the command."""
    engine = session.engine
    request = ExecRequest(
        command=words,
        env=environment(session, env, env_file),
        user=user,
        workdir=workdir,
        tty=tty,
        interactive=interactive,
        detach=detach,
        privileged=privileged,
    )
    if detach:
        engine.exec(container, request, background(interactive=interactive, tty=tty))
        return 0
    mine = stdio(session, interactive=interactive, tty=tty)
    with foreground(session, mine, detach_keys) as streams:
        exec_id = engine.exec(container, request, streams)
        return follow(session, container, streams, exec_id=exec_id, tty=tty)
