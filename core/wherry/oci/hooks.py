"""OCI hooks (runtime-spec, config.md, "POSIX-platform Hooks"): a program with the container's state as JSON on stdin."""

from __future__ import annotations

import errno
import json
import os
import select
import signal

from wherry.linux import pidfd, process
from wherry.oci.child import Child, Failure, Function, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_hooks(_child: Child, moment: bytes, hooks: tuple[Any, ...], state: bytes) -> None:
    """Runs hooks one after the other as children of this process; the first that fails or overstays its timeout ends the start.

    hooks: (path, argv, env, timeout in seconds or 0). state: JSON text; the pid is filled in here.
    """
    filled = json.loads(state)
    filled["pid"] = os.getpid()
    data = json.dumps(filled).encode()
    for name, argv, env, timeout in hooks:
        code = _run(name, argv, env, timeout, data)
        if code:
            how = "took too long" if code == errno.ETIMEDOUT + 1000 else f"exited with status {code}"
            raise Failure("FailedPrecondition", f'{text(moment)} hook "{text(name)}"', how)


def _run(name: bytes, argv: tuple[bytes, ...], env: tuple[bytes, ...], timeout: int, data: bytes) -> int:
    """The exit code; 128+n for a signal, 127 when it could not be executed."""
    arguments, environment = process.strings(argv or (name,)), process.strings(env)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(reader, 0, inheritable=True)
            process.close_from(3)
            process.execve(name, arguments, environment)
        finally:
            os._exit(127)
    os.close(reader)
    handle = pidfd.open(pid)
    try:
        try:
            os.write(writer, data[:65536])
        except BrokenPipeError:
            pass  # a hook need not read it
        os.close(writer)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(timeout * 1000 if timeout else None):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return errno.ETIMEDOUT + 1000
        _pid, status = os.waitpid(pid, 0)
    finally:
        os.close(handle)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


STEPS: dict[str, Function] = {"hooks": run_hooks}
