"""The hooks that run in the runtime's namespaces: prestart and createRuntime while the container's process waits, poststart, poststop
(OCI runtime-spec, config.md, "POSIX-platform Hooks")."""

from __future__ import annotations

import json
import os
import signal

from wherry.linux import pidfd
from wherry.shim.engine_supervisor import reset_oom
from wherry.shim.reaper import Reaper
from wherry.shim.wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from wherry.linux.loop import Loop, Timer

_TIMEOUT = 30.0  # where the hook names none: the container is not to hang for ever


class HookRun:
    """Runs hooks one after the other without blocking: done(None) after the last, done(error) after the first that failed.

    Each hook is {"path", "args", "env", "timeout"}; its stdin is the state as JSON, its output goes to the shim's log.
    strict False: a failure is only reported there, and the next hook runs.
    """

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        hooks: Sequence[dict[str, Any]],
        state: dict[str, Any],
        done: Callable[[BaseException | None], None],
        *,
        strict: bool = True,
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._left = list(hooks)
        self._state = json.dumps(state).encode()
        self._done = done
        self._strict = strict
        self._pidfd = -1
        self._late = False
        self._timer: Timer | None = None
        self._next()

    def _next(self) -> None:
        if not self._left:
            self._done(None)
            return
        hook = self._left.pop(0)
        path, environ = hook["path"], hook.get("env")
        stdin = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            os.write(stdin, self._state)
            os.lseek(stdin, 0, os.SEEK_SET)
            env = dict(item.partition("=")[::2] for item in environ or ())
            pid = os.posix_spawn(
                path,
                hook.get("args") or [path],
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
                setsid=True,
                setsigmask=(),
                setsigdef=range(1, 32),
            )
        except OSError as error:
            self._failed(path, (error.strerror or str(error)).lower())
            return
        finally:
            os.close(stdin)
        reset_oom(pid)
        self._late = False
        self._pidfd = pidfd.open(pid)
        self._timer = self._loop.later(float(hook.get("timeout") or _TIMEOUT), self._expired)
        self._reaper.expect(pid, self._ended, path)

    def _expired(self) -> None:
        self._late = True
        pidfd.send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self, path: str, code: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        os.close(self._pidfd)
        if self._late:
            self._failed(path, "took longer than its timeout")
        elif code:
            self._failed(path, f"exited with status {code}")
        else:
            self._next()

    def _failed(self, path: str, cause: str) -> None:
        if self._strict:
            self._done(Fault("FailedPrecondition", f'hook "{path}"', cause))
            return
        os.write(2, f'hook "{path}": {cause}\n'.encode())
        self._next()
