"""What comes next, made while nobody waits: the namespaces of one sandbox, and one process each for a container
(wherry.oci.prefork) and for one more in a running container (wherry.oci.exec_helper).

Each is handed out once, is never used again, and belongs to the shim's own user namespace. There is at most one of each, made right
after one was needed, and let go of when none is needed for a while. They end with the shim: nothing outside knows of them.
"""

from __future__ import annotations

import os
import time

from wherry.oci import sandbox as oci
from wherry.oci.exec_helper import ExecHelper, ExecZygote, early, fits
from wherry.oci.prefork import PreforkedInit, shared
from wherry.shim.engine_supervisor import reset_oom

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from wherry.linux.loop import Loop
    from wherry.oci.prefork import Steps
    from wherry.oci.spawn import HeldProcess
    from wherry.shim.reaper import Reaper

#: Seconds after which what nobody has used is let go of.
KEEP = 60.0
_LULL = 0.02  # a sandbox is followed by a spawn, and an exec ends in a moment, mostly: better moments
_MOMENT = 0.002
_SANDBOX = {"netns": "", "ipc": True, "uts": True}


class PreforkPool:
    """sandbox: namespaces by type, None for none. spare, runner: processes that wait, None for none."""

    def __init__(self, loop: Loop, reaper: Reaper) -> None:
        self._loop = loop
        self._reaper = reaper
        self.sandbox: dict[str, int] | None = None
        self.spare: PreforkedInit | None = None
        self.runner: ExecHelper | None = None
        self._mother: ExecZygote | None = None
        self._like: Mapping[str, Any] | None = None  # a plan of the last exec
        self._early: Steps | None = None  # what the next spare is to do ahead
        self._wants_sandbox = False
        self._used = 0.0
        self._ageing = False
        self._due = False  # there is a timer for the next filling

    def namespaces(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Those of a sandbox, as make_sandbox: the ones that are ready where they fit, else new ones."""
        fit = all(record.get(key, value) == value for key, value in _SANDBOX.items())
        # Without a name it has the host's, and those that are ready have that of when they were made.
        if not fit or record.get("idmap") or not record.get("hostname"):
            return oci.make_sandbox(record)
        self._wants_sandbox = True
        self._fill_later()
        ready, self.sandbox = self.sandbox, None
        if ready is None:
            return oci.make_sandbox(record)
        try:
            oci.set_hostname(ready["uts"], os.fsencode(record["hostname"]))
        except BaseException:
            _close(ready)
            raise
        return ready

    def spawn(self, plan: Mapping[str, Any], **given: Any) -> HeldProcess | None:
        """Gives a plan to the spare, as Spare.spawn. None when there is none that fits: the plan needs a clone of its own."""
        steps = shared(plan)
        if steps is None:
            return None
        self._early = steps
        self._loop.soon(self.fill)  # while the child works
        spare = self.spare
        if spare is None:
            return None
        if spare.early != steps:
            self._drop_spare()
            return None
        try:
            held = spare.spawn(plan, **given)
        except (BlockingIOError, ConnectionError):  # it was killed, and its end is on the way
            self._drop_spare()
            return None
        if held is not None:
            self.spare = None
            self._reaper.unexpect(spare.pid)
        return held

    def exec(self, plan: Mapping[str, Any], **given: Any) -> HeldProcess | None:
        """Gives a plan for a running container to the runner, as Runner.spawn, or to one that is being born. None when there is no
        mother yet, or the plan is not for one."""
        if not fits(plan):
            return None
        self._like = plan
        self._fill_later()  # or sooner, if the process ends before
        if self._mother is None:
            return None
        if self._mother.early != early(plan):
            self._drop_mother()
            return None
        try:
            self.runner = self.runner or self._mother.runner()
            held = self.runner.spawn(plan, **given)
        except (BlockingIOError, ConnectionError):  # one of them was killed
            self._drop_runner()
            return None
        if held is not None:
            self.runner = None
        return held

    def used(self) -> None:
        """An exec has ended: who waited for it is told in a moment, and should have the processors until then."""
        self._loop.later(_MOMENT, self.fill)

    def _fill_later(self) -> None:
        if not self._due:
            self._due = True
            self._loop.later(_LULL, self._fill_due)

    def _fill_due(self) -> None:
        self._due = False
        self.fill()

    def fill(self) -> None:
        """Makes what was used up. What cannot be made is not missed: a start makes its own, and says why it could not."""
        self._used = time.monotonic()
        try:
            if self.spare is None and self._early is not None:
                self.spare = PreforkedInit(self._early)
                self._reaper.expect(self.spare.pid, self._ended, self.spare)
            if self.runner is None and self._like is not None:
                self.runner = self._bear(self._like)
            if self.sandbox is None and self._wants_sandbox:
                self.sandbox = oci.make_sandbox(_SANDBOX)
        except OSError:
            return
        if not self._ageing:
            self._ageing = True
            self._loop.later(KEEP, self._age)

    def _age(self) -> None:
        left = self._used + KEEP - time.monotonic()
        if left > 0:
            self._loop.later(left, self._age)
            return
        self._ageing = False
        self.close()

    def _ended(self, spare: PreforkedInit, _code: int) -> None:
        """It was killed before it was used; the next start does without."""
        if self.spare is spare:
            self._drop_spare()

    def _bear(self, like: Mapping[str, Any]) -> ExecHelper:
        if self._mother is None:
            self._mother = ExecZygote(like)
            reset_oom(self._mother.pid)  # before she bears one: what comes of it runs before its pid is known here
            self._reaper.expect(self._mother.pid, self._mother_ended, self._mother)
        return self._mother.runner()

    def _mother_ended(self, mother: ExecZygote, _code: int) -> None:
        """She was killed; the next exec does without."""
        if self._mother is mother:
            self._drop_mother()

    def _drop_mother(self) -> None:
        self._drop_runner()
        if self._mother is not None:
            self._mother.close()
            self._mother = None

    def _drop_runner(self) -> None:
        if self.runner is not None:
            self.runner.close()
            self.runner = None

    def _drop_spare(self) -> None:
        if self.spare is not None:
            self.spare.close()
            self.spare = None

    def close(self) -> None:
        """Lets go of all; who needs one makes its own, and then there are new ones."""
        self._early, self._like, self._wants_sandbox = None, None, False
        self._drop_spare()
        self._drop_mother()
        if self.sandbox is not None:
            _close(self.sandbox)
            self.sandbox = None


def _close(fds: Mapping[str, int]) -> None:
    for fd in fds.values():
        os.close(fd)
