"""click's commands with what this front end needs: pflag's syntax, typed errors, no use of sys, os.environ or the working
directory of the engine, and an own parser that looks only at the options given (click's takes a millisecond for ``run``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from wherry.api import Invalid
from wherry_plugins.frontend.cli.nearest import hint

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic from click 8.3 on
#: Exit codes that a command may have for its errors beside 1: docker's own commands run and exec.
RUN_CODES, EXEC_CODES = (125, 126, 127), (126, 127)
_BUILTIN = (str, int, float, bool)
_TRUE, _FALSE = ("1", "t", "true", "yes"), ("0", "f", "false", "no")


class BadOption(Invalid):
    """An option that there is not, or a value that it can't have: docker exits with 125 then, whatever the command."""


class Converted(_ParamType):
    """A type by a function of the text; its ValueError becomes Invalid naming the option."""

    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self.function = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.function(value) if isinstance(value, str) else value


class Option(click.Option):
    """An option with a heading for the help."""

    def __init__(self, *declarations: Any, section: str = "Options", **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self.section = section
        self.fallback = attributes.get("default", () if self.multiple else (False if self.is_flag else None))


def option(*declarations: str, type: Any = None, section: str = "Options", **attributes: Any) -> Callable[[Any], Any]:
    """A decorator, as click.option; a function as type is called with the text."""
    if callable(type) and not isinstance(type, click.ParamType) and type not in _BUILTIN:
        type = Converted(attributes.get("metavar", "value").lower(), type)
    return click.option(*declarations, cls=Option, type=type, section=section, **attributes)


def argument(name: str, **attributes: Any) -> Callable[[Any], Any]:
    """A decorator, as click.argument."""
    return click.argument(name, **attributes)


class Command(click.Command):
    """examples is shown under the help; options follow operands anywhere unless interspersed is False. codes: exit codes that
    errors of it keep; all others exit with 1."""

    def __init__(
        self,
        *args: Any,
        examples: str = "",
        interspersed: bool = True,
        codes: Sequence[int] = (),
        **attributes: Any,
    ) -> None:
        attributes.setdefault("add_help_option", False)
        super().__init__(*args, **attributes)
        self.examples = examples
        self.interspersed = interspersed
        self.codes = codes
        self.options: dict[str, Option] = {}
        self.operands: list[click.Argument] = []
        for param in self.params:
            if isinstance(param, Option):
                self.options.update(dict.fromkeys(param.opts, param))
            elif isinstance(param, click.Argument):
                self.operands.append(param)
        self.defaults = {param.name: param.fallback for param in self.params if isinstance(param, Option)}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Fills ctx.params. Raises Invalid, or HelpWanted for --help."""
        ctx.params = self.parsed(args, ctx)
        return []

    def parsed(self, args: Sequence[str], ctx: click.Context) -> dict[str, Any]:
        """The parameters of one command line, by name."""
        values: dict[str, Any] = dict(self.defaults)
        words: list[str] = []
        rest = list(args)[::-1]
        while rest:
            word = rest.pop()
            if word == "--":
                words += rest[::-1]
                break
            if word[:1] != "-" or word == "-":
                words.append(word)
                if not self.interspersed:
                    words += rest[::-1]
                    break
            elif word.startswith("--"):
                name, equals, value = word.partition("=")
                self._take(ctx, values, name, value if equals else None, rest)
            else:
                self._shorts(ctx, values, word, rest)
        self._place(ctx, values, words)
        return values

    def _shorts(self, ctx: click.Context, values: dict[str, Any], word: str, rest: list[str]) -> None:
        """-it, -eA=1, -p 80:80, -d=false."""
        for at in range(1, len(word)):
            name, after = "-" + word[at], word[at + 1 :]
            found = self.options.get(name)
            if found is not None and (not found.is_flag or after.startswith("=")):
                self._take(ctx, values, name, after.removeprefix("=") if after else None, rest)
                return
            self._take(ctx, values, name, None, rest, word)

    def _take(
        self, ctx: click.Context, values: dict[str, Any], name: str, value: str | None, rest: list[str], word: str = ""
    ) -> None:
        found = self.options.get(name)
        if found is None:
            if name == "--help" or (name == "-h" and len(word) < 3):
                raise HelpWanted(self, ctx)
            where = f' in "{word}"' if len(word) > 2 else ""
            near = hint(name, [known for known in self.options if known.startswith("--")]) if name[:2] == "--" else ""
            see = f'see "{ctx.command_path} --help"'
            raise BadOption(
                f'option "{name}"{where}', f'"{ctx.command_path}" has no such option', f"{near} {see}".strip()
            )
        key = str(found.name)
        if found.is_flag:
            if value is not None and value.lower() not in (*_TRUE, *_FALSE):
                raise BadOption(f'option "{name}"', f'"{value}" is neither true nor false')
            values[key] = value is None or value.lower() in _TRUE
            return
        if value is None:
            if not rest:
                raise BadOption(f'option "{name}"', "it needs a value", f'see "{ctx.command_path} --help"')
            value = rest.pop()
        converted = self.converted(found, value, f'option "{name}"', ctx)
        values[key] = (*values[key], converted) if found.multiple else converted

    def converted(self, param: click.Parameter, value: str, what: str, ctx: click.Context) -> Any:
        """The typed value. Invalid with what when it has none, BadOption for that of an option."""
        refused = BadOption if isinstance(param, Option) else Invalid
        try:
            return param.type.convert(value, param, ctx)
        except click.BadParameter as error:
            raise refused(what, error.message.rstrip(".").replace("'", '"')) from None
        except ValueError as error:
            raise refused(what, str(error)) from None

    def _place(self, ctx: click.Context, values: dict[str, Any], words: list[str]) -> None:
        """Operands to arguments; only the last one may take several."""
        see = f'see "{ctx.command_path} --help"'
        for param in self.operands:
            name = (param.metavar or str(param.name).upper()).split()[0].removesuffix("...")
            if param.nargs == -1:
                if param.required and not words:
                    raise Invalid(f'command "{ctx.command_path}"', f"it needs at least one {name}", see)
                values[str(param.name)] = tuple(words)
                words = []
            elif words:
                values[str(param.name)] = self.converted(param, words[0], f'argument "{words[0]}"', ctx)
                words = words[1:]
            elif param.required:
                raise Invalid(f'command "{ctx.command_path}"', f"it needs {name}", see)
            else:
                values[str(param.name)] = ""
        if words:
            raise Invalid(f'command "{ctx.command_path}"', f'it takes no argument "{words[0]}"', see)

    def invoke(self, ctx: click.Context) -> Any:
        """Calls the callback with the session and the parameters."""
        if self.callback is not None:
            return self.callback(ctx.obj, **ctx.params)
        return None

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """click before 8.2 writes nothing for a command that takes nothing."""
        if pieces := self.collect_usage_pieces(ctx):
            formatter.write_usage(ctx.command_path, " ".join(pieces))
        else:
            formatter.write(f"Usage: {ctx.command_path}\n")

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        pieces = ["[OPTIONS]"] if self.options else []
        return pieces + [piece for param in self.operands for piece in param.get_usage_pieces(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One table a section, in order of first appearance, and the examples."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.params:
            if isinstance(param, Option) and (record := param.get_help_record(ctx)):
                sections.setdefault(param.section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


class CommandGroup(click.Group):
    """A group whose commands are imported at first use. table: name -> (module, attribute, section, one line of help)."""

    def __init__(self, name: str, table: Mapping[str, tuple[str, str, str, str]], **attributes: Any) -> None:
        attributes.setdefault("add_help_option", False)
        super().__init__(name, **attributes)
        self.table = table
        self.loaded: dict[str, click.Command] = {}

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        """The names, in the order of the help."""
        return list(self.table)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        """Imported at the first call."""
        if (found := self.loaded.get(cmd_name)) is not None:
            return found
        if cmd_name not in self.table:
            return None
        from importlib import import_module

        module, attribute, _section, _help = self.table[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        self.loaded[cmd_name] = command
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, without importing them."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, (_module, _attribute, section, text) in self.table.items():
            sections.setdefault(section, []).append((name, text))
        for title, records in sections.items():
            if title:
                with formatter.section(title):
                    formatter.write_dl(records)
        if self.epilog is None and self.name == "wherry":
            with formatter.section("Options before the command"):
                formatter.write_dl(
                    [
                        ("--config FILE", "The config file; $WHERRY_CONFIG"),
                        ("--root DIR", "Where state is kept; $WHERRY_ROOT"),
                        ("--run DIR", "Where sockets and run-time state are; $WHERRY_RUN"),
                        ("--version", "Print the version"),
                    ]
                )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Done by format_options."""


class HelpWanted(Exception):
    """--help was given: the help is the output."""

    def __init__(self, command: click.Command, ctx: click.Context) -> None:
        super().__init__(command.name)
        self.command = command
        self.ctx = ctx
