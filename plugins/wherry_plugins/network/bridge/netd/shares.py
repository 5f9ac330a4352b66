"""What the containers of all networks share: questions on their way, connections and senders that are carried."""

from __future__ import annotations

from collections import Counter


class Shares:
    """Room for most, of which one sandbox has of_one at most, and always some: however much the others take, nobody is shut out. So
    there are most at a time, and ``always`` more for each sandbox that comes when all is taken."""

    def __init__(self, most: int, of_one: int, always: int) -> None:
        self.most = most
        self.of_one = of_one
        self.always = always
        self.held: Counter[str] = Counter()
        self.total = 0

    def free(self, sandbox: str) -> bool:
        held = self.held.get(sandbox, 0)
        return held < self.always or (held < self.of_one and self.total < self.most)

    def take(self, sandbox: str) -> bool:
        """False when there is no room for it now."""
        if not self.free(sandbox):
            return False
        self.held[sandbox] += 1
        self.total += 1
        return True

    def give(self, sandbox: str) -> None:
        """Gives back what was taken, once."""
        self.total -= 1
        self.held[sandbox] -= 1
        if not self.held[sandbox]:
            del self.held[sandbox]


__all__ = ["Shares"]
