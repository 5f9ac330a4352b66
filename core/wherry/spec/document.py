"""JSON documents of strangers: strict, bounded, and the same to every reader."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from wherry.errors import Invalid

#: What other runtimes accept of a manifest, an index or an image config.
DOCUMENT_MAX = 4 << 20
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def parse(data: bytes, what: str) -> Mapping[str, Any]:
    """A JSON object. Invalid for anything that two readers might read differently: duplicate keys, NaN, lone surrogates, bytes
    that are no UTF-8, more than 4 MiB, or nesting without end. what names the document in errors."""
    document = parse_value(data, what)
    if not isinstance(document, dict):
        raise Invalid(what, "is not a JSON object")
    return document


def parse_value(data: bytes, what: str) -> Any:
    """The same for a document that may be something else, such as a list."""
    if len(data) > DOCUMENT_MAX:
        raise Invalid(what, f"is larger than {DOCUMENT_MAX >> 20} MiB")
    try:
        text = data.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
        if _ESCAPED_SURROGATE.search(data):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise Invalid(what, "is nested too deeply") from None
    except UnicodeError:
        raise Invalid(what, "is not UTF-8") from None
    except ValueError as error:
        raise Invalid(what, f"is not JSON: {error}") from None
    return document


def check_digest(digest: object, what: str) -> str:
    """The digest itself, or Invalid: no path is made and no request sent with unchecked text."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise Invalid(what, f"has the digest {str(digest)[:100]!r}, not sha256:<64 lower-case hex digits>")
    return digest


class Fields:
    """Typed access to an object's fields; each error names the document and the field. null counts as absent."""

    def __init__(self, document: Mapping[str, Any], what: str) -> None:
        self.document = document
        self.what = what

    def text(self, key: str, default: str | None = None) -> str:
        value = self.document.get(key)
        if value is None and default is not None:
            return default
        return value if isinstance(value, str) else self._fail(key, "a string")

    def number(self, key: str, default: int | None = None) -> int:
        value = self.document.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
            return value
        return self._fail(key, "a number of 0 or more")

    def object(self, key: str, *, required: bool = False) -> Mapping[str, Any]:
        value = self.document.get(key)
        if value is None and not required:
            return {}
        return value if isinstance(value, dict) else self._fail(key, "an object")

    def objects(self, key: str, *, required: bool = False) -> Sequence[Mapping[str, Any]]:
        value = self.document.get(key)
        if value is None and not required:
            return ()
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return value
        return self._fail(key, "a list of objects")

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        value = self.document.get(key)
        if value is None and not required:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        return self._fail(key, "a list of strings")

    def labels(self, key: str) -> Mapping[str, str]:
        value = self.object(key)
        if all(isinstance(item, str) for item in value.values()):
            return value
        return self._fail(key, "an object of strings")

    def _fail(self, key: str, wanted: str) -> NoReturn:
        found = "is missing" if self.document.get(key) is None else "is something else"
        raise Invalid(self.what, f'its "{key}" {found}; it has to be {wanted}')


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


__all__ = ["DOCUMENT_MAX", "Fields", "check_digest", "parse", "parse_value"]
