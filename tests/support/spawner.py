"""Runs one plan by ``wherry.oci.spawn`` in a small single-threaded process, as the shim would; JSON in, JSON out.

"remove" drops steps by name and "patch" replaces protecting functions: the vulnerable twins of the attack tests.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import select
import socket
import sys
import time
from typing import Any


def _follow_null(child: Any) -> int:
    """The mask as it was before CVE-2025-31133: whatever the container's /dev/null leads to."""
    from wherry.linux import mount

    return mount.clone_tree(b"null", dir_fd=child.dev)


def _any_target(child: Any, name: bytes, *, directory: bool, **_kwargs: Any) -> int:
    """A mount point as the image has it, links and all."""
    from wherry.linux import path

    return path.make_target(child.root, name, directory=directory)


def _naive_open(root: int, name: bytes, flags: int = os.O_PATH, mode: int = 0) -> int:
    """A look-up from the host's own root."""
    return os.open(os.fsencode(name).lstrip(b"/") or b".", flags | os.O_CLOEXEC, mode, dir_fd=root)


def _stay_peers(path: Any, *, dir_fd: int = -100, recursive: bool = False, flags: int = 0, propagation: int = 0) -> int:
    """A clone as open_tree(2) makes it: a peer of its source."""
    from wherry.linux import mount

    return mount.open_tree(
        path, dir_fd=dir_fd, flags=flags | mount.OPEN_TREE_CLONE | (mount.AT_RECURSIVE if recursive else 0)
    )


def _late_import(_child: Any) -> None:
    """What a codec's first use does: an import, from wherever the path leads by then."""
    sys.path.insert(0, "/lib/python")
    sys.path_importer_cache.clear()
    import planted  # type: ignore[import-not-found]  # noqa: F401


def _tell_session(_child: Any) -> None:
    """Ends the start by an error that describes the session keyring (keyctl(2), KEYCTL_DESCRIBE)."""
    import ctypes

    from wherry.linux.syscall import Int, Pointer, Ulong, call
    from wherry.oci.child import Failure

    buffer = ctypes.create_string_buffer(256)
    if call("keyctl", Int, Int, Pointer, Ulong)(6, -3, buffer, len(buffer)) < 0:
        raise Failure("Told", "session", os.strerror(ctypes.get_errno()))
    raise Failure("Told", "session", buffer.value.decode())


#: Stand-ins for protecting functions, by the names that tests use.
WAYS: dict[str, Any] = {
    "true": lambda *_args, **_kwargs: True,
    "nothing": lambda *_args, **_kwargs: None,
    "proc magic": lambda *_args, **_kwargs: 0x9FA0,
    "no magic": lambda *_args, **_kwargs: 0,
    "follow null": _follow_null,
    "any target": _any_target,
    "naive open": _naive_open,
    "stay peers": _stay_peers,
}


def _patch(name: str, way: Any) -> None:
    module, _dot, attribute = name.rpartition(".")
    target = importlib.import_module(module)
    if isinstance(way, str) and way in WAYS:
        setattr(target, attribute, WAYS[way])
    elif isinstance(way, list):
        setattr(target, attribute, frozenset(os.fsencode(item) for item in way))
    else:
        setattr(target, attribute, way)


def main() -> None:
    task = json.load(sys.stdin)
    from wherry.linux import process
    from wherry.oci import execute_process
    from wherry.oci.spawn import TABLE, make_sandbox, spawn

    for name, way in task["patch"].items():
        _patch(name, way)
    if task["strays"]:  # a leak of ours, and nobody closing it
        for path in task["strays"]:
            os.set_inheritable(os.open(path, os.O_RDONLY), True)
    if task["keep_strays"]:
        execute_process.process.close_others = WAYS["nothing"]
        execute_process.process.close_from = WAYS["nothing"]
    TABLE["late_import"] = _late_import
    TABLE["tell_session"] = _tell_session
    plan = task["plan"]
    plan["steps"] = [step for step in plan["steps"] if step[0] not in task["remove"]]
    process.set_dumpable(False)
    process.set_child_subreaper()
    fds = make_sandbox(task["sandbox"])
    reader, writer = os.pipe()
    stdin = os.open(task["stdin"], os.O_RDONLY)
    answer: dict[str, Any] = {"created": None, "error": None, "code": None, "output": "", "pid": 0}
    held = spawn(plan, stdin=stdin, stdout=writer, stderr=writer, namespaces=fds)
    os.close(writer)
    channel = socket.socket(fileno=held.channel)
    pid = held.pid
    output = b""
    master = -1
    deadline = time.monotonic() + task["timeout"]
    channel.settimeout(task["timeout"])
    while True:
        try:
            data, ancillary, _flags, _address = channel.recvmsg(1 << 16, 1024)
        except ConnectionResetError:
            break
        received = array.array("i")
        for _level, _kind, payload in ancillary:
            received.frombytes(payload)
        if not data:
            break
        message = json.loads(data)
        if "pid" in message:
            pid = message["pid"]
            os.waitpid(held.intermediate, 0)
        elif "hooks" in message:
            answer["runtime_hooks"] = True
            channel.send(b"h")
        elif "error" in message:
            answer["error"] = message["error"]
        else:
            answer["created"] = message["created"]
            master = received[0] if received else -1
            answer["held"] = sorted(os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))
            channel.send(b"s")
    pid = pid or held.intermediate
    source = master if master >= 0 else reader
    while time.monotonic() < deadline:
        ready, _, _ = select.select([source], [], [], 0.2)
        if ready:
            try:
                chunk = os.read(source, 1 << 16)
            except OSError:  # EIO: nobody has the terminal open any more
                break
            if not chunk:
                break
            output += chunk
    done, status = os.waitpid(pid, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.002)
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, 9)
        _pid, status = os.waitpid(pid, 0)
        answer["timed_out"] = True
    answer["code"] = os.waitstatus_to_exitcode(status)
    answer["output"] = output.decode("utf-8", "surrogateescape")
    answer["pid"] = pid
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
