"""Records as they are stored, and back: the JSON of an attrs record is an object by its fields' names, or an array in their order.

    text = json.dumps(places, default=by_position)
    places = restore(tuple[Place, ...], json.loads(text))

What a newer version stored beside what is known here is dropped; what an older one did not store has its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


def by_position(value: Any) -> Any:
    """For ``json.dumps(default=...)``: a record as the array of its fields, a mapping as an object, a set as a sorted array."""
    if names := _names(type(value)):  # type: ignore[arg-type] # a type is hashable
        return [getattr(value, name) for name in names]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"not plain data: {type(value).__name__}")


def restore(cls: type[T], data: Any) -> T:
    """Data of JSON as a record, or whatever else the annotation cls says. KeyError, TypeError or ValueError for what does not fit."""
    found: T = _hook(cls)(data, cls)  # type: ignore[arg-type] # a type is hashable
    return found


@cache
def _names(cls: Any) -> tuple[str, ...]:
    """The fields of a record, none for what is no record."""
    return tuple(field.name for field in attrs.fields(cls)) if attrs.has(cls) else ()


@cache
def _hook(cls: Any) -> Any:
    return _converter().get_structure_hook(cls)


@cache
def _converter() -> Any:
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn

    converter = Converter(detailed_validation=False)

    def record(cls: Any) -> Any:
        named = make_dict_structure_fn(cls, converter)
        names = _names(cls)

        def hook(data: Any, wanted: Any) -> Any:
            return named(data if isinstance(data, dict) else dict(zip(names, data, strict=False)), wanted)

        return hook

    converter.register_structure_hook_factory(attrs.has, record)
    return converter


__all__ = ["by_position", "restore"]
