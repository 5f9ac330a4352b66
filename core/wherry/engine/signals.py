"""Signals by name or number, as kill(1) and docker take them."""

from __future__ import annotations

import difflib
import signal

from wherry.api import Invalid

LAST = 64
_REALTIME = {"RTMIN": 34, "RTMAX": LAST}


def parse(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``sigterm``, ``15``, ``RTMIN+3`` -> the number. Invalid for anything else."""
    if text.isascii() and text.isdecimal():
        if 1 <= int(text) <= LAST:
            return int(text)
        raise Invalid(f"signal {text!r}", f"not between 1 and {LAST}")
    name = text.upper().removeprefix("SIG")
    for base, number in _REALTIME.items():
        rest = name.removeprefix(base)
        if rest != name and (not rest or (rest[0] in "+-" and rest[1:].isdecimal())):
            value = number + int(rest or "0")
            if _REALTIME["RTMIN"] <= value <= LAST:
                return value
    names = {entry.name.removeprefix("SIG"): int(entry) for entry in signal.Signals}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, 1)
    raise Invalid(f"signal {text!r}", "no such signal", f"did you mean {near[0]}?" if near else "see signal(7)")
