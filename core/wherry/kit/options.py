"""What users give a driver as KEY=VALUE, options of a network, a volume or a log, read with one wording for what is wrong.

    _OPTIONS = {"mode": choice("bridge", "private"), "mtu": mtu}
    found = read_options(config.options, _OPTIONS, 'the network driver "x"')  # {"mtu": 1400} of {"mtu": "1400"}

A reader makes a value of a text; it raises ValueError with the cause, which goes on from the option: "is not ...".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from wherry.errors import Invalid, suggest

Reader = Callable[[str], Any]
_BOOLEANS = MappingProxyType({"true": True, "1": True, "false": False, "0": False})


def read_options(
    given: Mapping[str, str],
    known: Mapping[str, Reader],
    owner: str,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The values of the options that are given, by the option. aliases: another spelling -> the option; owner: who has the options.

    Raises Invalid for an option that is not known, with what is near, and for a text that its reader refuses.
    """
    found = {}
    for key, text in given.items():
        name = aliases.get(key, key)
        if name not in known:
            raise Invalid(f'option "{key}"', f"{owner} has no such option", suggest(key, known, also=aliases))
        try:
            found[name] = known[name](text)
        except ValueError as error:
            raise Invalid(f'option "{key}={text}" of {owner}', str(error)) from None
    return found


def flag(text: str) -> bool:
    """true, false, 1 or 0."""
    if text.lower() not in _BOOLEANS:
        raise ValueError("is neither true nor false")
    return _BOOLEANS[text.lower()]


def number(low: int, high: int, unit: str = "") -> Reader:
    """A reader of decimal numbers from low to high. unit: "bytes", said where it is wrong."""

    def reader(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
            raise ValueError(f"is not a number {f'of {unit} ' if unit else ''}from {low} to {high}")
        return int(text)

    return reader


def choice(*names: str) -> Reader:
    """A reader of one of these."""

    def reader(text: str) -> str:
        if text not in names:
            raise ValueError(f"is none of {', '.join(names)}")
        return text

    return reader


def interface(text: str) -> str:
    """The name of a network interface, as the kernel has it (net/core/dev.c, dev_valid_name)."""
    if (
        not 0 < len(text.encode()) <= 15
        or text in (".", "..")
        or any(letter in "/:" or letter.isspace() for letter in text)
    ):
        raise ValueError("is not the name of an interface: at most 15 letters, none of them a space, / or :")
    return text


def mtu(text: str) -> int:
    """The size of a link's packets, in bytes: 0 is the kernel's own, the lowest is IPv4's (RFC 791)."""
    return 0 if text == "0" else int(_MTU(text))


_MTU = number(68, 65535, "bytes")

__all__ = ["Reader", "choice", "flag", "interface", "mtu", "number", "read_options"]
