"""rename and update: what can be changed of a container after it was made."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs

from wherry.api import Container, FailedPrecondition, Invalid, RunRequest
from wherry.engine.containers.create import must_not_be_removing
from wherry.engine.containers.records import ContainerRecord, pack_request
from wherry.engine.containers.specs.resources import limits
from wherry.engine.state.state import State, attributes
from wherry.engine.state.undo import attempt
from wherry.kit.names import check_name

#: Fields of a request that ``update`` may give, each with the part of the OCI ``linux.resources`` that it belongs to.
_LIMITS = {
    "memory": "memory",
    "memory_swap": "memory",
    "memory_reservation": "memory",
    "cpus": "cpu",
    "cpu_shares": "cpu",
    "cpuset": "cpu",
    "pids_limit": "pids",
}


class Updater:
    def __init__(self, state: State) -> None:
        self._state = state

    def rename(self, container: str, name: str) -> Container:
        """It answers to the new name at once; to other containers, by the resolver of its networks, from its next start on."""
        state = self._state
        record = state.registry.find(container)
        check_name(name, "container name")
        with record.lock:
            self._must_be_there(record)
            before, request = record.name, attrs.evolve(state.request_of(record), name=name)
            with state.registry.renamed(record, name), state.database.transaction() as tx:
                tx.execute(
                    "UPDATE containers SET name = ?, data = ?, request = ? WHERE id = ?",
                    (name, record.pack(name=name), pack_request(request), record.id),
                )
                tx.event("container.renamed", record.id, attributes(record, name=name, old_name=before))
            record.request = request
            return record.view()

    def update(self, container: str, **given: Any) -> Container:
        """At once where it runs, and at each later start. Nothing is changed when a limit is refused."""
        state = self._state
        record = state.registry.find(container)
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise Invalid(f'update of container "{record.name}"', "names no limit")
        with record.lock:
            self._must_be_there(record)
            old = state.request_of(record)
            new = attrs.evolve(old, **given)
            wished = _resources(new, given)
            failures: list[tuple[str, Exception]] = []
            if record.live:
                state.isolation(record).update(record.id, wished)
            try:
                with state.database.transaction() as tx:
                    tx.execute("UPDATE containers SET request = ? WHERE id = ?", (pack_request(new), record.id))
                    tx.event("container.updated", record.id, attributes(record))
            except BaseException:
                if record.live:
                    isolation = state.isolation(record)
                    attempt(failures, "isolation.update", lambda: isolation.update(record.id, _resources(old, given)))
                state.report(failures, f"undo of update of container {record.id[:12]}")
                raise
            record.request = new
            return record.view()

    @staticmethod
    def _must_be_there(record: ContainerRecord) -> None:
        must_not_be_removing(record)
        if record.status == "creating":
            raise FailedPrecondition(f'container "{record.name}"', "is being created", "try again")


def _resources(request: RunRequest, given: Collection[str]) -> dict[str, Any]:
    """The parts of a request's limits that those fields belong to; a limit that it does not set is taken away."""
    none: dict[str, dict[str, Any]] = {
        "memory": {"limit": -1, "swap": -1},
        "cpu": {"quota": -1, "period": 100_000, "shares": 1024},
        "pids": {"limit": -1},
    }
    if "memory_reservation" in given:  # else as it is: a kernel may not have it
        none["memory"]["reservation"] = -1
    found = limits(request)
    return {part: {**none[part], **found.get(part, {})} for part in {_LIMITS[name] for name in given}}
