"""attach, detach, resize and logs: the streams of a container after its start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wherry.api import ContainerProcess, FailedPrecondition, Invalid, LogLine, Stdio
from wherry.engine.containers import processes
from wherry.engine.containers.execs import Execs
from wherry.engine.containers.records import ContainerRecord
from wherry.engine.state.state import State
from wherry.linux import counters


class ContainerStreams:
    def __init__(self, state: State, execs: Execs) -> None:
        self._state = state
        self._execs = execs

    def attach(self, name: str, stdio: Stdio) -> str:
        return self._state.shim.attach(self._live(name).id, "", stdio)

    def detach(self, name: str, token: str, exec_id: str) -> None:
        record = self._state.registry.find_or_grave(name)
        if record.live:
            self._state.shim.detach(record.id, exec_id, token)

    def resize(self, name: str, rows: int, columns: int, exec_id: str) -> None:
        if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16):
            raise Invalid(f"terminal size {rows}x{columns}", "rows and columns are between 1 and 65535")
        record = self._live(name)
        if exec_id:
            self._execs.find(record, exec_id)
        self._state.isolation(record).resize(record.id, rows, columns, exec_id)

    def stats(self, name: str) -> Mapping[str, int]:
        record = self._live(name)
        counted = self._state.isolation(record).stats(record.id)
        return {**counted, **counters.of_network(record.pid)} if record.pid else counted

    def processes(self, name: str) -> tuple[ContainerProcess, ...]:
        record = self._live(name)
        return processes.look(self._state.isolation(record).pids(record.id))

    def _live(self, name: str) -> ContainerRecord:
        record = self._state.registry.find(name)
        if not record.live:
            raise FailedPrecondition(f'container "{record.name}"', f"is not running: it is {record.status}")
        return record

    def logs(self, name: str, *, follow: bool, since: int, until: int, tail: int) -> Iterator[LogLine]:
        """With follow an empty LogLine now and then says that nothing came; it ends with the container."""
        record = self._state.registry.find(name)
        if record.log == "none":
            raise FailedPrecondition(
                f'container "{record.name}"', 'its log driver "none" keeps nothing', "choose another with --log-driver"
            )
        lines = self._state.kernel.log(record.log).read(record.id, follow=follow, since=since, until=until, tail=tail)
        return self._following(record, lines) if follow else lines

    def _following(self, record: ContainerRecord, lines: Iterator[LogLine]) -> Iterator[LogLine]:
        try:
            ended = False
            for line in lines:
                if line.data:
                    yield line
                    continue
                # One quiet moment after the end: what the logger still had has been written by then.
                if ended or self._state.closing.is_set():
                    return
                ended = not record.live and record.status != "creating"
                yield line
        finally:
            if (close := getattr(lines, "close", None)) is not None:
                close()
