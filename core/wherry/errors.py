"""The error classes of Wherry: one for each thing that a caller acts on.

The text of an error is ``what: cause; hint``: the thing it is about (quoted by whoever raises it), why it failed, and what
to do. Each class has one process exit code, one HTTP status and one gRPC status code, so that every front end answers alike.
Exit codes 125, 126 and 127 are those of ``docker run`` (Docker CLI reference, "Exit status").
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar


class Error(Exception):
    """Base of the errors that carry a meaning for the caller.

    what: the thing, e.g. ``image "busybox"``; cause: why; hint: what to do ("" for nothing to say); plugin: the
    ``<family>.<id>`` of the plugin that raised it, "" for the kernel. container: the id of the one that did not come to be, where
    spans of it were asked for.
    """

    container: str = ""

    exit_code: ClassVar[int] = 125
    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"

    def __init__(self, what: str, cause: str, hint: str = "", *, plugin: str = "") -> None:
        super().__init__(what, cause, hint)
        self.what = what
        self.cause = cause
        self.hint = hint
        self.plugin = plugin

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}" + (f"; {self.hint}" if self.hint else "")


class NotFound(Error):
    """The named thing does not exist."""

    http, grpc = 404, "NOT_FOUND"


class AlreadyExists(Error):
    """The name, digest or key is taken."""

    http, grpc = 409, "ALREADY_EXISTS"


class InUse(Error):
    """Something else still holds the thing: a running container, a child snapshot, another writer."""

    http, grpc = 409, "FAILED_PRECONDITION"


class Invalid(Error):
    """The input can never be accepted as it is."""

    http, grpc = 400, "INVALID_ARGUMENT"


class Denied(Error):
    """The caller or the host does not permit it."""

    http, grpc = 403, "PERMISSION_DENIED"


class FailedPrecondition(Error):
    """The state of the thing does not allow the operation now, e.g. exec in a stopped container."""

    http, grpc = 412, "FAILED_PRECONDITION"


class Unavailable(Error):
    """A part is down for now: a driver with an open breaker, a registry that does not answer, a lost shim."""

    http, grpc = 503, "UNAVAILABLE"


class DeadlineExceeded(Error):
    """A driver call did not return within its deadline; the plugin is named."""

    http, grpc = 504, "DEADLINE_EXCEEDED"


class PluginFault(Error):
    """A plugin raised what its contract does not allow, returned a wrong type, or failed to load."""


class CommandNotFound(NotFound):
    """execve(2) answered ENOENT, or no directory of PATH has the command."""

    exit_code = 127


class CommandNotExecutable(Denied):
    """execve(2) answered EACCES or ENOEXEC."""

    exit_code = 126


#: Every class by its name, for the wire.
CLASSES: dict[str, type[Error]] = {
    cls.__name__: cls
    for cls in (
        Error, NotFound, AlreadyExists, InUse, Invalid, Denied, FailedPrecondition, Unavailable, DeadlineExceeded,
        PluginFault, CommandNotFound, CommandNotExecutable,
    )
}  # fmt: skip


def encode_error(error: Error | OSError) -> dict[str, Any]:
    """An error for the wire: its class and its four strings; an OSError with errno and file name."""
    if isinstance(error, Error):
        # A plugin's own subclass travels as the nearest class of ours.
        name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in CLASSES)
        return {
            "class": name, "what": error.what, "cause": error.cause, "hint": error.hint, "plugin": error.plugin
        }  # fmt: skip
    name = error.filename
    name = os.fsdecode(name) if isinstance(name, bytes) else name if isinstance(name, str) else ""
    text = error.strerror or str(error)
    return {
        "class": "OSError",
        "what": name,
        "cause": text,
        "errno": error.errno,
        "plugin": getattr(error, "plugin", ""),
    }


def decode_error(data: dict[str, Any]) -> Error | OSError:
    """The error of encode_error; an unknown class becomes Error."""
    plugin = str(data.get("plugin", ""))
    if data.get("class") == "OSError":
        number = data.get("errno")
        text = data.get("cause") or os.strerror(number or 0)
        error = OSError(number, text, data.get("what") or None) if number else OSError(text)
        error.plugin = plugin  # type: ignore[attr-defined]
        return error
    cls = CLASSES.get(str(data.get("class")), Error)
    return cls(str(data.get("what")), str(data.get("cause")), str(data.get("hint", "")), plugin=plugin)


def suggest(name: str, known: Iterable[str], *, also: Iterable[str] = (), count: int = 1, otherwise: str = "") -> str:
    """The hint of an error about a name that is none of known: at most count names that are near, else what there is.

    also: names that may be meant, but are not listed; otherwise: the hint where none is near, in place of the list.
    """
    import difflib

    listed = list(known)
    if near := difflib.get_close_matches(name, [*listed, *also], n=count, cutoff=0.5):
        return "did you mean " + " or ".join(f'"{match}"' for match in near) + "?"
    return otherwise or f"there {'are' if len(listed) > 1 else 'is'} {', '.join(listed) or 'none'}"


__all__ = [*CLASSES, "CLASSES", "decode_error", "encode_error", "suggest"]
