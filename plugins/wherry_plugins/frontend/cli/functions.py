"""The functions of ``--format`` templates: Go's own and those that docker adds (its "Format command and log output")."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def show(value: Any) -> str:
    """As Go's %v: true, [a b], map[a:b], <no value>."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{show(key)}:{show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, Sequence):
        return "[" + " ".join(map(show, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def truth(value: Any) -> bool:
    """Empty, zero, false and nil are false."""
    return bool(value)


def plain(value: Any) -> Any:
    """value as JSON can carry it: methods of rows left out."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if not hasattr(item, "call")}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def json(value: Any) -> str:
    """JSON on one line."""
    text: str = json_module.dumps(plain(value), separators=(",", ":"), ensure_ascii=False)
    return text


def index(value: Any, *keys: Any) -> Any:
    """value[key]...; a missing key of a mapping is "", as the zero value of a string map is in Go."""
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _format(form: str, *arguments: Any) -> str:
    """The verbs %s %v %q %d %t %f %x and flags, by Python's own formatting."""
    import re

    rest = list(arguments)

    def verb(match: re.Match[str]) -> str:
        flags, letter = match[1], match[2]
        if letter == "%":
            return "%"
        if not rest:
            raise ValueError(f'no value for "{match[0]}"')
        value = rest.pop(0)
        if letter == "q":
            return json_module.dumps(show(value), ensure_ascii=False)
        if letter in "svt":
            return f"%{flags}s" % show(value)
        text: str = f"%{flags}{letter}" % value
        return text

    return re.sub(r"%([-+ 0#]*\d*(?:\.\d+)?)([svqdtfxX%])", verb, form)


def _compare(test: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def compare(first: Any, *others: Any) -> bool:
        return any(test(first, other) for other in others)

    return compare


def _slice(value: Any, *bounds: int) -> Any:
    return value[bounds[0] if bounds else 0 : bounds[1] if len(bounds) > 1 else None]


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": truth,
    "or": truth,
    "not": lambda value: not truth(value),
    "eq": _compare(lambda a, b: bool(a == b)),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "index": index,
    "slice": _slice,
    "len": len,
    "print": lambda *values: "".join(map(show, values)),
    "println": lambda *values: " ".join(map(show, values)) + "\n",
    "printf": _format,
    "json": json,
    "join": lambda values, separator=" ": separator.join(map(show, values)),
    "split": lambda text, separator: text.split(separator),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text[:1].upper() + text[1:],
    "pad": _pad,
    "truncate": lambda text, count: text[:count],
}
