"""Who is in which sandbox, from the begin of a start to the end of what a start made; the last one to leave takes it down.

That a container runs says too little: one that joins (``--network container:X``) is in the sandbox while it still starts, and of two
that end at once each would count the other.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from wherry.api import FailedPrecondition
from wherry.engine.containers import bundles
from wherry.engine.state.undo import attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wherry.engine.containers.records import ContainerRecord
    from wherry.engine.networks.endpoints import SandboxEndpoint
    from wherry.engine.state.database import Transaction
    from wherry.engine.state.state import State

#: So long a start waits for a sandbox that is being taken down.
PATIENCE = 60.0


class SandboxMembers:
    """By sandbox. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._members: dict[str, set[str]] = {}
        self._going: set[str] = set()

    def enter(self, record: ContainerRecord) -> None:
        """Waits while the sandbox is being taken down. A repeat does nothing."""
        sandbox = record.sandbox_id
        with self._changed:
            if not self._changed.wait_for(lambda: sandbox not in self._going, PATIENCE):
                raise FailedPrecondition(f'sandbox "{sandbox[:12]}"', "is being taken down", "try again")
            self._members.setdefault(sandbox, set()).add(record.id)

    def leave(self, record: ContainerRecord) -> bool:
        """True for the last one: nobody enters then until it has taken the sandbox down and says so by ``down``. False for others,
        and for one that is no member."""
        sandbox = record.sandbox_id
        with self._changed:
            members = self._members.get(sandbox)
            if members is None or record.id not in members:
                return False
            members.discard(record.id)
            if members:
                return False
            del self._members[sandbox]
            self._going.add(sandbox)
            return True

    def down(self, record: ContainerRecord) -> None:
        """The sandbox is gone, as far as it would go."""
        with self._changed:
            self._going.discard(record.sandbox_id)
            self._changed.notify_all()


def take_down(
    state: State,
    record: ContainerRecord,
    places: Sequence[SandboxEndpoint],
    failures: list[tuple[str, Exception]],
    pending: list[Callable[[], None]],
) -> None:
    """Detaches a sandbox from its networks and has the shim remove it, which is to be waited for by what pending
    gets. Idempotent; what failed is added to failures."""
    sandbox = record.sandbox_id
    for place in places:
        detach = state.network(place.driver, record).detach
        attempt(failures, "network.detach", partial(detach, sandbox, place.network))
    attempt(failures, "shim.remove_sandbox", lambda: pending.append(state.shim.remove_sandbox_soon(sandbox)))
    if sandbox != record.id:
        bundles.remove(str(state.bundles / sandbox))
    state.attached.pop(sandbox, None)


def note_gone(tx: Transaction, record: ContainerRecord, places: Sequence[SandboxEndpoint]) -> None:
    """Writes that a sandbox is no longer attached to anything."""
    for place in places:
        tx.event("network.detached", record.sandbox_id, {"network": place.network, "driver": place.driver})
    tx.execute("DELETE FROM sandboxes WHERE id = ?", (record.sandbox_id,))
