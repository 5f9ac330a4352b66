"""The stem: a process that has loaded all that workers need and forks one for each job, ten times as fast as a new interpreter.

fd 0 is a socket to the engine (SOCK_SEQPACKET). A message brings the descriptors of a job: request, answer, and where there is one the
stream and its feed or sink; the answer is the worker's pid, with a pidfd, or the number of the error that fork(2) had. The stem reads
no byte of an image. It ends with its socket, that is with the engine, and its workers with it.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
from collections.abc import Sequence

from wherry.layers import worker
from wherry.linux.process import PR_SET_PDEATHSIG, close_from, prctl

_MOST = 4  # descriptors of one job
_FREE = 10  # those of a worker are below
_CHILD = (signal.SIGCHLD,)


def main() -> None:
    """Forks a worker for each message until the socket is closed."""
    channel = socket.socket(fileno=0)
    worker.load()
    gc.collect()
    gc.freeze()  # else each worker's first collection would copy all of it
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        _word, fds, _flags, _address = socket.recv_fds(channel, 16, _MOST)
        if not fds:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD)  # the pid is its own until it has a pidfd
        try:
            _answer(channel, fds)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _CHILD)
            for fd in fds:
                os.close(fd)


def _answer(channel: socket.socket, fds: Sequence[int]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        channel.send(f"errno {error.errno}".encode())
        return
    if not pid:
        try:
            _become(fds, parent)
        finally:
            os._exit(1)
    pidfd = os.pidfd_open(pid)
    try:
        socket.send_fds(channel, [f"pid {pid}".encode()], [pidfd])
    finally:
        os.close(pidfd)


def _become(fds: Sequence[int], parent: int) -> None:
    """The worker: its descriptors have their numbers, and there are no others but stderr."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CHILD)
    numbers = (worker.REQUEST, worker.ANSWER, worker.STREAM, worker.FEED)[: len(fds)]
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FREE) for fd in fds]  # dup2 may hit another one of them
    for fd, number in zip(above, numbers, strict=True):
        os.dup2(fd, number, inheritable=False)
    close_from(max(numbers[-1], 2) + 1)
    worker.main()


def _reap(_signal: int, _frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


__all__ = ["main"]
