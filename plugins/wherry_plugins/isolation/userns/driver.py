"""The driver: that of isolation/namespaces, less what an ordinary user may not do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wherry.api import CreateRequest, Exit, FailedPrecondition, TaskState
from wherry.kit import cgroups, namespaces
from wherry.kit.cgroups import Group2
from wherry.kit.isolation.driver import HostFacts, NamespaceDriver, NamespaceOptions
from wherry_plugins.isolation.userns.processes import ProcessGroup

_PING = "net.ipv4.ping_group_range"
_EVERY_GROUP = "0 2147483647"
NO_GROUPS = 'this user has none delegated: "wherry info" tells why'


class UsernsDriver(NamespaceDriver):
    """Thread-safe."""

    def __init__(self, config: NamespaceOptions, context: Any) -> None:
        super().__init__(config, context)
        self._gids = namespaces.id_map("gid_map")
        self._score = int(cgroups.read("/proc/self/oom_score_adj"))

    def create(self, request: CreateRequest) -> TaskState:
        if not self.layout.unified:
            state = super().create(request)
            self._follow(request.id, state.pid)
            return state
        note = self._group_note(request.id)
        note.write_text(super().group(request.id, request.spec, fresh=True).directories[0])
        try:
            return super().create(request)
        except BaseException:
            note.unlink(missing_ok=True)
            raise

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        ended = super().delete(id, exec_id, force=force)
        if not exec_id and self.layout.unified:
            self._group_note(id).unlink(missing_ok=True)
        return ended

    def _group_note(self, id: str) -> Path:
        """Where a container's group is written down: a shim after a lost one has another delegated group, the container has not."""
        return self.context.run / f"{id}.group"

    def with_defaults(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """A score below this process's own is the host's root to give: it is left as it is, as podman does."""
        spec = super().with_defaults(spec)
        process = spec.get("process") or {}
        wanted = process.get("oomScoreAdj")
        if isinstance(wanted, int) and wanted < self._score:
            spec = {**spec, "process": {**process, "oomScoreAdj": None}}
        linux = spec.get("linux") or {}
        values = linux.get("sysctl") or {}
        if values.get(_PING) == _EVERY_GROUP:  # of those that there are
            spec = {**spec, "linux": {**linux, "sysctl": {**values, _PING: f"0 {self._last_gid()}"}}}
        return spec

    def _last_gid(self) -> int:
        """The end of the groups that begin with 0 and have no gap."""
        end = 0
        for first, _outside, size in sorted(self._gids):
            if first > end:
                break
            end = max(end, first + size)
        return min(end, 1 << 31) - 1

    def resources(self, resources: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without rules for devices: there is none but those that were bound, and none can be made."""
        return {name: value for name, value in resources.items() if name != "devices"}

    def group(self, id: str, spec: Mapping[str, Any], *, fresh: bool) -> cgroups.Group:
        if self.layout.unified:
            with suppress(FileNotFoundError):
                if not fresh:
                    path = self._group_note(id).read_text()
                    self.parents.add(os.path.dirname(path))
                    return Group2(cgroups.Layout({}, "", ()), path)
            return super().group(id, spec, fresh=fresh)
        note = self.context.run / f"{id}.pid"
        group = ProcessGroup(id, note, fresh=fresh)
        if not fresh and not group.known:  # an engine that was killed before it wrote the note
            for state in self.shim.list(id):
                if state.id == id and not state.exec_id and state.exit is None and state.pid:
                    group.follow(state.pid)
        return group

    def _follow(self, id: str, pid: int) -> None:
        group = self.records[id].group
        if isinstance(group, ProcessGroup):
            group.follow(pid)

    def pause(self, id: str) -> None:
        if not self.layout.unified:
            self.record(id)
            raise FailedPrecondition(f'container "{id}"', "can't be paused without a control group", NO_GROUPS)
        super().pause(id)

    def host_facts(self, spec: Mapping[str, Any], group: cgroups.Group, *, sandboxed: bool = True) -> HostFacts:
        host = super().host_facts(spec, group, sandboxed=sandboxed)
        host.confined = True
        host.gids = self._gids
        return host
