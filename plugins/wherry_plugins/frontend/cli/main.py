"""The command ``wherry``: finds the subcommand, runs it, and turns whatever it raises into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping

import click

from wherry.api import Error, Invalid
from wherry_plugins.frontend.cli.command import BadOption, CommandGroup, HelpWanted
from wherry_plugins.frontend.cli.nearest import hint
from wherry_plugins.frontend.cli.session import BROKEN_PIPE, ClientGone, Session

HERE = "wherry_plugins.frontend.cli.commands"


def _at(module: str, section: str, text: str, attribute: str = "command") -> tuple[str, str, str, str]:
    return (f"{HERE}.{module}", attribute, section, text)


_CONTAINERS = {
    "run": _at("run", "Containers", "Create a container from an image and start it"),
    "create": _at("create", "Containers", "Create a container without starting it"),
    "start": _at("start", "Containers", "Start created or stopped containers"),
    "stop": _at("stop", "Containers", "Stop running containers"),
    "restart": _at("restart", "Containers", "Stop containers and start them again"),
    "kill": _at("kill", "Containers", "Send a signal to containers"),
    "pause": _at("pause", "Containers", "Freeze all processes of containers"),
    "unpause": _at("pause", "Containers", "Let frozen containers go on", "unpause"),
    "wait": _at("wait", "Containers", "Wait until containers exit and print their exit codes"),
    "rm": _at("rm", "Containers", "Remove containers"),
    "exec": _at("exec", "Containers", "Run a command in a running container"),
    "attach": _at("attach", "Containers", "Connect to the streams of a running container"),
    "logs": _at("logs", "Containers", "Print what a container wrote"),
    "port": _at("port", "Containers", "Print where published ports are to be had"),
    "top": _at("top", "Containers", "List the processes of a container"),
    "rename": _at("rename", "Containers", "Give a container another name"),
    "update": _at("update", "Containers", "Change the limits of containers"),
    "stats": _at("stats", "Containers", "Print what containers use of the machine"),
}
_PS = _at("ps", "Containers", "List containers")
_INSPECT = _at(
    "inspect", "Containers", "Print all that is known of containers, images, networks and volumes, and who set what"
)
_IMAGES = {
    "pull": _at("pull", "Images", "Fetch an image"),
    "load": _at("load", "Images", "Load images from an archive"),
    "save": _at("save", "Images", "Write images to an archive"),
    "import": _at("import_", "Images", "Make an image from a tar of a file tree"),
    "history": _at("history", "Images", "Show how an image was made"),
    "tag": _at("tag", "Images", "Give an image one more name"),
}

CONTAINER = CommandGroup(
    "container",
    {
        **_CONTAINERS,
        "ls": _PS,
        "list": _PS,
        "ps": _PS,
        "inspect": _at("inspect", "Containers", _INSPECT[3], "container"),
        "prune": _at("pruning", "Containers", "Remove containers that do not run", "containers"),
    },
    help="Manage containers.",
    epilog="",
)
IMAGE = CommandGroup(
    "image",
    {
        "ls": _at("images", "Images", "List images"),
        "list": _at("images", "Images", "List images"),
        **_IMAGES,
        "rm": _at("rmi", "Images", "Remove images"),
        "remove": _at("rmi", "Images", "Remove images"),
        "tree": _at("tree", "Images", "Show what each layer of an image brings"),
        "prune": _at("prune", "Images", "Remove images that nothing uses"),
        "inspect": _at("inspect", "Images", "Print all that is known of images", "image"),
    },
    help="Manage images.",
    epilog="",
)

ROOT = CommandGroup(
    "wherry",
    {
        **_CONTAINERS,
        "ps": _PS,
        "inspect": _INSPECT,
        "images": _at("images", "Images", "List images"),
        **_IMAGES,
        "rmi": _at("rmi", "Images", "Remove images"),
        "network": _at("network", "Networks", "Make, list and remove networks, and put containers in them", "group"),
        "info": _at("info", "System", "Print which drivers were chosen, which were passed over and why"),
        "plugins": _at("plugins", "System", "List plugins with their state"),
        "config": _at("config", "System", "Check a config file, or show the one in effect", "group"),
        "engine": _at("engine", "System", "Start, stop, restart or query the engine", "group"),
        "events": _at("events", "System", "Print what happens, as it happens"),
        "gc": _at("gc", "System", "Remove what nothing refers to"),
        "doctor": _at("doctor", "System", "Check the state on disk, and repair it"),
        "system": _at("system", "System", "Disk usage, prune, reset, and other names of info and events", "group"),
        "version": _at("version", "System", "Print the version of client and engine"),
        "container": ("wherry_plugins.frontend.cli.main", "CONTAINER", "Groups", "Container commands under one name"),
        "image": ("wherry_plugins.frontend.cli.main", "IMAGE", "Groups", "Image commands under one name"),
        "volume": _at("volume", "Groups", "Make, list and remove volumes", "group"),
    },
    help="A container runtime built as a small kernel and a set of plugins.\n\nFor a command's options: wherry COMMAND --help",
)


def dispatch(session: Session) -> int:
    """Parses session.argv and runs the command. What it raises is not handled."""
    group, path, words = ROOT, "wherry", list(session.argv)
    while True:
        if not words or words[0] in {"--help", "-h", "help"}:
            if words[:1] == ["help"] and words[1:]:
                words = [*words[1:], "--help"]
                continue
            raise HelpWanted(group, click.Context(group, info_name=path, obj=session, terminal_width=session.width))
        name = words.pop(0)
        if name == "--version" and group is ROOT:
            name = "version"
        command = group.get_command(None, name)
        if command is None:
            what = f'{"option" if name.startswith("-") else "command"} "{name}"'
            near = hint(name, group.table)
            raise Invalid(
                what, f'"{path}" has no such {what.split(" ", maxsplit=1)[0]}', f'{near} see "{path} --help"'.strip()
            )
        path = f"{path} {name}"
        if not isinstance(command, CommandGroup):
            ctx = click.Context(command, info_name=path, obj=session, terminal_width=session.width)
            command.parse_args(ctx, words)
            session.codes = getattr(command, "codes", ())
            return command.invoke(ctx) or 0
        group = command


def execute(session: Session, identity: dict[str, str]) -> int:
    """The exit code of one command; its errors are printed."""
    try:
        if not session.offline:
            check_identity(session, identity)
        return dispatch(session)
    except HelpWanted as wanted:
        return quietly(session.out, wanted.command.get_help(wanted.ctx) + "\n")
    except ClientGone:
        return BROKEN_PIPE
    except Error as error:
        return report(session, error)
    except OSError as error:
        return report(session, error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        text = f"wherry: command line: internal fault: {type(error).__name__}: {error}; see engine.log\n"
        return quietly(session.err, text, exit_code(session, error))


def quietly(write: object, text: str, code: int = 0) -> int:
    """Writes for the last time: nobody is left to hear that it failed."""
    try:
        write(text)  # type: ignore[operator]
    except (ClientGone, OSError):
        return code or BROKEN_PIPE
    return code


def report(session: Session, error: Error | OSError) -> int:
    """One line on the client's stderr; the exit code."""
    if isinstance(error, OSError):
        text = describe(error)
    else:
        text = f"{error} ({error.plugin})" if error.plugin else str(error)
    return quietly(session.err, f"wherry: {printable(text)}\n", exit_code(session, error))


def exit_code(session: Session, error: Exception) -> int:
    """As docker's: 125 for what is wrong with an option; for all else the code of the error's class where the command has such
    codes, and 1 where it has none."""
    code = error.exit_code if isinstance(error, Error) else Error.exit_code
    return code if isinstance(error, BadOption) or code in session.codes else 1


def printable(text: str) -> str:
    """An error may quote what an image or a registry says: nothing of that drives the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def describe(error: OSError) -> str:
    """What the system said, in our form."""
    cause = (error.strerror or str(error)).lower()
    what = f'file "{os.fsdecode(error.filename)}"' if isinstance(error.filename, (str, bytes)) else "system"
    plugin = getattr(error, "plugin", "")
    return f"{what}: {cause}" + (f" ({plugin})" if plugin else "")


def check_identity(session: Session, identity: dict[str, str]) -> None:
    """Invalid when --root or --config (or its variable) is not what the running engine was started with."""
    wanted = {
        "root": session.given.get("root") or session.environ.get("WHERRY_ROOT", ""),
        "config": session.given.get("config") or session.environ.get("WHERRY_CONFIG", ""),
    }
    if not any(wanted.values()):
        return
    if not identity:
        info = session.engine.info()
        identity.update(root=str(info.root), config=str(info.config), run=str(info.run))
    for name, text in wanted.items():
        if text and not _same(session.path(text), identity[name]):
            actual = f'"{identity[name]}"' if identity[name] else "none"
            raise Invalid(
                f'{name} "{text}"', f"the engine at {identity['run']} runs with {actual}", _other(name, text, identity)
            )


def _same(first: str, second: str) -> bool:
    return first == second or (bool(second) and os.path.realpath(first) == os.path.realpath(second))


def _other(name: str, text: str, identity: Mapping[str, str]) -> str:
    if name == "config":
        return f'run "wherry --run {identity["run"]} engine stop", then "wherry --config {text} engine start"'
    return "name its own --run directory too, for an engine of its own"


def warm() -> None:
    """Imports every command, so that no client waits for that."""
    for group in (ROOT, CONTAINER, IMAGE):
        for name in group.list_commands(None):
            group.get_command(None, name)
