"""What has to be taken back when a later step fails."""

from __future__ import annotations

from collections.abc import Callable


class Undo:
    """Steps to run in reverse. Each is idempotent; one that fails is noted and does not stop those after it: what it
    leaves behind is found by doctor."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self.failures: list[tuple[str, Exception]] = []

    def add(self, name: str, step: Callable[[], object]) -> None:
        self._steps.append((name, step))

    def run(self) -> list[tuple[str, Exception]]:
        """The steps that failed."""
        while self._steps:
            name, step = self._steps.pop()
            attempt(self.failures, name, step)
        return self.failures

    def clear(self) -> None:
        self._steps.clear()


def attempt(failures: list[tuple[str, Exception]], name: str, step: Callable[[], object]) -> bool:
    """Runs one step; False when it failed, which is then noted in failures."""
    try:
        step()
    except Exception as error:  # whatever it is, the steps after it still have to run
        failures.append((name, error))
        return False
    return True
