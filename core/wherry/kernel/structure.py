"""Plain data into attrs records: strict, every error at once, each with its key and the nearest valid name.

cattrs does the work. On top of it: unknown keys are errors, nothing is coerced between str, int, float and bool (an int is
accepted where a float is wanted), and a tuple of strings may be written as one string where ``Choice`` says so.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from attrs import frozen

from wherry.errors import suggest

NAMES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "table",
    list: "array",
    type(None): "nothing",
}


@frozen
class Problem:
    """One thing that is wrong. path: the keys down to it, relative to what was structured; cause and hint as in an Error."""

    path: tuple[str, ...]
    cause: str
    hint: str = ""


class StructureError(Exception):
    """Data does not fit a record; problems has all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems


class _Wrong(ValueError):
    """A value of the wrong type, in words."""


def structure(data: Any, cls: Any) -> Any:
    """data as cls. Raises StructureError."""
    converter = strict_converter()
    try:
        return converter.structure(data, cls)
    except Exception as error:
        raise StructureError(tuple(_flatten(error, (), cls))) from None


@cache
def strict_converter() -> Any:
    """The one converter of the kernel: forbid_extra_keys, no coercion, detailed errors."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn

    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    configure(converter)

    def record(cls: Any) -> Any:
        plain = make_dict_structure_fn(cls, converter)

        def hook(value: Any, wanted: Any) -> Any:
            if not isinstance(value, Mapping):
                raise _Wrong(f"{_shown(value)} is {_a(type(value))}, expected a table")
            return plain(value, wanted)

        return hook

    converter.register_structure_hook_factory(attrs.has, record)
    return converter


def configure(converter: Any) -> None:
    """Makes a cattrs converter strict about scalars, literals, tuples, mappings and unions."""
    for scalar in (str, int, float, bool):
        converter.register_structure_hook(scalar, _scalar)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_factory(_is_tuple, lambda cls: _tuple_hook(cls, converter))
    converter.register_structure_hook_factory(_is_mapping, lambda cls: _mapping_hook(cls, converter))
    converter.register_structure_hook_factory(_is_union, lambda cls: _union_hook(cls, converter))


def said_of(error: Exception) -> str:
    """What structuring raised, on one line."""
    problems = _flatten(error, (), object)
    return "; ".join((".".join(problem.path) + ": " if problem.path else "") + problem.cause for problem in problems)


def _scalar(value: Any, cls: type) -> Any:
    if type(value) is cls:
        return value
    if cls is float and type(value) is int:
        return float(value)
    raise _Wrong(f"{_shown(value)} is {_a(type(value))}, expected {_a(cls)}")


def _literal(value: Any, cls: Any) -> Any:
    for choice in get_args(cls):
        if type(choice) is type(value) and choice == value:
            return value
    choices = ", ".join(_shown(choice) for choice in get_args(cls))
    raise _Wrong(f"{_shown(value)} is not one of {choices}")


def _is_literal(cls: Any) -> bool:
    origin: Any = get_origin(cls)
    return origin is Literal


def _is_tuple(cls: Any) -> bool:
    return get_origin(cls) is tuple


def _is_mapping(cls: Any) -> bool:
    return get_origin(cls) in {dict, Mapping} or cls in {dict, Mapping}


def _is_union(cls: Any) -> bool:
    return get_origin(cls) in {Union, types.UnionType}


def _tuple_hook(cls: Any, converter: Any) -> Any:
    from cattrs.errors import IterableValidationError, IterableValidationNote

    arguments = get_args(cls)
    variadic = len(arguments) == 2 and arguments[1] is Ellipsis

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) not in {list, tuple}:
            raise _Wrong(f"{_shown(value)} is {_a(type(value))}, expected an array")
        if not variadic and len(value) != len(arguments):
            raise _Wrong(f"an array of {len(value)}, expected {len(arguments)}")
        result, errors = [], []
        for index, item in enumerate(value):
            wanted = arguments[0] if variadic else arguments[index]
            try:
                result.append(converter.structure(item, wanted))
            except Exception as error:
                error.add_note(IterableValidationNote(f"item {index}", index, wanted))
                errors.append(error)
        if errors:
            raise IterableValidationError("in an array", errors, cls)
        return tuple(result)

    return hook


def _mapping_hook(cls: Any, converter: Any) -> Any:
    from cattrs.errors import IterableValidationError, IterableValidationNote

    wanted = (get_args(cls) or (str, Any))[1]

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _Wrong(f"{_shown(value)} is {_a(type(value))}, expected a table")
        result, errors = {}, []
        for key, item in value.items():
            try:
                result[key] = item if wanted is Any else converter.structure(item, wanted)
            except Exception as error:
                error.add_note(IterableValidationNote(f"key {key}", key, wanted))
                errors.append(error)
        if errors:
            raise IterableValidationError("in a table", errors, cls)
        return result

    return hook


def _union_hook(cls: Any, converter: Any) -> Any:
    others = tuple(argument for argument in get_args(cls) if argument is not type(None))
    optional = type(None) in get_args(cls)

    def hook(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        if len(others) == 1:
            return converter.structure(value, others[0])
        for other in others:
            try:
                return converter.structure(value, other)
            except Exception:  # noqa: S112 the next member of the union may fit
                continue
        wanted = " or ".join(_a(other) for other in others)
        raise _Wrong(f"{_shown(value)} is {_a(type(value))}, expected {wanted}")

    return hook


def _flatten(error: BaseException, path: tuple[str, ...], cls: Any) -> list[Problem]:
    from cattrs.errors import (
        AttributeValidationNote,
        BaseValidationError,
        ForbiddenExtraKeysError,
        IterableValidationNote,
    )

    problems: list[Problem] = []
    if isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            step: tuple[str, ...] = ()
            for note in getattr(inner, "__notes__", ()):
                if isinstance(note, AttributeValidationNote):
                    step = (note.name,)
                elif isinstance(note, IterableValidationNote):
                    step = (str(note.index),)
            problems += _flatten(inner, path + step, error.cl)
        return problems
    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            problems.append(Problem((*path, key), f'unknown key "{key}"', suggest(key, known)))
        return problems
    if isinstance(error, KeyError) and attrs.has(cls):
        key = str(error.args[0])
        return [Problem(path if path[-1:] == (key,) else (*path, key), f'the key "{key}" is missing')]
    text = str(error) or type(error).__name__
    if not isinstance(error, _Wrong) and isinstance(error, AttributeError | TypeError):
        text = f"does not fit {getattr(cls, '__name__', cls)}"
    return [Problem(path, text)]


def _a(cls: Any) -> str:
    name: str = NAMES.get(cls) or ("a table" if attrs.has(cls) else getattr(cls, "__name__", None) or str(cls))
    if name.startswith(("a ", "an ", "nothing")):
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _shown(value: Any) -> str:
    """A value as TOML would write it, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
