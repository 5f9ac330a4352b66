"""A hostile first process that looks into one that joins its container, by ``wherry.oci.spawn`` as the shim would; JSON in, JSON out.

The joining process stops right before its execve, when it has the container's own identity: whatever it still holds of the host
is there to be read. "early" has it stop as soon as it can be seen in the container. "dumpable" makes the vulnerable twin.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

_SECONDS = 20.0


def _until(reader: int, text: bytes) -> bytes:
    """Reads until text has come; TimeoutError."""
    seen = b""
    deadline = time.monotonic() + _SECONDS
    while text not in seen:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"{text!r} did not come, only {seen!r}")
        data = os.read(reader, 1 << 16)
        if not data:
            raise EOFError(f"{seen!r} and no more")
        seen += data
    return seen


def _ready(held: Any, until: str) -> tuple[socket.socket, int]:
    """Takes the child's packets up to the wanted one, "created" or "halted": (channel, its pid). ValueError for an error."""
    channel = socket.socket(fileno=held.channel)
    channel.settimeout(_SECONDS)
    pid = held.pid
    while True:
        data, fds, _flags, _address = socket.recv_fds(channel, 1 << 16, 1)
        for fd in fds:
            os.close(fd)
        message = json.loads(data)
        if "error" in message:
            raise ValueError(message["error"])
        if "pid" in message:
            pid = message["pid"]
            os.waitpid(held.intermediate, 0)
        if "created" in message:
            channel.send(b"s")
        if until in message:
            return channel, pid


def main() -> None:
    task = json.load(sys.stdin)
    from wherry.linux import process
    from wherry.oci.spawn import TABLE, make_sandbox, spawn

    process.set_dumpable(task["dumpable"])
    process.set_child_subreaper()
    TABLE["halt"] = lambda child: (child.send({"halted": True}), child.await_packet(b"h"))[0]
    fds = make_sandbox({"netns": "", "ipc": True, "uts": True})
    reader, writer = os.pipe()
    stdin, feed = os.pipe()
    first = spawn(task["container"], stdin=stdin, stdout=writer, stderr=writer, namespaces=fds)
    pids = [first.pid]
    try:
        _ready(first, "created")
        _until(reader, b"ready")
        plan = task["exec"]
        names = [step[0] for step in plan["steps"]]
        early = names.index("pidns") + 1 if "pidns" in names else 0
        plan["steps"].insert(early if task["early"] else names.index("execute"), ["halt"])
        second = spawn(plan, stdin=stdin, stdout=writer, stderr=writer, target=first.pidfd)
        channel, pid = _ready(second, "halted")
        pids.insert(0, pid)
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        inside = next(line.split()[-1] for line in status if line.startswith("NSpid"))
        os.write(feed, inside.encode() + b"\n")
        seen = _until(reader, b"looked")
        channel.send(b"h")
    finally:
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    sys.stdout.write(json.dumps({"seen": seen.decode("utf-8", "replace")}))
