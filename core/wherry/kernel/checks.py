"""Does a value fit an annotation? Compiled once per annotation; a driver's answers are judged by it."""

from __future__ import annotations

import collections.abc
import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

LARGEST_TEXT = 64 << 20
LARGEST_TUPLE = 1 << 20

Check = Callable[[Any], str]
"""The reason why a value does not fit, "" when it does."""

_cache: dict[Any, Check] = {}


def check_for(annotation: Any) -> Check:
    """The check of an annotation as the contract's Protocols use them."""
    try:
        return _cache[annotation]
    except KeyError:
        check = _cache[annotation] = _compile(annotation)
        return check


def is_protocol(annotation: Any) -> bool:
    """Whether an annotation is a Protocol class of ours."""
    return isinstance(annotation, type) and getattr(annotation, "_is_protocol", False)


def hints_of(function: Any) -> dict[str, Any]:
    """The resolved annotations of a Protocol's method. The names of its module are all that it may use."""
    return get_type_hints(function)


def short(annotation: Any) -> str:
    """An annotation as it reads in the source."""
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", str(annotation))


def _compile(annotation: Any) -> Check:
    if annotation is Any or annotation is object or isinstance(annotation, TypeVar):
        return _anything
    if annotation is None or annotation is type(None):
        return lambda value: "" if value is None else _not(value, "None")
    if isinstance(annotation, NewType):
        return check_for(annotation.__supertype__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, types.UnionType}:
        return _union(annotation, [check_for(argument) for argument in arguments])
    if origin is Literal:
        choices = frozenset(arguments)
        return lambda value: (
            "" if isinstance(value, str | int) and value in choices else f"{value!r:.60} is none of {arguments}"
        )
    if origin is tuple:
        return _tuple(annotation, arguments)
    if origin in {Mapping, dict}:
        return _mapping(annotation, arguments)
    if origin in {frozenset, collections.abc.Set}:
        return _frozenset(annotation, check_for(arguments[0]))
    if origin in {Iterator, collections.abc.Iterator}:
        return lambda value: "" if hasattr(value, "__next__") else _not(value, short(annotation))
    if annotation is BinaryIO:
        return lambda value: "" if hasattr(value, "read") or hasattr(value, "write") else _not(value, "a binary stream")
    if is_protocol(annotation):
        return _protocol(annotation)
    if annotation in {str, bytes}:
        return _text(annotation)
    if annotation is int:
        return lambda value: (
            "" if type(value) is int or (isinstance(value, int) and not isinstance(value, bool)) else _not(value, "int")
        )
    if annotation is float:
        return lambda value: "" if type(value) in {float, int} else _not(value, "float")
    if annotation is bool:
        return lambda value: "" if value is True or value is False else _not(value, "bool")
    if annotation is Path:
        return lambda value: "" if isinstance(value, Path) else _not(value, "Path")
    if isinstance(annotation, type) and attrs.has(annotation):
        return _record(annotation)
    if isinstance(annotation, type):
        return lambda value: "" if isinstance(value, annotation) else _not(value, annotation.__name__)
    return _anything


def _anything(_: Any) -> str:
    return ""


def _not(value: Any, wanted: str) -> str:
    return f"{type(value).__name__}, not {wanted}"


def _text(cls: type[str] | type[bytes]) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, cls):
            return _not(value, cls.__name__)
        return (
            ""
            if len(value) <= LARGEST_TEXT
            else f"{len(value)} {'characters' if cls is str else 'bytes'}, more than {LARGEST_TEXT}"
        )

    return check


def _union(annotation: Any, checks: list[Check]) -> Check:
    def check(value: Any) -> str:
        for each in checks:
            if not each(value):
                return ""
        if attrs.has(type(value)) or isinstance(value, tuple):
            return next(
                (reason for each in checks if (reason := each(value)) and ": " in reason),
                _not(value, short(annotation)),
            )
        return _not(value, short(annotation))

    return check


def _tuple(annotation: Any, arguments: tuple[Any, ...]) -> Check:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = check_for(arguments[0])

        def check(value: Any) -> str:
            if not isinstance(value, tuple):
                return _not(value, short(annotation))
            if len(value) > LARGEST_TUPLE:
                return f"a tuple of {len(value)}, more than {LARGEST_TUPLE}"
            for index, each in enumerate(value):
                if reason := item(each):
                    return f"item {index}: {reason}"
            return ""

        return check
    items = [check_for(argument) for argument in arguments]

    def check_fixed(value: Any) -> str:
        if not isinstance(value, tuple):
            return _not(value, short(annotation))
        if len(value) != len(items):
            return f"a tuple of {len(value)}, not of {len(items)}"
        for index, (each, item) in enumerate(zip(value, items, strict=True)):
            if reason := item(each):
                return f"item {index}: {reason}"
        return ""

    return check_fixed


def _mapping(annotation: Any, arguments: tuple[Any, ...]) -> Check:
    key_check, value_check = (check_for(argument) for argument in arguments or (Any, Any))

    def check(value: Any) -> str:
        if type(value) is not dict and not isinstance(value, Mapping):
            return _not(value, short(annotation))
        if len(value) > LARGEST_TUPLE:
            return f"a mapping of {len(value)}, more than {LARGEST_TUPLE}"
        for key, each in value.items():
            if reason := key_check(key):
                return f"key {key!r:.40}: {reason}"
            if reason := value_check(each):
                return f"{key!r:.40}: {reason}"
        return ""

    return check


def _frozenset(annotation: Any, item: Check) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, frozenset | set):
            return _not(value, short(annotation))
        return next((reason for each in value if (reason := item(each))), "")

    return check


def _protocol(annotation: Any) -> Check:
    names = methods_of(annotation)

    def check(value: Any) -> str:
        missing = [name for name in names if not callable(getattr(value, name, None))]
        return f"{type(value).__name__} without {', '.join(missing)}: not {annotation.__name__}" if missing else ""

    return check


def _record(cls: type[Any]) -> Check:
    fields: list[tuple[str, Check]] | None = None

    def check(value: Any) -> str:
        nonlocal fields
        if not isinstance(value, cls):
            return _not(value, cls.__name__)
        if fields is None:  # at first use: records may refer to each other
            hints = get_type_hints(cls)
            fields = [
                (each.name, field_check)
                for each in attrs.fields(cls)
                if (field_check := check_for(hints.get(each.name, Any))) is not _anything
            ]
        for name, field_check in fields:
            if reason := field_check(getattr(value, name)):
                return f"{cls.__name__}.{name}: {reason}"
        return ""

    return check


def methods_of(protocol: Any) -> dict[str, Any]:
    """Name -> function for every public method of a Protocol and those it extends."""
    methods: dict[str, Any] = {}
    for cls in reversed(protocol.__mro__):
        if getattr(cls, "_is_protocol", False):
            methods |= {name: each for name, each in vars(cls).items() if callable(each) and not name.startswith("_")}
    return methods


def owner_of(protocol: Any, name: str) -> str:
    """The name of the Protocol in which a method stands."""
    for cls in protocol.__mro__:
        if name in vars(cls):
            return str(cls.__name__)
    return str(protocol.__name__)


def attributes_of(protocol: Any) -> dict[str, Any]:
    """Name -> annotation of the data attributes of a Protocol."""
    return {
        name: annotation
        for name, annotation in get_type_hints(protocol).items()
        if not name.startswith("_") and name not in methods_of(protocol)
    }
