"""The engine's side of the shim: ``ShimClient``, ``start_shim`` and the JSON form of a plan.

One connection carries the requests of all threads. Whichever thread waits reads for all: a lone request costs no hand-over
between threads, and with many in flight the answers find their owners. A lost shim is started again at the next request, and is
told what this side knows: the pidfds above all, by which it learns how processes ended that it never saw.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wherry
from wherry import errors
from wherry.engine.shim.connection import LOST, ShimConnection
from wherry.engine.shim.plans import encode_plan, encode_sandbox, encode_stdio, sandbox_of, state_of
from wherry.interfaces.common import Event
from wherry.interfaces.process import Plan, Sandbox, Stdio, TaskState
from wherry.linux import framing
from wherry.shim import wire
from wherry.shim.launch import REFUSED

_PAGE = 150
#: What means the same to the shim that follows a lost one; a spawn, a start or an attach does not.
_REPEATABLE = frozenset(
    {
        "list", "create_sandbox", "remove_sandbox", "sandboxes", "namespace", "socket", "signal", "resize", "close_stdin",
        "detach", "ack", "forget", "engine",
    }
)  # fmt: skip


def start_shim(run: Path, root: Path, *, config: Path | None = None, engine: bool = False) -> ShimClient:
    """Starts the shim of a run directory, or finds the one that is there. Unavailable says why it could not.

    engine: it may be asked for an engine later; False for an engine that lives in this process.
    """
    launch(run, root, config=config, engine=engine)
    return ShimClient(run, root=root, config=config, engine=engine)


def launch(run: Path, root: Path, *, config: Path | None = None, engine: bool = False) -> None:
    """Returns once a shim listens below run. This process does not fork: posix_spawn(3)."""
    argv = [sys.executable, "-I", "-m", "wherry.shim.launch", "--run", str(run), "--root", str(root)]
    argv += ["--config", str(config)] if config is not None else []
    argv += ["--python", sys.executable] if engine else ["--no-engine"]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as said:
        try:
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ]
            pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)
        finally:
            os.close(writer)
        text = said.read().decode(errors="replace")
    _pid, status = os.waitpid(pid, 0)
    if status:
        lines = text.strip().splitlines()
        cause = lines[-1].removeprefix("wherry: ") if lines else "it could not be started"
        if os.waitstatus_to_exitcode(status) == REFUSED:
            what, _colon, why = cause.partition(": ")
            raise errors.FailedPrecondition(what, *why.split("; ", 1))
        raise errors.Unavailable("shim", cause, f'see "{run}/shim.log"')


class ShimClient:
    """wherry.api.ShimControl over <run>/shim.sock; any thread may call any method.

    Without root a lost shim is not started again: requests raise Unavailable.
    """

    def __init__(
        self, run: Path, *, root: Path | None = None, config: Path | None = None, engine: bool = False
    ) -> None:
        """Unavailable when no shim answers and none may be started."""
        self._run = run
        self._root = root
        self._config = config
        self._engine = engine
        self._guard = threading.Lock()
        self._link: ShimConnection | None = None
        self._closed = False
        self._instance = ""
        self._pidfds: dict[tuple[str, str], tuple[dict[str, Any], int]] = {}
        self._boxes: dict[str, dict[str, Any]] = {}
        self._encoded: tuple[Plan, dict[str, Any]] | None = None
        self._fates = threading.Lock()
        self._spawning: dict[tuple[str, str], bool] = {}  # whether it was forgotten before its answer was taken
        self._streams: list[socket.socket] = []
        self.pid = 0
        self.start_time = 0
        self.version = ""
        self._connected()

    @classmethod
    def connect(cls, run: Path) -> ShimClient:
        """To a shim that is there. Unavailable when none is."""
        return cls(run)

    # the connection

    def _connected(self) -> ShimConnection:
        """The connection, made again when it was lost, to a shim that is started again when it was."""
        link = self._link
        if link is not None and not link.lost:
            return link
        with self._guard:
            if self._closed:
                raise errors.Unavailable("shim", "this client was closed")
            if self._link is not None and not self._link.lost:
                return self._link
            try:
                sock = wire.connect(f"{self._run}/shim.sock")
            except OSError as error:
                if self._root is None:
                    raise errors.Unavailable(
                        "shim", (error.strerror or "no answer").lower(), "is it running?"
                    ) from None
                launch(self._run, self._root, config=self._config, engine=self._engine)
                sock = self._dial()
            if self._link is not None:
                self._link.close()
            link = ShimConnection(sock)
            try:
                self._greet(link)
            except (OSError, KeyError) as error:
                link.close()
                raise errors.Unavailable("shim", str(error), "try again") from None
            self._link = link
            return link

    def _dial(self) -> socket.socket:
        try:
            return wire.connect(f"{self._run}/shim.sock")
        except OSError as error:
            raise errors.Unavailable("shim", (error.strerror or "no answer").lower(), "try again") from None

    def _greet(self, link: ShimConnection) -> None:
        hello = _value(link.call("hello", {}, ())[0])
        if self._root is not None and hello["version"] != wherry.__version__:
            self._renew(link)
            hello = _value(link.call("hello", {}, ())[0])
        self.pid, self.start_time, self.version = hello["pid"], hello["start_time"], hello["version"]
        link.instance = hello["instance"]
        if self._instance == hello["instance"]:
            return
        if self._instance:
            self._hand_over(link)
        self._fetch_pidfds(link)
        self._instance = hello["instance"]  # once it is done: what breaks off is done again, by the next connection

    @staticmethod
    def _renew(link: ShimConnection) -> None:
        core = str(Path(wherry.__file__).resolve().parent.parent)
        _value(link.call("replace", {"core": core, "version": wherry.__version__}, ())[0])

    def _hand_over(self, link: ShimConnection) -> None:
        """Tells a new shim what a lost one had: in pages, as a frame takes only so many descriptors. Execs first: their ends are to be
        told before those of their containers."""
        known = sorted(self._pidfds.values(), key=lambda one: not one[0]["exec_id"])
        boxes = list(self._boxes.values())
        while True:
            page, known = known[:_PAGE], known[_PAGE:]
            fields = {"tasks": [state for state, _fd in page], "sandboxes": boxes, "more": bool(known)}
            _value(link.call("recover", fields, [fd for _state, fd in page])[0])
            boxes = []
            if not known:
                return

    def _fetch_pidfds(self, link: ShimConnection) -> None:
        first: int | None = 0
        while first is not None:
            answer, fds = link.call("pidfds", {"from": first}, ())
            page = _value(answer)
            for state, fd in zip(page["tasks"], fds, strict=True):
                self._remember(state, fd)
            first = page["next"]
        for record in _value(link.call("sandboxes", {}, ())[0]):
            self._boxes[record["id"]] = record

    def _remember(self, state: dict[str, Any], fd: int) -> None:
        old = self._pidfds.pop((state["id"], state["exec_id"]), None)
        if old is not None:
            os.close(old[1])
        self._pidfds[state["id"], state["exec_id"]] = (state, fd)

    def _call(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[Any, list[int]]:
        return self._exchange(op, fds, fields)[:2]

    def _exchange(
        self, op: str, fds: Sequence[int], fields: Mapping[str, Any]
    ) -> tuple[Any, list[int], ShimConnection]:
        """Value and descriptors of an answer, and the connection that it came by."""
        for last in (op not in _REPEATABLE, True):
            link = self._connected()
            try:
                answer, received = link.call(op, fields, fds)
            except ConnectionError:
                if last:
                    raise errors.Unavailable("shim", LOST, "try again") from None
            else:
                return _value(answer), received, link
        raise errors.Unavailable("shim", LOST, "try again")

    def close(self) -> None:
        """Closes the connection; shim and containers stay."""
        with self._guard:
            self._closed = True
            link, self._link = self._link, None
            streams, self._streams = self._streams, []
            known, self._pidfds = self._pidfds, {}
        if link is not None:
            link.close()
        for sock in streams:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for _state, fd in known.values():
            os.close(fd)

    # Shim

    def create_sandbox(self, sandbox: Sandbox) -> Sandbox:
        record = self._call("create_sandbox", sandbox=encode_sandbox(sandbox))[0]
        self._boxes[sandbox.id] = record
        return sandbox_of(record)

    def remove_sandbox(self, id: str) -> None:
        self._call("remove_sandbox", sandbox=id)
        self._boxes.pop(id, None)

    def sandboxes(self) -> Iterator[Sandbox]:
        yield from [sandbox_of(record) for record in self._call("sandboxes")[0]]

    def namespace(self, sandbox_id: str, type: Literal["net", "ipc", "uts", "user", "pid"]) -> int:
        (fd,) = self._call("namespace", sandbox=sandbox_id, type=type)[1]
        return fd

    def socket(self, sandbox_id: str, family: int, type: int, protocol: int) -> int:
        (fd,) = self._call("socket", sandbox=sandbox_id, family=int(family), type=int(type), protocol=protocol)[1]
        return fd

    def spawn(self, id: str, exec_id: str, plan: Plan, stdio: Stdio) -> TaskState:
        record, fds = encode_stdio(stdio)
        last = self._encoded
        if last is None or last[0] is not plan:  # drivers give the same one again for the same exec
            last = self._encoded = plan, encode_plan(plan)
        body = {**last[1], "fds": [len(fds) + index for index in range(len(plan.fds))]}
        fields = {"container": id, "exec_id": exec_id, "plan": body, "stdio": record}
        if not plan.start:
            return self._spawned(fields, [*fds, *plan.fds])
        key = id, exec_id
        self._spawning[key] = False
        try:
            return self._spawned(fields, [*fds, *plan.fds])
        finally:
            with self._fates:
                forgotten = self._spawning.pop(key, False)
            if forgotten:  # its end was told, and dealt with, while this thread had yet to take the answer
                self._unremember(id, exec_id)

    def _spawned(self, fields: Mapping[str, Any], fds: Sequence[int]) -> TaskState:
        state, received, link = self._exchange("spawn", fds, fields)
        for fd in received:
            self._remember(state, fd)
            self._hand_over_late(link, state, fd)
        return state_of(state)

    def _hand_over_late(self, link: ShimConnection, state: dict[str, Any], fd: int) -> None:
        """Where the shim that answered was lost, and its successor told of all there was before this answer came."""
        with self._guard:
            now = self._link
        if now is not None and now is not link and now.instance != link.instance:
            now.call("recover", {"tasks": [state], "sandboxes": [], "more": False}, [fd])

    def start(self, id: str, exec_id: str) -> None:
        self._call("start", container=id, exec_id=exec_id)
        if known := self._pidfds.get((id, exec_id)):
            known[0]["status"] = "running"

    def signal(self, id: str, exec_id: str, signal: int) -> None:
        self._call("signal", container=id, exec_id=exec_id, signal=int(signal))

    def resize(self, id: str, exec_id: str, rows: int, columns: int) -> None:
        self._call("resize", container=id, exec_id=exec_id, rows=rows, columns=columns)

    def close_stdin(self, id: str, exec_id: str) -> None:
        self._call("close_stdin", container=id, exec_id=exec_id)

    def attach(self, id: str, exec_id: str, stdio: Stdio) -> str:
        record, fds = encode_stdio(stdio)
        token: str = self._call("attach", fds, container=id, exec_id=exec_id, stdio=record)[0]
        return token

    def detach(self, id: str, exec_id: str, token: str) -> None:
        with contextlib.suppress(errors.NotFound):
            self._call("detach", container=id, exec_id=exec_id, token=token)

    def list(self, id: str = "") -> Iterator[TaskState]:
        yield from [state_of(state) for state in self._call("list", container=id)[0]]

    # ShimControl

    def events(self, after: int) -> Iterator[Event]:
        """Over a connection of its own; ends by Unavailable when that is lost, and at ``close``. Call it again to go on."""
        link = self._connected()
        try:
            sock = self._dial()
        except errors.Unavailable:  # nobody has used the connection since the shim was lost
            link.close()
            self._connected()
            sock = self._dial()
        with self._guard:
            self._streams.append(sock)
        try:
            reader = framing.Reader(sock)
            framing.send(sock, {"id": 0, "op": "events", "after": after})
            while (frame := reader.next()) is not None:
                event = frame[0].get("event")
                if event is not None:
                    yield Event(**event)
        except (OSError, framing.FrameError):
            pass
        finally:
            with self._guard, contextlib.suppress(ValueError):
                self._streams.remove(sock)
            sock.close()
        if not self._closed:
            raise errors.Unavailable("shim", LOST, "try again")

    def ack(self, sequence: int) -> None:
        self._call("ack", sequence=sequence)

    def forget(self, id: str, exec_id: str) -> None:
        self._call("forget", container=id, exec_id=exec_id)
        self._unremember(id, exec_id)

    def _unremember(self, id: str, exec_id: str) -> None:
        with self._fates:
            if (id, exec_id) in self._spawning:
                self._spawning[id, exec_id] = True
        known = self._pidfds.pop((id, exec_id), None)
        if known is not None:
            os.close(known[1])

    def replace(self) -> None:
        """The successor runs this package's own version of the shim; a connection to another version does that by itself."""
        link = self._connected()
        try:
            self._renew(link)
            self._greet(link)
        except OSError:
            raise errors.Unavailable("shim", LOST, "try again") from None

    # beyond the contract

    def _post(self, op: str, **fields: Any) -> Callable[[], Any]:
        """Sends a request whose answer is asked for later, by a call of what comes back."""
        link = self._connected()
        try:
            ticket = link.post(op, fields, ())
        except ConnectionError:
            raise errors.Unavailable("shim", LOST, "try again") from None

        def result() -> Any:
            try:
                return _value(link.wait(*ticket)[0])
            except OSError as error:
                if isinstance(error, ConnectionError):
                    raise errors.Unavailable("shim", LOST, "try again") from None
                raise

        return result

    def _tell(self, op: str, **fields: Any) -> None:
        """Sends a request that is not answered."""
        link = self._connected()
        try:
            link.tell(op, fields)
        except ConnectionError:
            raise errors.Unavailable("shim", LOST, "try again") from None

    def create_sandbox_soon(self, sandbox: Sandbox) -> Callable[[], Sandbox]:
        """As create_sandbox, while the caller goes on; its call of what comes back waits, or raises."""
        result = self._post("create_sandbox", sandbox=encode_sandbox(sandbox))

        def made() -> Sandbox:
            record = result()
            self._boxes[sandbox.id] = record
            return sandbox_of(record)

        return made

    def remove_sandbox_soon(self, id: str) -> Callable[[], None]:
        """As remove_sandbox, while the caller goes on."""
        result = self._post("remove_sandbox", sandbox=id)

        def gone() -> None:
            result()
            self._boxes.pop(id, None)

        return gone

    def ack_soon(self, sequence: int) -> None:
        """As ack, without an answer: the next ack covers this one."""
        self._tell("ack", sequence=sequence)

    def forget_soon(self, id: str, exec_id: str) -> None:
        """As forget, for a process whose end was told, without an answer."""
        self._tell("forget", container=id, exec_id=exec_id)
        self._unremember(id, exec_id)

    def engine(self, *, restart: bool = False) -> int:
        """Has the shim start its engine, if none runs; its pid."""
        pid: int = self._call("engine", restart=restart)[0]["pid"]
        return pid

    def quit(self) -> None:
        """Ends shim and logger. InUse while a container lives."""
        self._call("quit")


def _value(answer: dict[str, Any]) -> Any:
    """What an answer holds; the error it holds is raised."""
    if (error := answer.get("error")) is not None:
        raise errors.decode_error(error)
    return answer.get("ok")


__all__ = ["ShimClient", "encode_plan", "launch", "start_shim"]
