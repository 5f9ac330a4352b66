"""Which of the known names a mistyped one most likely means."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """At most limit names, the nearest first."""
    from difflib import get_close_matches

    names = {other.lower(): other for other in known}
    found = get_close_matches(name.lower(), names, limit, 0.6)
    return [names[match] for match in found] or [
        names[low] for low in sorted(names) if name and low.startswith(name.lower())
    ][:limit]


def hint(name: str, known: Iterable[str], before: str = "") -> str:
    """ "did you mean "a" or "b"?", or "" when nothing is near; with before "(", closed by ")"."""
    found = nearest(name, known)
    if not found:
        return ""
    text = "did you mean " + " or ".join(f'"{match}"' for match in found) + "?"
    return f"{before}{text})" if before.endswith("(") else before + text
