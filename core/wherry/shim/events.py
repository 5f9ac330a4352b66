"""The shim's events: numbered, kept until acknowledged, replayed to whoever subscribes."""

from __future__ import annotations

import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.linux.channel import FrameChannel


class Events:
    """Numbers rise but have gaps: they begin at the microseconds of this shim's start, so that those of a shim which replaces a
    lost one lie above the old ones."""

    def __init__(self, last: int = 0) -> None:
        self.last = last or time.time_ns() // 1000
        self.pending: deque[dict[str, Any]] = deque()
        self._readers: list[FrameChannel] = []

    def publish(self, topic: str, id: str, attributes: dict[str, str], when: int = 0) -> None:
        self.last += 1
        event = {
            "sequence": self.last,
            "topic": topic,
            "id": id,
            "time": when or time.time_ns(),
            "attributes": attributes,
        }
        self.pending.append(event)
        for reader in tuple(self._readers):
            reader.send({"event": event})

    def subscribe(self, channel: FrameChannel, after: int) -> None:
        """Turns a connection into a stream: what lies above after, then what comes."""
        if after > self.last:  # numbered by a shim whose clock was ahead: ours must lie above
            shift = after - self.last
            self.last += shift
            for event in self.pending:
                event["sequence"] += shift
        for event in self.pending:
            if event["sequence"] > after:
                channel.send({"event": event})
        self._readers.append(channel)

    def unsubscribe(self, channel: FrameChannel) -> None:
        if channel in self._readers:
            self._readers.remove(channel)

    def readers(self) -> list[FrameChannel]:
        return list(self._readers)

    def ack(self, sequence: int) -> None:
        while self.pending and self.pending[0]["sequence"] <= sequence:
            self.pending.popleft()
