"""Faulty isolation drivers, one for each clause."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from attrs import evolve

from contract.faults import planted
from contract.reference.isolation import ChrootIsolation, Life
from contract.reference.state import NoConfig
from wherry.api import (
    CommandNotFound,
    Context,
    CreateRequest,
    Error,
    Exit,
    Invalid,
    Stdio,
    TaskState,
)
from wherry.testing import IsolationContract


def breaks(*clauses: str):
    return planted(IsolationContract, *clauses)


@breaks("create_holds_before_exec", "delete_of_a_held_one")
class StartsAtOnce(ChrootIsolation):
    def make(self, id: str, exec_id: str, *rest: Any) -> TaskState:
        state = super().make(id, exec_id, *rest)
        self.life(id, exec_id).release()
        time.sleep(0.1)
        return state


@breaks("create_that_may_start")
class SaysThatItRuns(ChrootIsolation):
    def create(self, request: CreateRequest) -> TaskState:
        state = super().create(request)
        return evolve(state, status="running") if request.start else state


@breaks("create_that_may_start_fails_whole")
class LeavesWhatCouldNotStart(ChrootIsolation):
    def create(self, request: CreateRequest) -> TaskState:
        state = super().create(request)
        if not request.start:
            return state
        self.start(request.id)
        return evolve(state, status="running")


@breaks("state_names_the_process")
class NoStartTime(ChrootIsolation):
    def state(self, id: str, exec_id: str = "") -> TaskState:
        return evolve(super().state(id, exec_id), start_time=0)


@breaks("start_runs_once")
class StartsAgain(ChrootIsolation):
    def create(self, request: CreateRequest) -> TaskState:
        self.request = request
        return super().create(request)

    def start(self, id: str, exec_id: str = "") -> None:
        if self.life(id).status == "running":
            again = Life(id, "again", self.life(id).root, self.request.spec["process"], Stdio(), 0, False)
            self.lives[id, "again"] = again
            again.release()
        super().start(id, exec_id)


@breaks("root_is_the_given_one")
class RunsOnTheHost(ChrootIsolation):
    def create(self, request: CreateRequest) -> TaskState:
        process = {**request.spec["process"], "env": ["PATH=/usr/bin:/bin"]}
        return self.make(request.id, "", "/", process, request.stdio, 1)


class ChangesTheProcess(ChrootIsolation):
    changes: ClassVar[Mapping[str, Any]] = {}

    def process(self, process: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**process, **self.changes}


@breaks("environment_directory_and_arguments")
class OwnEnvironment(ChangesTheProcess):
    def process(self, process: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**process, "env": [*process["env"], "WHERRY_SECRET=1"]}


@breaks("environment_directory_and_arguments")
class OwnDirectory(ChangesTheProcess):
    changes: ClassVar = {"cwd": "/"}


@breaks("user_and_groups")
class AlwaysRoot(ChangesTheProcess):
    changes: ClassVar = {"user": {"uid": 0, "gid": 0}}


@breaks("user_and_groups")
class DropsGroups(ChangesTheProcess):
    def process(self, process: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**process, "user": {**process["user"], "additionalGids": []}}


@breaks("command_not_found", "exec_of_a_missing_command")
class OneErrorForAll(ChrootIsolation):
    def start(self, id: str, exec_id: str = "") -> None:
        try:
            super().start(id, exec_id)
        except Error as error:
            raise Invalid(error.what, error.cause) from None


@breaks("command_not_executable")
class NotFoundForAll(ChrootIsolation):
    def start(self, id: str, exec_id: str = "") -> None:
        try:
            super().start(id, exec_id)
        except Error as error:
            raise CommandNotFound(error.what, error.cause) from None


@breaks("streams_are_connected")
class DropsStderr(ChrootIsolation):
    def make(
        self, id: str, exec_id: str, root: str, process: Mapping[str, Any], stdio: Stdio, target: int
    ) -> TaskState:
        return super().make(id, exec_id, root, process, evolve(stdio, stderr=-1), target)


@breaks("no_other_descriptors_are_inherited")
class InheritsDescriptors(ChrootIsolation):
    def make(
        self, id: str, exec_id: str, root: str, process: Mapping[str, Any], stdio: Stdio, target: int
    ) -> TaskState:
        pipes = os.pipe
        os.pipe = inheritable_pipe  # type: ignore[assignment]
        self.inherit = True
        try:
            return super().make(id, exec_id, root, process, stdio, target)
        finally:
            os.pipe = pipes


def inheritable_pipe() -> tuple[int, int]:
    return os.pipe2(0)


@breaks("held_stdin_is_closed_on_demand")
class NeverClosesStdin(ChrootIsolation):
    def close_stdin(self, id: str, exec_id: str = "") -> None:
        self.life(id, exec_id)


@breaks("held_stdin_is_closed_on_demand")
class DoesNotHoldStdin(ChrootIsolation):
    def make(
        self, id: str, exec_id: str, root: str, process: Mapping[str, Any], stdio: Stdio, target: int
    ) -> TaskState:
        return super().make(id, exec_id, root, process, evolve(stdio, hold_stdin=False), target)


@breaks("terminal")
class NoTerminal(ChrootIsolation):
    def make(
        self, id: str, exec_id: str, root: str, process: Mapping[str, Any], stdio: Stdio, target: int
    ) -> TaskState:
        return super().make(id, exec_id, root, {**process, "terminal": False}, evolve(stdio, terminal=False), target)


@breaks("terminal")
class NeverResizes(ChrootIsolation):
    def resize(self, id: str, rows: int, columns: int, exec_id: str = "") -> None:
        self.life(id, exec_id)


class ChangesExit(ChrootIsolation):
    def change(self, exit: Exit) -> Exit:
        return exit

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        exit = super().wait(id, exec_id, timeout)
        return exit and self.change(exit)


@breaks("exit_code")
class SevenBits(ChangesExit):
    def change(self, exit: Exit) -> Exit:
        return evolve(exit, code=(exit.code or 0) & 127)


@breaks("exit_code")
class TimeInSeconds(ChangesExit):
    def change(self, exit: Exit) -> Exit:
        return evolve(exit, time=exit.time // 10**9)


@breaks("signals_end_it")
class BareSignalNumber(ChangesExit):
    def change(self, exit: Exit) -> Exit:
        return evolve(exit, code=(exit.code or 0) % 128)


@breaks("signals_end_it")
class AlwaysKills(ChrootIsolation):
    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        super().kill(id, 9, exec_id, all=all)


@breaks("state_after_the_end")
class KeepsThePid(ChrootIsolation):
    def state(self, id: str, exec_id: str = "") -> TaskState:
        return evolve(super().state(id, exec_id), pid=self.life(id, exec_id).popen.pid)


@breaks("wait_times_out")
class WaitKills(ChrootIsolation):
    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        exit = super().wait(id, exec_id, timeout)
        if exit is None:
            self.kill(id, 9, exec_id)
        return exit or super().wait(id, exec_id)


@breaks("wait_answers_again", "waiters_on_many_threads")
class AnswersOnce(ChrootIsolation):
    def __init__(self, config: NoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.answered: set[str] = set()
        self.lock = threading.Lock()

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        exit = super().wait(id, exec_id, timeout)
        with self.lock:
            if id + exec_id in self.answered:
                return None
            self.answered.add(id + exec_id)
        return exit


@breaks("kill_all")
class KillsTheFirstOnly(ChrootIsolation):
    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        super().kill(id, signal, exec_id)

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if (id, exec_id) in self.lives:
            super().kill(id, 9, exec_id, all=True)
        return super().delete(id, exec_id, force=force)


@breaks("pids")
class OnlyTheFirstPid(ChrootIsolation):
    def pids(self, id: str) -> tuple[int, ...]:
        return super().pids(id)[:1]

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if (id, exec_id) in self.lives:
            for pid in super().pids(id):
                self.send(pid, 9)
        return super().delete(id, exec_id, force=force)


@breaks("delete_refuses_a_running_one")
class DeleteAlwaysForces(ChrootIsolation):
    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        return super().delete(id, exec_id, force=True)


@breaks("delete_with_force_kills")
class ForceForgets(ChrootIsolation):
    left: tuple[int, ...] = ()

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if (id, exec_id) not in self.lives:
            return None
        self.left = (*self.left, *self.pids(id))
        life = self.lives.pop((id, exec_id))
        life.drop()
        return Exit(137, time.time_ns())

    def close(self) -> None:
        for pid in self.left:
            self.send(pid, 9)


@breaks("delete_is_idempotent", "id_is_free_after_delete")
class DeletesOnce(ChrootIsolation):
    def __init__(self, config: NoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.deleted: set[str] = set()

    def create(self, request: CreateRequest) -> TaskState:
        if request.id in self.deleted:
            raise Invalid(f"container {request.id!r}", "was here before")
        return super().create(request)

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if not force:
            self.life(id, exec_id)
        self.deleted.add(id)
        return super().delete(id, exec_id, force=force)


@breaks("delete_is_idempotent")
class DeleteAnswersNothing(ChrootIsolation):
    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        super().delete(id, exec_id, force=force)
        return None


@breaks("delete_of_a_held_one")
class DeleteReleases(ChrootIsolation):
    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if (id, exec_id) in self.lives and self.life(id, exec_id).status == "created":
            self.start(id, exec_id)
            self.wait(id, exec_id, 2.0)
        return super().delete(id, exec_id, force=force)


@breaks("nothing_is_left")
class LeavesAMount(ChrootIsolation):
    def __init__(self, config: NoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.mounted = 0

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if self.mounted == 0:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.context.run], check=True)
            self.mounted = 1
        return super().delete(id, exec_id, force=force)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", self.context.run], check=True)


@breaks("missing_container_is_not_found")
class MissingIsQuiet(ChrootIsolation):
    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        if (id, exec_id) in self.lives:
            super().kill(id, signal, exec_id, all=all)


@breaks("missing_container_is_not_found")
class MissingHasAState(ChrootIsolation):
    def state(self, id: str, exec_id: str = "") -> TaskState:
        if (id, exec_id) not in self.lives:
            return TaskState(id, exec_id, "stopped", 0, 0)
        return super().state(id, exec_id)


@breaks("exec_runs_inside")
class ExecOnTheHost(ChrootIsolation):
    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        return self.make(id, exec_id, "/", {**process, "env": ["PATH=/usr/bin:/bin"]}, stdio, os.getpid())


@breaks("exec_is_in_the_same_namespaces")
class ExecInNewNamespaces(ChrootIsolation):
    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        return self.make(id, exec_id, self.life(id).root, process, stdio, 0)


@breaks("exec_that_starts_at_once")
class ExecHeldAllTheSame(ChrootIsolation):
    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        return super().exec(id, exec_id, process, stdio)


@breaks("exec_needs_a_running_container")
class ExecAnywhere(ChrootIsolation):
    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        life = self.life(id)
        return self.make(id, exec_id, life.root, process, stdio, 0)


@breaks("exec_has_a_life_of_its_own")
class ExecEndsTheContainer(ChrootIsolation):
    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        super().kill(id, signal, exec_id, all=True)
        if exec_id:
            self.wait(id, timeout=10.0)


@breaks("exec_has_a_life_of_its_own")
class ExecIsDeletedWhileItRuns(ChrootIsolation):
    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        return super().delete(id, exec_id, force=force or bool(exec_id))


@breaks("pause_and_resume")
class OnlySaysPaused(ChrootIsolation):
    def pause(self, id: str) -> None:
        self.life(id).status = "paused"


@breaks("pause_and_resume")
class NeverResumes(ChrootIsolation):
    def resume(self, id: str) -> None:
        self.life(id).status = "running"


@breaks("stats_are_numbers")
class StatsAsText(ChrootIsolation):
    def stats(self, id: str) -> Mapping[str, int]:
        return {"pids.current": str(len(self.pids(id)))}  # type: ignore[dict-item]


@breaks("reopened_driver_adopts")
class AdoptsNothing(ChrootIsolation):
    def adopt(self) -> Iterator[TaskState]:
        return iter(())


@breaks("threads_run_side_by_side")
class OneRequestForAll(ChrootIsolation):
    """Keeps a request in the object while it works on it."""

    def create(self, request: CreateRequest) -> TaskState:
        self.current = request
        time.sleep(0.05)
        return super().create(evolve(request, spec=self.current.spec))
