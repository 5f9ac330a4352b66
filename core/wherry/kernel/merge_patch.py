"""JSON merge patch (RFC 7396) that remembers who changed what (JSON pointers, RFC 6901)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fold(target: Mapping[str, Any], patch: Mapping[str, Any], owner: str, owners: dict[str, str]) -> dict[str, Any]:
    """target with patch applied. Every pointer whose value changed gets its owner; a removed one keeps the entry of who removed
    it. A list or scalar counts as one value. Raises TypeError for what JSON does not have."""
    return _merge(target, patch, owner, owners, "")


def pointer(*parts: str) -> str:
    """("a/b", "c") -> "/a~1b/c"."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _merge(target: Any, patch: Mapping[str, Any], owner: str, owners: dict[str, str], at: str) -> dict[str, Any]:
    result: dict[str, Any] = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r} is no string")
        here = at + pointer(key)
        if value is None:
            if key in result:
                del result[key]
                _forget_below(owners, here)
                owners[here] = owner
        elif isinstance(value, Mapping):
            below = result.get(key)
            if not isinstance(below, Mapping):
                _forget_below(owners, here)
                if not value:
                    owners[here] = owner
            result[key] = _merge(below, value, owner, owners, here)
        else:
            plain = _plain(value, here)
            if key not in result or result[key] != plain or type(result[key]) is not type(plain):
                result[key] = plain
                _forget_below(owners, here)
                owners[here] = owner
    return result


def _plain(value: Any, at: str) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, at) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a key at {at} is no string")
        return {key: _plain(item, at) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} at {at}")


def _forget_below(owners: dict[str, str], at: str) -> None:
    for key in [key for key in owners if key == at or key.startswith(at + "/")]:
        del owners[key]
