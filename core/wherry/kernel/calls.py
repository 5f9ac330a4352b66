"""Calls into drivers: each on a thread of a bounded pool, so that one that hangs can be given up.

A hop to a waiting thread and back costs 25 to 50 µs on a small virtual machine (two futex wake-ups). A driver that calls back
into another guarded object stays on its thread: the deadline of the outer call covers it.
"""

from __future__ import annotations

import _thread
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

from wherry.errors import DeadlineExceeded
from wherry.kit import threads

KEPT_IDLE = 16
"""Threads that wait for the next call; those beyond it end after their call."""


class Call:
    """The driver call that runs in the current context: who, for which variant, until when (time.monotonic, None: no end)."""

    __slots__ = ("deadline", "name", "plugin", "variant")

    def __init__(self, plugin: str, name: str, variant: str, deadline: float | None) -> None:
        self.plugin = plugin
        self.name = name
        self.variant = variant
        self.deadline = deadline


CURRENT: ContextVar[Call | None] = ContextVar("wherry_call", default=None)
HOLD: ContextVar[Callable[[str], None] | None] = ContextVar("wherry_hold", default=None)


def checkpoint() -> None:
    """Raises DeadlineExceeded once the deadline of the current call has passed."""
    call = CURRENT.get()
    if call is not None and call.deadline is not None and time.monotonic() > call.deadline:
        raise DeadlineExceeded(f"{call.plugin}: {call.name}", "the deadline has passed", plugin=call.plugin)


def remaining() -> float | None:
    """Seconds until the current call's deadline (not below 0), None for no end."""
    call = CURRENT.get()
    return None if call is None or call.deadline is None else max(0.0, call.deadline - time.monotonic())


@contextmanager
def holding(callback: Callable[[str], None]) -> Iterator[None]:
    """Inside, ``Context.hold`` of any driver adds to the lease behind callback."""
    token = HOLD.set(callback)
    try:
        yield
    finally:
        HOLD.reset(token)


class CallTimeout(Exception):
    """The call did not end in time; its thread is lost until it does."""


class Interrupted(KeyboardInterrupt):
    """The caller was interrupted while it waited; the call goes on without it."""


class CallerGone(BaseException):
    """Ends work whose caller has gone (see ``Pool.together``); nobody hears of it."""


class CallThread:
    """The thread of a piece of work that makes driver calls in a row. call: the one it is in, with what to do when it hangs."""

    __slots__ = ("_lock", "call", "given_up", "thread")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self.call: tuple[Call, Callable[[], BaseException], Callable[[], None]] | None = None
        self.given_up = False
        self.thread = 0

    def run(self, function: Callable[..., Any], args: Any) -> Any:
        self.thread = _thread.get_ident()
        CARRIER.set(self)
        return function(*args)

    def enter(self, call: Call, lost: Callable[[], BaseException], back: Callable[[], None]) -> None:
        """lost is called, and what it answers raised, by who waits; back should the thread return nevertheless."""
        with self._lock:
            if self.given_up:
                raise CallerGone
            self.call = (call, lost, back)

    def leave(self) -> bool:
        """False: nobody waits any more."""
        with self._lock:
            self.call = None
            return not self.given_up

    def give_up(self, inside: tuple[Call, Callable[[], BaseException], Callable[[], None]]) -> bool:
        """False: that call has ended meanwhile, so the work goes on."""
        with self._lock:
            if self.call is not inside:
                return False
            self.given_up = True
            return True


CARRIER: ContextVar[CallThread | None] = ContextVar("wherry_carrier", default=None)


def carrier() -> CallThread | None:
    """The carrier whose thread this is, if any; threads started by the work only have it in their context."""
    found = CARRIER.get()
    return found if found is not None and found.thread == _thread.get_ident() else None


class _Job:
    __slots__ = ("args", "claim", "context", "done", "error", "function", "kwargs", "lost", "value")

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.context = copy_context()
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.claim = _thread.allocate_lock()
        self.value: Any = None
        self.error: BaseException | None = None
        self.lost: Callable[[], None] | None = None


class _Worker:
    __slots__ = ("job", "pool", "wake")

    def __init__(self, pool: Pool, number: int) -> None:
        self.pool = pool
        self.wake = _thread.allocate_lock()
        self.wake.acquire()
        self.job: _Job | None = None
        threads.start(self.run, f"wherry-call-{number}")

    def run(self) -> None:
        wake, pool = self.wake.acquire, self.pool
        while True:
            wake()
            job = self.job
            if job is None:
                return
            self.job = None
            try:
                job.value = job.context.run(job.function, *job.args, **job.kwargs)
            except BaseException as error:
                job.error = error
            if job.claim.acquire(blocking=False):
                stay = pool.park(self)
                job.done.release()
                if not stay:
                    return
            else:  # given up meanwhile: the caller is gone, and with this the thread is back
                back, job = job.lost, None
                if back is not None:
                    back()
                if not pool.park(self):
                    return
            del job


class Pool:
    """Threads for driver calls. How many calls of one driver run at once is limited by its Health, not here."""

    def __init__(self) -> None:
        self._idle: deque[_Worker] = deque()
        self._numbers = itertools.count(1)
        self._closed = False

    def run(
        self,
        function: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        *,
        timeout: float | None = None,
        back: Callable[[], None] | None = None,
    ) -> Any:
        """Calls the function on a pool thread in a copy of the current context. timeout: seconds. Raises what it raises, or
        Abandoned; then back is called from the lost thread should it ever return."""
        job = _Job(function, args, kwargs or {})
        self._give(job)
        try:
            in_time = job.done.acquire(timeout=-1 if timeout is None else timeout)
        except KeyboardInterrupt:  # Ctrl-C while the main thread waits: the caller's, whatever the driver raises
            raise Interrupted from None
        if not in_time:
            job.lost = back
            if job.claim.acquire(blocking=False):
                raise CallTimeout
            job.done.acquire()
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # else job, traceback and frame keep each other alive
        return job.value

    def together(self, function: Callable[..., Any], args: Any, patience: float) -> Any:
        """Runs work that makes several driver calls on one pool thread: one hop there and back instead of one for each call.

        Every call still has its own deadline. When one passes it, what ``Carrier.enter`` was told is raised here, and the work
        ends by GivenUp should its thread ever come back. patience: seconds after which it is looked at again.
        """
        carrier = CallThread()
        job = _Job(carrier.run, (function, args), {})
        self._give(job)
        wait = patience
        while True:
            try:
                if job.done.acquire(timeout=wait):
                    break
            except KeyboardInterrupt:
                # The caller is about to take back what was done: no step may be under way beside it.
                carrier.given_up = True
                job.done.acquire(timeout=patience)
                raise Interrupted from None
            inside = carrier.call
            left = None if inside is None or inside[0].deadline is None else inside[0].deadline - time.monotonic()
            if inside is None or left is None or left > 0:
                wait = patience if left is None else min(patience, left + 0.001)
                continue
            if not carrier.give_up(inside):
                continue
            _call, lost, job.lost = inside
            if job.claim.acquire(blocking=False):
                raise lost()
            job.done.acquire()
            break
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None
        return job.value

    def _give(self, job: _Job) -> None:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self, next(self._numbers))
        worker.job = job
        worker.wake.release()

    def park(self, worker: _Worker) -> bool:
        """Called by a worker that is free; False: it shall end."""
        if self._closed or len(self._idle) >= KEPT_IDLE:
            return False
        self._idle.append(worker)
        return True

    def close(self) -> None:
        """Ends the idle threads; busy ones end after their call."""
        self._closed = True
        while self._idle:
            worker = self._idle.pop()
            worker.wake.release()
