"""The config file: found, read, laid over the defaults, judged; each value keeps its origin.

One file counts: the first of ``search_paths`` that exists, or the one named by ``--config``. Its tables are laid over the tables
of the defaults key by key; an array or a value replaces the default one whole. Files are never merged with each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from wherry.errors import Denied, Error, Invalid, NotFound, suggest
from wherry.interfaces.config import Config, EngineConfig, Origin, Variant
from wherry.kernel.locate import line_of
from wherry.kernel.structure import Problem, StructureError, structure
from wherry.linux import userns

if TYPE_CHECKING:
    from wherry.kernel.plugins import Plugins

KINDS = ("store", "snapshotter", "isolation", "network")
DEFAULTS = "defaults"


class ConfigErrors(Invalid):
    """More than one problem of a config; the cause has them one a line."""

    def __init__(self, problems: list[Error], file: str) -> None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f'config file "{file}"' if file else "config", f"{len(problems)} problems:\n{lines}")
        self.problems = problems


@frozen
class LoadedConfig:
    """The effective config. file: "" when only the defaults were used; text: the file's, for line numbers in messages."""

    config: Config = field(factory=Config)
    file: str = ""
    origins: tuple[Origin, ...] = ()
    text: str = field(default="", repr=False)

    def place(self, *path: str) -> str:
        """``FILE:LINE: [table] key`` of a key, or what is known of it, for the first part of an error."""
        return place(self.file, self.text, path)


def search_paths(environ: Mapping[str, str], uid: int) -> tuple[Path, ...]:
    """Where a config file is looked for, in order, when none is named by --config or $WHERRY_CONFIG."""
    paths = []
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    if not home and uid == 0:
        home = "/root/.config"
    if home:
        paths.append(Path(home) / "wherry" / "config.toml")
    paths.append(Path("/etc/wherry/config.toml"))
    return tuple(paths)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """The effective config. path: --config; else $WHERRY_CONFIG, else the first that exists.

    Raises NotFound for a named file that is absent, Denied for one that may not be read, Invalid for a bad one: its text
    has every problem, one a line.
    """
    environ = os.environ if environ is None else environ
    named = path or (Path(environ["WHERRY_CONFIG"]) if environ.get("WHERRY_CONFIG") else None)
    for candidate in (named,) if named else search_paths(environ, userns.outer_uid()):
        try:
            text = candidate.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            if not named:
                continue
            by = "--config" if path else "$WHERRY_CONFIG"
            raise NotFound(f'config file "{candidate}"', "no such file", f"it is named by {by}") from None
        except PermissionError:
            raise Denied(f'config file "{candidate}"', "permission denied") from None
        except UnicodeDecodeError as error:
            raise Invalid(f'config file "{candidate}"', f"not UTF-8: {error.reason} at byte {error.start}") from None
        except OSError as error:
            raise Invalid(f'config file "{candidate}"', error.strerror or str(error)) from None
        return loads(text, str(candidate))
    return loads("", "")


def loads(text: str, file: str, defaults: str | None = None) -> LoadedConfig:
    """The effective config of this text over the defaults (None: those of the plugins). Raises Invalid."""
    loaded, problems = parse(text, file, defaults)
    if loaded is None or problems:
        raise combined(problems, file)
    return loaded


def parse(text: str, file: str, defaults: str | None = None) -> tuple[LoadedConfig | None, list[Error]]:
    """Like loads, with the problems as a list. The first half is None when the text is no TOML or no Config."""
    if defaults is None:
        from wherry.kernel.plugins import installed

        defaults = installed().default_config()
    user, problem = _toml(text, file or "config")
    base, base_problem = _toml(defaults, DEFAULTS)
    if problem or base_problem:
        return None, [error for error in (problem, base_problem) if error]
    problems = [_error(file, text, issue) for issue in _judge(user, Config)]
    if problems:
        return None, problems
    merged = overlay(base, user)
    issues = _judge(merged, Config)
    if issues:  # then the defaults are at fault
        return None, [_error(DEFAULTS, defaults, issue) for issue in issues]
    config = structure(_normal(merged), Config)
    given = {origin.key for origin in _leaves(user, file)}
    origins = tuple(
        Origin(origin.key, origin.value, file if origin.key in given else DEFAULTS) for origin in _effective(config)
    )
    loaded = LoadedConfig(config, file, origins, text)
    return loaded, list(_references(loaded))


def check(text: str, file: str, plugins: Plugins | None = None) -> list[Error]:
    """Everything that is wrong with a config file's text, drivers and plugin tables included; an empty list: nothing.

    Modules of the plugins that have a table are imported to learn their config class; no driver is initialised. plugins: those
    to judge by, None for the installed ones.
    """
    from wherry.kernel.plugins import installed

    plugins = plugins or installed()
    loaded, problems = parse(text, file, plugins.default_config())
    if loaded is not None:
        problems += plugins.check(loaded)
    return problems


def combined(problems: list[Error], file: str) -> Error:
    """One error of several: the single one itself, or an Invalid whose cause has one a line."""
    if len(problems) == 1:
        return problems[0]
    return ConfigErrors(problems, file)


def place(file: str, text: str, path: tuple[str, ...]) -> str:
    """``FILE:LINE: [table] key``: as much of it as is known."""
    line = line_of(text, path) if text else 0
    where = (f"{file}:{line}" if line else file) or "config"
    table, key = _split(path)
    return f"{where}: " + (f"[{table}] {key}".strip() if table else key or "top level")


def variants_of(config: Config, name: str) -> Iterator[tuple[str, Variant]]:
    """The variant and what it extends, nearest first; ends silently at an unknown name or a cycle."""
    seen: set[str] = set()
    while name and name not in seen and name in config.variant:
        seen.add(name)
        yield name, config.variant[name]
        name = config.variant[name].extends


def _toml(text: str, file: str) -> tuple[dict[str, Any], Error | None]:
    import tomllib

    try:
        return tomllib.loads(text), None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return {}, Invalid(f'config file "{file}"', f"not TOML: {str(error)[:1].lower()}{str(error)[1:]}")


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """top over base: tables key by key, everything else replaced."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        result[key] = overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _judge(data: Mapping[str, Any], cls: type) -> tuple[Problem, ...]:
    try:
        structure(_normal(data), cls)
    except StructureError as error:
        return error.problems
    return ()


def _normal(data: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's drivers may be one string: as an array of one."""
    variants = data.get("variant")
    if not isinstance(variants, dict):
        return dict(data)
    normal = {}
    for name, variant in variants.items():
        if isinstance(variant, dict):
            variant = {
                key: [value] if isinstance(value, str) and key in {*KINDS, "decorate"} else value
                for key, value in variant.items()
            }
        normal[name] = variant
    return {**data, "variant": normal}


def _error(file: str, text: str, problem: Problem) -> Error:
    hint = problem.hint
    if problem.path[:1] == ("version",) and "not one of" in problem.cause:
        hint = "this Wherry reads version 1"
    return Invalid(place(file, text, problem.path), problem.cause, hint)


def _split(path: tuple[str, ...]) -> tuple[str, str]:
    """(table, key). The tables of a Config are known by their depth; indices are shown as such."""
    depth = {"engine": 1, "variant": 2, "plugin": 3}.get(path[0] if path else "", 0)
    keys = list(path[depth:])
    text = ""
    for key in keys:
        text += f"[{key}]" if key.isdigit() else f".{key}" if text else key
    return ".".join(path[:depth]), text


def _leaves(data: Any, origin: str, prefix: str = "") -> Iterator[Origin]:
    if isinstance(data, Mapping) and (data or not prefix):
        for key, value in data.items():
            yield from _leaves(value, origin, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield Origin(prefix, data, origin)


def _effective(config: Config) -> Iterator[Origin]:
    """Every value that counts, those of the records' own defaults too."""
    import attrs

    yield Origin("version", config.version, "")
    yield Origin("default", config.default, "")
    for option in attrs.fields(EngineConfig):
        yield Origin(f"engine.{option.name}", _plain(getattr(config.engine, option.name)), "")
    for name, variant in config.variant.items():
        for option in attrs.fields(Variant):
            value = getattr(variant, option.name)
            if value or (option.name == "decorate" and value is not None):
                plain = value if isinstance(value, str) else list(value)
                yield Origin(f"variant.{name}.{option.name}", plain, "")
    yield from _leaves({"plugin": config.plugin} if config.plugin else {}, "")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _references(loaded: LoadedConfig) -> Iterator[Error]:
    """Names inside the file that must exist in it: the default variant, what is extended, no cycles; and sane numbers."""
    config = loaded.config
    known = config.variant
    if known and config.default not in known:
        yield Invalid(loaded.place("default"), f'no variant "{config.default}"', suggest(config.default, known))
    for name, variant in known.items():
        if variant.extends and variant.extends not in known:
            cause = f'no variant "{variant.extends}"'
            yield Invalid(loaded.place("variant", name, "extends"), cause, suggest(variant.extends, known))
        chain = [each for each, _ in variants_of(config, name)]
        if chain and known[chain[-1]].extends in chain:
            cycle = " -> ".join([*chain, known[chain[-1]].extends])
            yield Invalid(loaded.place("variant", name, "extends"), f"the variants extend each other: {cycle}")
    if config.engine.deadline <= 0:
        yield Invalid(
            loaded.place("engine", "deadline"), f"{config.engine.deadline:g} is not above 0", "it is in seconds"
        )
    if config.engine.idle_exit < 0:
        yield Invalid(loaded.place("engine", "idle_exit"), f"{config.engine.idle_exit:g} is negative", "0 is never")
