"""What a registry wants to see before it answers: WWW-Authenticate (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from wherry.api import Invalid

_MAX = 8192
_ITEM = re.compile(
    r"""[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s",]*))?(?=[\s,]|$)""", re.ASCII
)
_QUOTED = re.compile(r"\\(.)")


@frozen
class Challenge:
    """One scheme, in lower case, with its parameters; their names are in lower case too."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str, what: str) -> tuple[Challenge, ...]:
    """All challenges of the header, several headers joined by commas. Invalid for a text that is none."""
    if len(header) > _MAX:
        raise Invalid(what, f"its WWW-Authenticate is longer than {_MAX} characters")
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    rest = header.rstrip(" \t,")
    while at < len(rest):
        match = _ITEM.match(rest, at)
        if match is None:
            raise Invalid(what, f"its WWW-Authenticate can't be read: {header[:200]!r}")
        name, value = match[1].lower(), match[2]
        at = match.end()
        if value is None:
            found.append((name, {}))
            continue
        if not found or name in found[-1][1]:
            raise Invalid(what, f"its WWW-Authenticate can't be read: {header[:200]!r}")
        found[-1][1][name] = _QUOTED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)
