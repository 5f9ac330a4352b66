"""Signals by name or number, as kill(1) and docker take them."""

from __future__ import annotations

import signal

from wherry.api import Invalid
from wherry.errors import suggest

LAST = 64
_REALTIME = {"RTMIN": 34, "RTMAX": LAST}
_NAMES = {entry.name.removeprefix("SIG"): int(entry) for entry in signal.Signals}


def parse(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``sigterm``, ``15``, ``RTMIN+3`` -> the number. Invalid for anything else."""
    if text.isascii() and text.isdecimal():
        if 1 <= int(text) <= LAST:
            return int(text)
        raise Invalid(f'signal "{text}"', f"not between 1 and {LAST}")
    name = text.upper().removeprefix("SIG")
    if name in _NAMES:
        return _NAMES[name]
    for base, number in _REALTIME.items():
        rest = name.removeprefix(base)
        if rest != name and (not rest or (rest[0] in "+-" and rest[1:].isdecimal())):
            value = number + int(rest or "0")
            if _REALTIME["RTMIN"] <= value <= LAST:
                return value
    raise Invalid(f'signal "{text}"', "no such signal", suggest(name, _NAMES, otherwise="see signal(7)"))
