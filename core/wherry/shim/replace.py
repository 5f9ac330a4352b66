"""The shim becomes a newer version of itself: the same process by execve, so that its children stay its children.

State goes along as JSON in a memfd, descriptors by their numbers: clients, logger, pidfds, pipes and namespaces do not notice. It
happens when no request waits for a child.
"""

from __future__ import annotations

import base64
import json
import os
import socket

from wherry.shim import arena
from wherry.shim.journal import Journal
from wherry.shim.sandboxes import HeldSandbox
from wherry.shim.streams import TaskStreams
from wherry.shim.task import Task
from wherry.shim.wire import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.linux.channel import FrameChannel
    from wherry.shim.boot import ShimOptions
    from wherry.shim.server import Reply, Shim


def _channel(channel: FrameChannel) -> dict[str, Any]:
    unread, fds = channel.leftover()
    return {"fd": channel.socket.fileno(), "unread": base64.b64encode(unread).decode(), "fds": fds}


def _task(shim: Shim, task: Task) -> dict[str, Any]:
    return {
        **task.state(),
        "pid": task.pid,
        "pidfd": task.pidfd,
        "channel": task.channel.fileno() if task.channel is not None else -1,
        "foreign": task.foreign,
        "forgotten": task.forgotten,
        "error": task.error,
        "hooks": task.hooks,
        "streams": task.streams is not None and task.streams.key in shim.keeper.streams,
        "unpublished": task.held is not None or task.owed is not None,
    }


def _streams(streams: TaskStreams) -> dict[str, Any]:
    message, fds = streams.pack()
    return {**message, "numbers": fds, "drained": streams.drained}


def collect(shim: Shim, reply: Reply) -> dict[str, Any]:
    """Everything, as JSON; descriptors are under the keys that ``numbers`` knows."""
    keeper = shim.keeper
    readers = shim.events.readers()
    clients = list(shim.clients)
    return {
        "instance": shim.instance,
        "tasks": [_task(shim, task) for task in shim.tasks],
        "undecided": sorted(shim.tasks.undecided),
        "streams": [_streams(streams) for streams in keeper.streams.values()],
        "sandboxes": [{"record": box.record, "fds": box.fds, "pause": box.pause} for box in shim.sandboxes],
        "events": {"last": shim.events.last, "pending": list(shim.events.pending)},
        "clients": [{**_channel(client), "reader": client in readers} for client in clients],
        "reply": {"client": clients.index(reply.channel) if reply.channel in clients else -1, "id": reply.id},
        "logger": {**_channel(keeper.channel), "pid": keeper.pid} if keeper.channel is not None else None,
        "dropped": sorted(keeper.dropped),
        "memory": keeper.memory,
        "logger_listener": keeper.listener.fileno(),
        "ledger": shim.ledger.fd,
        "engine": list(shim.supervisor.state()),
    }


def numbers(state: dict[str, Any]) -> list[int]:
    """The descriptors that must survive the exec."""
    found = [state["memory"], state["logger_listener"], state["ledger"]]
    for task in state["tasks"]:
        found += [task["pidfd"], task["channel"]]
    for streams in state["streams"]:
        found += streams["numbers"]
    for box in state["sandboxes"]:
        found += box["fds"].values()
    for channel in (*state["clients"], *([state["logger"]] if state["logger"] else ())):
        found += [channel["fd"], *channel["fds"]]
    return [fd for fd in found if fd >= 0]


def replace(shim: Shim, reply: Reply, successor: dict[str, str]) -> None:
    """Does not return, unless the exec fails: then the request does, and everything is as before.

    successor: which of the options core, version and exe are others for it.
    """
    for channel in (*shim.clients, *([shim.keeper.channel] if shim.keeper.channel else ())):
        channel.drain()
    state = collect(shim, reply)
    memory = os.memfd_create("wherry-state", 0)
    options = shim.options
    kept = numbers(state)
    before = {name: getattr(options, name) for name in successor}
    try:
        data = json.dumps(state).encode()
        view = memoryview(data)
        while view:
            view = view[os.write(memory, view) :]
        os.lseek(memory, 0, os.SEEK_SET)
        for fd in kept:
            os.set_inheritable(fd, True)
        options.listener, options.state = shim.listener.fileno(), memory
        _choose(options, successor)
        options.execute()
    except OSError as error:
        _choose(options, before)  # or it would say that it is of a version that it is not
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(memory)
        options.state = -1
        reply.fail(describe(error))


def _choose(options: ShimOptions, values: dict[str, str]) -> None:
    for name, value in values.items():
        setattr(options, name, value)


def resume(shim: Shim, memory: int) -> None:
    """The successor takes up the state."""
    with os.fdopen(memory, "rb") as file:
        state = json.load(file)
    for fd in numbers(state):
        os.set_inheritable(fd, False)
    shim.instance = state["instance"]
    shim.events.last = state["events"]["last"]
    shim.events.pending.extend(state["events"]["pending"])
    keeper = shim.keeper
    keeper.memory = state["memory"]
    keeper.listener = socket.socket(fileno=state["logger_listener"])
    shim.ledger = keeper.ledger = Journal(state["ledger"])
    for record in state["streams"]:
        streams = TaskStreams.unpack(record, record["numbers"])
        streams.drained = record["drained"]
        keeper.streams[streams.key] = streams
    keeper.dropped = set(state["dropped"])
    keeper.slots = arena.Slots(keeper.memory)
    keeper.slots.adopt({streams.slot for streams in keeper.streams.values()} | keeper.dropped)
    for record in state["sandboxes"]:
        shim.sandboxes.keep(HeldSandbox(record["record"], record["fds"], record["pause"]))
    for record in state["tasks"]:
        _resume_task(shim, record)
    shim.tasks.undecided = {(id, exec_id) for id, exec_id in state["undecided"]}
    shim.supervisor.restore(*state["engine"])
    if state["logger"]:
        channel = keeper.adopt(state["logger"]["pid"], socket.socket(fileno=state["logger"]["fd"]))
        channel.give_back(base64.b64decode(state["logger"]["unread"]), state["logger"]["fds"])
    else:
        keeper.start()
    clients = []
    for record in state["clients"]:
        client = shim.admit(socket.socket(fileno=record["fd"]))
        client.give_back(base64.b64decode(record["unread"]), record["fds"])
        clients.append(client)
        if record["reader"]:
            shim.events.subscribe(client, shim.events.last)
    if state["reply"]["client"] >= 0:
        clients[state["reply"]["client"]].send({"id": state["reply"]["id"], "ok": None})
    shim.loop.soon(shim.reaper.collect)


def _resume_task(shim: Shim, record: dict[str, Any]) -> None:
    task = Task(record["id"], record["exec_id"], record["sandbox_id"])
    task.status, task.pid, task.start_time = record["status"], record["pid"], record["start_time"]
    task.pidfd, task.user, task.foreign = record["pidfd"], record["user"], record["foreign"]
    task.forgotten, task.error, task.hooks = record["forgotten"], record["error"], record["hooks"]
    if exit := record["exit"]:
        task.code, task.stopped_at, task.oom = exit["code"], exit["time"], exit["oom_killed"]
    if record["channel"] >= 0:
        task.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, record["channel"])
        task.channel.setblocking(False)
    if record["streams"]:
        task.streams = shim.keeper.streams.get(task.key)
    shim.tasks.restore(task, unpublished=record["unpublished"])
