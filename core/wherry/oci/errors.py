"""What is wrong with a spec, for callers that have error classes of their own."""

from __future__ import annotations


class SpecError(ValueError):
    """A spec, or a profile in it, can never be accepted as it is: the thing, the cause, and what to do."""

    def __init__(self, what: str, cause: str, hint: str = "") -> None:
        super().__init__(what, cause, hint)
        self.what = what
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}" + (f"; {self.hint}" if self.hint else "")
