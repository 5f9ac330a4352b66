"""Names and labels of containers, networks and volumes: one rule, which is Docker's, for all that has a name or an id."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wherry.errors import Invalid

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_LONGEST_LABEL = 64 << 10


def is_name(text: str, longest: int = 128) -> bool:
    """Whether a text is a name, and as such one of a file too."""
    return len(text) <= longest and _NAME.fullmatch(text) is not None


def check_name(text: str, what: str, longest: int = 128) -> str:
    """The text itself. what: "network name"; Invalid for what is no name."""
    if not is_name(text, longest):
        rule = f"not a letter or digit, followed by letters, digits, _, . or -, at most {longest} in all"
        raise Invalid(f'{what} "{text}"', rule)
    return text


def check_labels(keys: Iterable[str]) -> None:
    """Invalid for a key that is empty or longer than 64 KiB."""
    for key in keys:
        if not 0 < len(key) <= _LONGEST_LABEL:
            raise Invalid(f'label "{key[:40]}"', "empty or too long")


__all__ = ["check_labels", "check_name", "is_name"]
