"""Our table in the kernel: kept equal to what the networks and endpoints say, whoever else changes it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

from wherry.kit.loop import IN
from wherry_plugins.network.bridge.netd import rules
from wherry_plugins.network.bridge.netd.elements import PLAIN, Elements
from wherry_plugins.network.bridge.netd.libnftables import Nft, NftError
from wherry_plugins.network.bridge.netd.monitor import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from wherry.kit.loop import Loop, Timer
    from wherry_plugins.network.bridge.netd.rules import Element

#: Rebuilt at once, but not more often than this: somebody may flush in a loop.
_PAUSE = 0.05
_RETRY = 1.0


class Ruleset:
    """A table by its name. Elements are counted: two ports may need the same one."""

    def __init__(self, loop: Loop, name: str) -> None:
        self._loop = loop
        self.name = name
        self._nft = Nft()
        self._elements = Elements(name)
        self._monitor = Monitor()
        self._held: Counter[Element] = Counter()
        self._built = False
        self._rebuilt = 0.0
        self._due: Timer | None = None
        self._pid = self._learn()
        loop.add(self._monitor.socket.fileno(), IN, lambda _events: self._look())

    def _learn(self) -> int:
        """Our pid as notices have it: that of a transaction about a table of which nobody else knows."""
        probe = f"{self.name}-{time.monotonic_ns():x}"
        self._nft.run(rules.drop(probe))
        for change in self._monitor.changes():
            if change is not None and probe in change[1]:
                return change[0]
        return 0  # lost in others' notices: what we do ourselves is then checked as theirs is

    # changes

    def add(self, elements: Sequence[Element]) -> None:
        """Raises NftError when the kernel does not take them; nothing has changed then."""
        new = [element for element in dict.fromkeys(elements) if not self._held[element]]
        self._held.update(elements)
        try:
            if not self._built:
                self._build()
            elif new:
                self._change(rules.add, self._elements.add, new)
        except (NftError, OSError):
            try:
                self._build()  # the table may have lost a set a moment ago
            except NftError:
                self._held.subtract(elements)
                self._held += Counter()
                raise

    def delete(self, elements: Sequence[Element]) -> None:
        """Those that are gone already do no harm."""
        self._held.subtract(elements)
        self._held = +self._held
        gone = [element for element in dict.fromkeys(elements) if not self._held[element]]
        if gone and self._built:
            try:
                self._change(rules.delete, self._elements.delete, gone)
            except (NftError, OSError):
                self._rebuild()

    def _change(
        self,
        words: Callable[[str, Sequence[Element]], str],
        messages: Callable[[Sequence[Element]], None],
        elements: Sequence[Element],
    ) -> None:
        """Those of containers by messages, which are quicker; those of networks in words."""
        if all(where in PLAIN for where, _element in elements):
            messages(elements)
            self._look()
        else:
            self._run(words(self.name, elements))

    def _run(self, commands: str) -> None:
        self._nft.run(commands)
        self._look()

    def _build(self) -> None:
        self._run(rules.table(self.name, self._held))
        self._built = True

    # what others do

    def _look(self) -> None:
        """Reads what has changed; our own transactions are told too."""
        lost = False
        for change in self._monitor.changes():
            if change is None:
                lost = lost or bool(self.differences())
            elif self.name in change[1]:
                lost = lost or (change[0] != self._pid if self._pid else bool(self.differences()))
        if lost and self._built:
            self._rebuild()

    def _rebuild(self) -> None:
        if self._due is not None:
            return
        wait = self._rebuilt + _PAUSE - time.monotonic()
        if wait > 0:
            self._due = self._loop.later(wait, self._rebuild_now)
        else:
            self._rebuild_now()

    def _rebuild_now(self) -> None:
        self._due = None
        if not self._built:
            return
        self._rebuilt = time.monotonic()
        try:
            self._build()
        except NftError as error:
            sys.stderr.write(f"table inet {self.name}: {error}\n")
            self._due = self._loop.later(_RETRY, self._rebuild_now)

    def differences(self) -> list[str]:
        """What the kernel has otherwise than it should be, one line each."""
        if not self._built:
            return []
        try:
            listed: list[dict[str, Any]] = json.loads(self._nft.json(f"list table inet {self.name}"))["nftables"]
        except (NftError, ValueError):
            return [f"table inet {self.name} is missing"]
        there: Counter[tuple[str, str]] = Counter()
        dormant = False
        for item in listed:
            for kind, record in item.items():
                if kind in ("set", "map"):
                    there["elements of", record["name"]] += len(record.get("elem", ()))
                elif kind == "rule":
                    there["rules in chain", record["chain"]] += 1
                elif kind == "table":
                    dormant = "dormant" in record.get("flags", ())
        wanted = Counter(("elements of", where) for where, _element in self._held)
        for chain, lines in rules.CHAINS.items():
            wanted["rules in chain", chain] = sum(
                not line.lstrip().startswith("type ") for line in lines.split("\n")[1:]
            )
        found = [
            f"table inet {self.name}: {there[key]} {key[0]} {key[1]}, not {wanted[key]}"
            for key in sorted(there | wanted)
            if there[key] < wanted[key] or (there[key] > wanted[key] and key[0] == "elements of")
        ]
        return [f"table inet {self.name} is dormant", *found] if dormant else found

    def mend(self) -> None:
        """Makes it anew if it is not as it should be."""
        if self.differences():
            self._rebuild()

    def close(self) -> None:
        """Takes the table away, also one that a killed netd has left."""
        if self._due is not None:
            self._due.cancel()
        self._built = False
        try:
            self._nft.run(rules.drop(self.name))
        except NftError as error:
            sys.stderr.write(f"table inet {self.name}: {error}\n")
        self._loop.remove(self._monitor.socket.fileno())
        self._monitor.close()
        self._elements.close()
        self._nft.close()


__all__ = ["Ruleset"]
