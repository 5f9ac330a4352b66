"""The part of the json module that a shim needs, on the same C code, without the megabyte of re behind it.

``install`` puts it where "import json" finds it, in a process that is all our own. There it also stands in for two modules
that ctypes of Python 3.14 imports: sysconfig, for Cygwin's sake and with threading, and warnings, whose C part says it all.
"""

from __future__ import annotations

import sys
from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

_SPACE = " \t\n\r"


class JSONDecodeError(ValueError):
    """What the C scanner raises, by this name in "json.decoder"."""

    def __init__(self, cause: str, text: str, position: int) -> None:
        super().__init__(f"{cause}: char {position}")


class _Context:
    """What the C scanner asks for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__


_scan = make_scanner(_Context())  # type: ignore[arg-type]


def loads(text: str | bytes | bytearray) -> Any:
    """As json.loads of UTF-8. ValueError for what is no JSON, RecursionError for what is too deep."""
    if not isinstance(text, str):
        text = text.decode("utf-8", "surrogatepass")
    start = len(text) - len(text.lstrip(_SPACE))
    try:
        value, end = _scan(text, start)
    except StopIteration as error:
        raise JSONDecodeError("expecting value", text, error.value) from None
    if text[end:].strip(_SPACE):
        raise JSONDecodeError("extra data", text, end)
    return value


def load(file: IO[Any]) -> Any:
    return loads(file.read())


def _refuse(value: object) -> Any:
    raise TypeError(f"object of type {type(value).__name__} is not JSON serializable")


def dumps(value: Any, *, separators: tuple[str, str] = (", ", ": ")) -> str:
    """As json.dumps."""
    item, key = separators
    encode = make_encoder({}, _refuse, encode_basestring_ascii, None, key, item, False, False, True)
    return "".join(encode(value, 0))


def install() -> None:
    sys.modules["json"] = sys.modules["json.decoder"] = sys.modules[__name__]
    sys.modules["sysconfig"] = type(sys)("sysconfig")
    sys.modules["warnings"] = sys.modules["_warnings"]
