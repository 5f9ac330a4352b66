"""One output stream of a container on its way to the log and to its readers, so that a kill at any point loses and doubles nothing.

    container's pipe --splice--> fan --tee--> one pipe a reader --splice--> reader       (only while there are readers)
                                  fan --splice--> stage --tee, read--> records --> log file, then stage is discarded

Each arrow is one system call that moves whole bytes; every pipe but the scratch one is held by the shim too. What remains to be
known after a kill are two facts, kept in the arena: whether the fan's bytes were given to the readers, and how far the log file is
valid. See ``recover``.
"""

from __future__ import annotations

import errno
import os
import select

from wherry.linux.loop import IN
from wherry.shim import pipes
from wherry.shim.readers import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wherry.shim.logger import LoggedTask

#: A line without an end is recorded in pieces of this many bytes (Docker's own limit for a partial message).
PARTIAL = 16384
_RETRY = 0.5


def boundary(data: bytes, limit: int) -> int:
    """The largest cut at or below limit that does not split a UTF-8 sequence; limit itself when these are no such bytes."""
    cut = min(limit, len(data))
    if cut == len(data):
        return cut
    for back in range(min(4, cut)):
        if data[cut - back] & 0xC0 != 0x80:
            return cut - back or cut
    return cut


class Output:
    """stdout, stderr or the pty master: index is 0 or 1."""

    __slots__ = ("_copying", "blocked", "eof", "fd", "hung", "index", "quiet", "readers", "task")

    def __init__(self, task: LoggedTask, index: int, fd: int) -> None:
        self.task = task
        self.index = index
        self.fd = fd
        self.readers: list[Reader] = []
        self.eof = False
        self.hung = False  # a pty whose last slave was closed; another may be opened
        self.blocked = False  # the log takes nothing for now
        self.quiet = False  # seen empty after the process had exited
        self._copying = False

    # the staging pipes

    def _kept(self, name: str, make: bool = True) -> int:
        name = f"{name}{self.index}"
        fd = self.task.streams.kept.get(name, -1)
        if fd < 0 and make:
            fd = pipes.staging()
            self.task.keep(name, fd)
        return fd

    # readers

    def add_reader(self, token: str, fd: int, drop: bool = False) -> int:
        """Adds one; answers the descriptor that now stands for it."""
        name = f"{token}/{self.index}"
        pipe = self.task.streams.kept.get(name, -1)
        if pipe < 0:
            pipe = pipes.staging()
            self.task.keep(name, pipe)
        reader = Reader(self.task.logger.loop, token, fd, pipe, drop, self._gone)
        self.readers.append(reader)
        return reader.fd

    def remove_reader(self, token: str) -> None:
        for reader in [reader for reader in self.readers if reader.token == token]:
            self.readers.remove(reader)
            reader.close()
            self.task.gone(token, self.index)
        self.task.resume(self)

    def _gone(self, reader: Reader) -> None:
        self.remove_reader(reader.token)

    def served(self) -> bool:
        """Passes on what readers still hold; False while one of them holds up the stream."""
        logger = self.task.logger
        clear = True
        for reader in tuple(self.readers):
            if not reader.flush(logger.scratch, logger.null):
                reader.wait(self._again)
                clear = clear and reader.drop
            elif reader.broken:
                self.readers.remove(reader)
                reader.close()
                self.task.gone(reader.token, self.index)
        return clear

    def _again(self) -> None:
        self.task.resume(self)

    # one batch

    def step(self) -> bool:
        """Moves one batch; False when there is none to be had, or something behind is full."""
        if self.blocked or not self.served():
            return False
        fan = self._kept("fan", make=False)
        if fan >= 0 and pipes.pending(fan) and not (self._spread(fan) and self.served()):
            return False
        if self.eof or self.hung:
            return False
        if self.readers:
            if not self._has_bytes() or not self._take(fan := self._kept("fan")):
                return False
            return self._spread(fan) and self.served()
        if self.task.log is None:
            return self._take(self.task.logger.null)
        return self._has_bytes() and self._take(self._kept("stage")) and self.record()

    def _has_bytes(self) -> bool:
        """Whether it is worth while to make a staging pipe: most streams end without a byte."""
        if self.task.streams.terminal or self._kept("stage", make=False) >= 0 or self._kept("fan", make=False) >= 0:
            return True
        logger = self.task.logger
        try:
            count = pipes.tee(self.fd, logger.scratch, 1)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not count:
            self.eof = True
            return False
        pipes.discard(logger.scratch, count, logger.null)
        return True

    def _take(self, target: int) -> bool:
        """Container to target; False when nothing came."""
        try:
            count = self._copy(target) if self._copying else pipes.splice(self.fd, target, pipes.LARGEST)
        except BlockingIOError:
            if target == self.task.streams.kept.get(f"stage{self.index}") and pipes.pending(target) and self._waiting():
                return (pipes.grow(target) or self.record(force=True)) and self._take(target)
            return False
        except OSError as error:
            if error.errno == errno.EIO:
                self.hung = True
                if not self.task.streams.exited:
                    self.task.logger.loop.later(_RETRY, self._rehang)
            elif pipes.unsupported(error) and not self._copying:
                self._copying = True
                return self._take(target)
            else:
                self.eof = True
            return False
        if not count:
            self.eof = True
        return count > 0

    def _waiting(self) -> bool:
        """Whether the container's end has bytes, or its end of file: then it is the target that has no room."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def _copy(self, target: int) -> int:
        """Where a tty can't be spliced from: a kill between the two calls loses a piece."""
        if target == self.task.streams.kept.get(f"stage{self.index}") and pipes.pending(target) > pipes.CHUNK // 2:
            self.record(force=True)
        data = os.read(self.fd, 4096)
        if data:
            os.write(target, data)
        return len(data)

    def _spread(self, fan: int) -> bool:
        """From the fan to the readers and to the log; False when the log takes nothing for now."""
        arena, slot, null = self.task.logger.arena, self.task.streams.slot, self.task.logger.null
        if not arena.shared(slot, self.index):
            self._share(fan)
        while count := pipes.pending(fan):
            if self.task.log is None:
                pipes.discard(fan, count, null)
                continue
            stage = self._kept("stage")
            try:
                pipes.splice(fan, stage, count)
            except BlockingIOError:
                if not pipes.grow(stage) and not self.record(force=True):
                    return False
        arena.set_shared(slot, self.index, False)
        return self.task.log is None or self.record()

    def _share(self, fan: int) -> None:
        """Gives each reader its copy. One whose pipe holds bytes has it already (a kill came in between), or drops it."""
        for reader in self.readers:
            if not pipes.pending(reader.pipe):
                pipes.match(fan, reader.pipe)
                pipes.tee(fan, reader.pipe, pipes.LARGEST)
        self.task.logger.arena.set_shared(self.task.streams.slot, self.index, True)

    def record(self, *, force: bool = False) -> bool:
        """Writes the staged lines to the log, with force an unfinished line too; False when the log takes nothing for now."""
        log, stage = self.task.log, self._kept("stage", make=False)
        if log is None or stage < 0 or self.blocked:
            return not self.blocked
        count = pipes.pending(stage)
        if not count:
            return True
        logger, slot = self.task.logger, self.task.streams.slot
        pipes.match(stage, logger.scratch)
        pipes.tee(stage, logger.scratch, count)
        data = os.read(logger.scratch, pipes.LARGEST)
        start = 0
        while start < len(data):
            limit = log.batch()
            end = data.rfind(b"\n", start, start + limit) + 1
            if not end:
                rest = len(data) - start
                if not force and rest < min(PARTIAL, limit):
                    break
                end = boundary(data, start + min(PARTIAL, limit))
            try:
                if log.open():
                    logger.arena.set_log(slot, log.size)
                if log.full():
                    log.rotate()
                    logger.arena.set_log(slot, log.size)
                log.write(data[start:end], self.index)
            except OSError:
                if self.task.when_full != "drop":
                    self.blocked = True
                    logger.loop.later(_RETRY, self._retry)
                    return False
            logger.arena.set_log(slot, log.size, self.index, len(data) - end)
            pipes.discard(stage, end - start, logger.null)
            logger.arena.set_log(slot, log.size)
            start = end
        return True

    def _retry(self) -> None:
        self.blocked = False
        if self.record(force=self.eof or self.quiet):
            self.task.resume(self)

    def _rehang(self) -> None:
        """A process may have opened the pty again."""
        if self.hung and not self.task.streams.exited:
            self.hung = False
            self.task.resume(self)

    # watching

    def watch(self) -> None:
        """Waits for the container's next bytes, unless what came before is still on its way."""
        loop = self.task.logger.loop
        wanted = not (self.eof or self.hung or self.blocked) and all(
            reader.drop or not pipes.pending(reader.pipe) for reader in self.readers
        )
        if wanted and not loop.watches(self.fd):
            loop.add(self.fd, IN, self._ready)
        elif not wanted:
            loop.remove(self.fd)

    def _ready(self, _events: int) -> None:
        self.task.resume(self)

    def settled(self) -> bool:
        """Whether everything that can come for now has arrived where it belongs."""
        if not (self.eof or self.quiet) or self.blocked:
            return False
        return all(reader.drop or not pipes.pending(reader.pipe) for reader in self.readers)

    def recover(self) -> None:
        """After a kill, before any reader takes more: the fan's bytes go on from where they are. ``LoggedTask`` set back the log."""
        fan = self._kept("fan", make=False)
        if fan < 0:
            return
        slot, arena = self.task.streams.slot, self.task.logger.arena
        if not pipes.pending(fan):
            arena.set_shared(slot, self.index, False)
        elif not arena.shared(slot, self.index):
            self._share(fan)

    def close(self) -> None:
        self.task.logger.loop.remove(self.fd)
        for reader in self.readers:
            reader.close()
        self.readers.clear()
