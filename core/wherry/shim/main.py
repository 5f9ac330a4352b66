"""The shim's process, started by ``launch`` or by its own ``replace`` through ``boot``."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket

from wherry.linux import process
from wherry.linux.loop import Loop
from wherry.shim.boot import ShimOptions
from wherry.shim.engine_supervisor import protect
from wherry.shim.immortal import immortalize
from wherry.shim.journal import Journal
from wherry.shim.server import Shim

#: Containers inherit the soft limit, and some programs walk all descriptors up to it: not the billion that hard may be.
_FILES = 1 << 16
#: Whoever was spawned by glibc's posix_spawn(3), as the engine is that starts a lost shim again, ignores the first two.
_REALTIME = range(32, 65)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def main(fd: int) -> None:
    """fd is the options' memfd. Never returns."""
    immortalize()
    process.set_dumpable(False)
    _tame_malloc()
    process.set_name("wherry-shim")
    process.set_child_subreaper()
    protect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))
    # handled, not ignored: an ignored signal would stay ignored in every container
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    for realtime in _REALTIME:  # the others a container gets back by itself
        process.set_disposition(realtime, ignored=False)
    options = ShimOptions.read(fd)
    for descriptor in options.descriptors():
        os.set_inheritable(descriptor, False)
    loop = Loop()
    listener = socket.socket(fileno=options.listener)
    shim = Shim(options, loop, listener, f"{os.getpid()}-{os.urandom(6).hex()}")
    if options.state >= 0:
        from wherry.shim.replace import resume

        resume(shim, options.state)
        options.state = -1
    else:
        _begin(shim)
    shim.listen()
    if options.ready >= 0:
        os.write(options.ready, b"ready\n")
        os.close(options.ready)
        options.ready = -1
    gc.collect()
    gc.freeze()
    loop.run()
    shim.close()
    os._exit(0)


def _begin(shim: Shim) -> None:
    """A first shim, or the successor of one that was lost, whose logger may be there still."""
    fd = shim.keeper.take_over()
    if fd < 0:
        shim.ledger = Journal()
        shim.keeper.open(shim.ledger)
        return
    shim.ledger = shim.keeper.ledger = Journal(fd)
    from wherry.shim.recover import from_ledger

    from_ledger(shim)


def _tame_malloc() -> None:
    """Large blocks by mmap(2), always, and given back when freed: a long answer once must not stay for good (mallopt(3))."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, 1 << 17), (_M_TRIM_THRESHOLD, 1 << 18)):
            mallopt(option, value)
