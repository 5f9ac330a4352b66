"""What every isolation driver must do: hold, start, signal, exec, wait for and take down a container.

The clauses run a static busybox in a root file system of their own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import CommandNotExecutable, CommandNotFound, FailedPrecondition, NotFound
from wherry.interfaces.process import Stdio
from wherry.testing.contract import Contract
from wherry.testing.isolation_harness import MARKER, PATIENCE, IsolationHarness, process_of

FOREVER = ("sleep", "1000")


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc_pid_stat(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class IsolationContract(Contract):
    """The clauses of the isolation kind. See ``wherry.interfaces.isolation``."""

    family = "isolation"
    with_shim = True

    def make_harness(self, directory: Path) -> IsolationHarness:
        return IsolationHarness(directory, self.family, self.register(), self.options, with_shim=self.with_shim)

    # create and start

    def test_create_holds_before_exec(self, harness: IsolationHarness) -> None:
        task = harness.create("echo", "released")
        assert (task.created.id, task.created.exec_id, task.created.status) == (task.id, "", "created")
        assert task.status() == "created"
        assert alive(task.pid)
        assert task.peek(0.3) == b""
        task.start()
        task.expect(b"released")
        assert task.code() == 0

    def test_create_that_may_start(self, harness: IsolationHarness) -> None:
        task = harness.create("echo", "on its way", start=True)
        if task.created.status == "created":  # it does not do so: then the caller does
            task.start()
        else:
            assert task.created.status == "running"
            assert (task.created.pid > 0, task.created.exit) == (True, None)
        task.expect(b"on its way")
        assert task.code() == 0
        assert task.status() == "stopped"

    def test_create_that_may_start_fails_whole(self, harness: IsolationHarness) -> None:
        for command, error in (("no-such-command", CommandNotFound), ("/bin/plain", CommandNotExecutable)):
            try:
                task = harness.create(command, id="again", start=True)
            except error:
                with pytest.raises(NotFound):
                    harness.open().state("again")
                assert harness.launch("true", id="again").code() == 0
                harness.open().delete("again")
                if harness.with_shim:
                    harness.shim.forget("again", "")
                continue
            assert task.created.status == "created", "it can't run"
            with pytest.raises(error):
                task.start()
            harness.delete(task)

    def test_state_names_the_process(self, harness: IsolationHarness) -> None:
        task = harness.create(*FOREVER)
        held = harness.open().state(task.id)
        assert (held.pid, held.start_time) == (task.created.pid, start_time(held.pid))
        task.start()
        state = harness.open().state(task.id)
        assert (state.status, state.pid, state.exit) == ("running", held.pid, None)
        assert state.start_time == start_time(state.pid)
        assert (state.id, state.exec_id, state.sandbox_id) == (task.id, "", task.id)

    def test_start_runs_once(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "echo once >> /tmp/count; sleep 1000")
        eventually((harness.rootfs / "tmp/count").exists, "the command did not run")
        try:
            task.start()
        except FailedPrecondition:
            time.sleep(0)
        time.sleep(0.1)
        assert (harness.rootfs / "tmp/count").read_text() == "once\n"
        assert task.status() == "running"

    def test_root_is_the_given_one(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "cat /marker; test -e /etc/hostname || test -d /usr || echo no-host; ls /")
        task.expect(MARKER.encode())
        assert b"no-host" in task.expect(b"marker\n")
        assert task.code() == 0

    def test_environment_directory_and_arguments(self, harness: IsolationHarness) -> None:
        task = harness.launch(
            "sh", "-c", 'echo "[$A] [$0] [$1] $(pwd)"; env', "zero", "a b\n'$x", env=["PATH=/bin", "A=1 2"], cwd="/tmp"
        )
        seen = task.expect(b"PATH=/bin")
        assert b"[1 2] [zero] [a b\n'$x] /tmp" in seen
        assert task.code() == 0
        assert b"WHERRY" not in seen

    def test_user_and_groups(self, harness: IsolationHarness) -> None:
        task = harness.launch(
            "sh", "-c", "id -u; id -g; id -G; echo end", user={"uid": 1234, "gid": 4321, "additionalGids": [77, 78]}
        )
        assert task.expect(b"end").split() == [b"1234", b"4321", b"4321", b"77", b"78", b"end"]

    def test_command_not_found(self, harness: IsolationHarness) -> None:
        for command in ("no-such-command", "/bin/no-such-command"):
            task = harness.create(command)
            with pytest.raises(CommandNotFound):
                task.start()
            assert task.code() != 0
            harness.open().delete(task.id)
            with pytest.raises(NotFound):
                task.status()

    def test_command_not_executable(self, harness: IsolationHarness) -> None:
        task = harness.create("/bin/plain")
        with pytest.raises(CommandNotExecutable):
            task.start()
        assert task.code() != 0
        harness.open().delete(task.id)

    # streams

    def test_streams_are_connected(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "cat; echo to-stderr >&2")
        task.write(b"to-stdin ")
        task.expect(b"to-stdin ")
        task.end_input()
        task.expect(b"to-stderr")
        assert task.code() == 0

    def test_no_other_descriptors_are_inherited(self, harness: IsolationHarness) -> None:
        stray = os.open(harness.rootfs / "marker", os.O_RDONLY)
        try:
            os.set_inheritable(stray, True)
            task = harness.launch("sh", "-c", "for fd in /proc/self/fd/*; do echo ${fd##*/}; done; echo end")
            seen = {int(word) for word in task.expect(b"end").split()[:-1]}
        finally:
            os.close(stray)
        # busybox's shell opens the directory to list it; that is the lowest free number
        assert seen <= {0, 1, 2, 3}

    def test_held_stdin_is_closed_on_demand(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "cat; echo ended", hold=True)
        assert task.peek(0.3) == b""
        harness.open().close_stdin(task.id)
        task.expect(b"ended")
        assert task.code() == 0

    def test_terminal(self, harness: IsolationHarness) -> None:
        task = harness.launch(
            "sh", "-c", "test -t 0 && test -t 2 && echo terminal; read x; stty size; read x; stty size", terminal=True
        )
        task.expect(b"terminal")
        harness.open().resize(task.id, 31, 97)
        task.write(b"\n")
        task.expect(b"31 97")
        harness.open().resize(task.id, 50, 132)
        task.write(b"\n")
        task.expect(b"50 132")
        assert task.code() == 0

    # the end

    def test_exit_code(self, harness: IsolationHarness) -> None:
        for code in (0, 7, 255):
            task = harness.launch("sh", "-c", f"exit {code}")
            before = time.time_ns() - 3600 * 10**9
            ended = task.wait()
            assert (ended.code, ended.oom_killed) == (code, False)
            assert before < ended.time < before + 7200 * 10**9, "time is in nanoseconds since the epoch"

    def test_signals_end_it(self, harness: IsolationHarness) -> None:
        task = harness.launch(*FOREVER)
        harness.open().kill(task.id, signal.SIGKILL)
        assert task.code() == 128 + signal.SIGKILL
        task = harness.launch("sh", "-c", "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
        task.expect(b"ready")
        harness.open().kill(task.id, signal.SIGTERM)
        task.expect(b"caught")
        assert task.code() == 3

    def test_state_after_the_end(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "exit 9")
        ended = task.wait()
        state = harness.open().state(task.id)
        assert (state.status, state.pid, state.exit) == ("stopped", 0, ended)

    def test_wait_times_out(self, harness: IsolationHarness) -> None:
        task = harness.launch(*FOREVER)
        begun = time.monotonic()
        assert harness.open().wait(task.id, "", 0.2) is None
        assert time.monotonic() - begun < PATIENCE
        assert harness.open().wait(task.id, "", 0.0) is None
        assert task.status() == "running"

    def test_wait_answers_again(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "exit 4")
        assert [task.wait().code for _ in range(3)] == [4, 4, 4]

    def test_waiters_on_many_threads(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "read x; exit 5")
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(task.wait) for _ in range(4)]
            task.write(b"\n")
            assert [future.result().code for future in waiting] == [5, 5, 5, 5]

    # kill and delete

    def test_kill_all(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000 & echo ready; wait")
        task.expect(b"ready")
        eventually(lambda: len(harness.open().pids(task.id)) >= 3, "pids does not list the children")
        members = harness.open().pids(task.id)
        harness.open().kill(task.id, signal.SIGKILL, all=True)
        assert task.code() == 128 + signal.SIGKILL
        eventually(lambda: not any(map(alive, members)), "processes survived kill all")

    def test_pids(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "sleep 1000 & echo ready; wait")
        task.expect(b"ready")
        eventually(lambda: len(harness.open().pids(task.id)) == 2, "pids does not list both")
        found = harness.open().pids(task.id)
        assert task.pid in found
        assert os.getpid() not in found
        assert all(alive(pid) for pid in found)

    def test_delete_refuses_a_running_one(self, harness: IsolationHarness) -> None:
        task = harness.launch(*FOREVER)
        with pytest.raises(FailedPrecondition):
            harness.open().delete(task.id)
        assert task.status() == "running"
        assert alive(task.pid)

    def test_delete_with_force_kills(self, harness: IsolationHarness) -> None:
        task = harness.launch("sh", "-c", "trap '' TERM; sleep 1000 & echo ready; wait")
        task.expect(b"ready")
        members = harness.open().pids(task.id)
        ended = harness.open().delete(task.id, force=True)
        assert ended is not None
        assert ended.code == 128 + signal.SIGKILL
        eventually(lambda: not any(map(alive, members)), "processes survived delete")
        with pytest.raises(NotFound):
            task.status()

    def test_delete_is_idempotent(self, harness: IsolationHarness) -> None:
        driver = harness.open()
        driver.delete("never-was")
        task = harness.launch("sh", "-c", "exit 6")
        task.wait()
        ended = driver.delete(task.id)
        assert ended is not None
        assert ended.code == 6
        driver.delete(task.id)
        driver.delete(task.id, force=True)
        driver.delete("never-was", "exec")

    def test_delete_of_a_held_one(self, harness: IsolationHarness) -> None:
        task = harness.create("touch", "/tmp/ran")
        pid = task.pid
        harness.open().delete(task.id, force=True)
        eventually(lambda: not alive(pid), "the held process survived")
        assert not (harness.rootfs / "tmp/ran").exists()
        with pytest.raises(NotFound):
            task.status()

    def test_id_is_free_after_delete(self, harness: IsolationHarness) -> None:
        for code in (1, 2):
            task = harness.launch("sh", "-c", f"exit {code}", id="again")
            assert task.code() == code
            harness.delete(task)
            if harness.shim is not None:
                harness.shim.remove_sandbox("again")

    def test_nothing_is_left(self, harness: IsolationHarness) -> None:
        """No mount of the host and no cgroup stays behind."""
        harness.launch("true").wait()
        table = Path("/proc/self/mountinfo")
        before = table.read_text()
        task = harness.launch(*FOREVER)
        groups = [line.split(":", 2) for line in Path(f"/proc/{task.pid}/cgroup").read_text().splitlines()]
        own = {path for _, _, path in groups if task.id in path}
        assert table.read_text() == before
        harness.open().delete(task.id, force=True)
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        hierarchies = [fields[1] for fields in mounts if fields[2] in {"cgroup", "cgroup2"}]
        left = [top + path for top in hierarchies for path in own if Path(top + path).exists()]
        assert left == []
        assert table.read_text() == before

    def test_missing_container_is_not_found(self, harness: IsolationHarness) -> None:
        driver = harness.open()
        calls: list[Callable[[], Any]] = [
            lambda: driver.start("absent"),
            lambda: driver.exec("absent", "x", process_of("true"), Stdio()),
            lambda: driver.kill("absent", signal.SIGTERM),
            lambda: driver.resize("absent", 1, 1),
            lambda: driver.close_stdin("absent"),
            lambda: driver.update("absent", {}),
            lambda: driver.stats("absent"),
            lambda: driver.pids("absent"),
            lambda: driver.wait("absent", "", 0.1),
            lambda: driver.state("absent"),
        ]
        if "pause" in harness.provides():
            calls += [lambda: driver.pause("absent"), lambda: driver.resume("absent")]
        for call in calls:
            with pytest.raises(NotFound):
                call()

    # exec

    def need(self, harness: IsolationHarness, flag: str) -> None:
        if flag not in harness.provides():
            pytest.skip(f"{harness.context.id}: does not provide {flag!r}")

    def test_exec_runs_inside(self, harness: IsolationHarness) -> None:
        self.need(harness, "exec")
        task = harness.launch(*FOREVER)
        more = harness.exec(task, "sh", "-c", "cat /marker; pwd; exit 8", cwd="/tmp")
        assert (more.created.id, more.created.exec_id) == (task.id, more.exec_id)
        assert more.peek(0.2) == b"", "an exec is held until start"
        more.start()
        assert more.expect(b"/tmp") == MARKER.encode() + b"/tmp\n"
        assert more.code() == 8
        assert task.status() == "running"

    def test_exec_is_in_the_same_namespaces(self, harness: IsolationHarness) -> None:
        self.need(harness, "exec")
        task = harness.launch(*FOREVER)
        more = harness.exec(task, *FOREVER).start()
        for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup", "user"):
            of_both = [os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (task.pid, more.pid)]
            assert of_both[0] == of_both[1], kind
        assert more.pid in harness.open().pids(task.id)

    def test_exec_needs_a_running_container(self, harness: IsolationHarness) -> None:
        self.need(harness, "exec")
        task = harness.launch("true")
        task.wait()
        with pytest.raises(FailedPrecondition):
            harness.exec(task, "true")

    def test_exec_has_a_life_of_its_own(self, harness: IsolationHarness) -> None:
        self.need(harness, "exec")
        driver = harness.open()
        task = harness.launch(*FOREVER)
        more = harness.exec(task, *FOREVER).start()
        assert driver.state(task.id, more.exec_id).status == "running"
        with pytest.raises(FailedPrecondition):
            driver.delete(task.id, more.exec_id)
        driver.kill(task.id, signal.SIGKILL, more.exec_id)
        assert more.code() == 128 + signal.SIGKILL
        assert task.status() == "running"
        assert harness.delete(more) is not None
        driver.delete(task.id, more.exec_id)
        with pytest.raises(NotFound):
            driver.state(task.id, more.exec_id)
        assert task.status() == "running"

    def test_exec_of_a_missing_command(self, harness: IsolationHarness) -> None:
        self.need(harness, "exec")
        task = harness.launch(*FOREVER)
        with pytest.raises(CommandNotFound):
            harness.exec(task, "no-such-command").start()
        with pytest.raises(CommandNotExecutable):
            harness.exec(task, "/bin/plain").start()
        assert task.status() == "running"

    def test_exec_that_starts_at_once(self, harness: IsolationHarness) -> None:
        self.need(harness, "exec-start")
        task = harness.launch(*FOREVER)
        more = harness.exec(task, "sh", "-c", "cat /marker; read line; exit 9", start=True)
        assert (more.created.exec_id, more.created.status, more.created.pid > 0) == (more.exec_id, "running", True)
        assert more.expect(MARKER.encode()) == MARKER.encode()
        assert more.status() == "running"
        more.write(b"\n")
        assert more.code() == 9
        for command, error in (("no-such-command", CommandNotFound), ("/bin/plain", CommandNotExecutable)):
            with pytest.raises(error):
                harness.exec(task, command, start=True)
        for _ in range(5):  # so short a life that its end may come before the answer
            assert harness.exec(task, "true", start=True).code() == 0
        assert task.status() == "running"

    # pause

    def test_pause_and_resume(self, harness: IsolationHarness) -> None:
        self.need(harness, "pause")
        driver = harness.open()
        task = harness.launch("sh", "-c", "while :; do echo tick; sleep 0.02; done")
        task.expect(b"tick")
        driver.pause(task.id)
        assert task.status() == "paused"
        task.peek(0.3)
        assert len(task.peek(0.3)) == len(task.peek(0.3)), "it wrote while paused"
        quiet = len(task.peek())
        driver.resume(task.id)
        assert task.status() == "running"
        eventually(lambda: len(task.peek(0.05)) > quiet, "it does not go on after resume")

    # the rest

    def test_stats_are_numbers(self, harness: IsolationHarness) -> None:
        task = harness.launch(*FOREVER)
        stats = harness.open().stats(task.id)
        assert stats
        assert all(type(value) is int for value in stats.values())
        assert all("." in name for name in stats), "names are those of cgroup v2"

    def test_reopened_driver_adopts(self, harness: IsolationHarness) -> None:
        running = harness.launch("sh", "-c", "read x; exit 21")
        ended = harness.launch("sh", "-c", "exit 22")
        ended.wait()
        pid = running.pid
        driver = harness.reopen()
        adopted = {state.id: state for state in driver.adopt() if not state.exec_id}
        assert adopted[running.id].status == "running"
        assert adopted[running.id].pid == pid
        assert adopted[ended.id].status == "stopped"
        assert ended.code() == 22
        running.write(b"\n")
        assert running.code() == 21

    def test_threads_run_side_by_side(self, harness: IsolationHarness) -> None:
        harness.launch("true").wait()

        def life(index: int) -> int | None:
            task = harness.launch("sh", "-c", f"exit {index}")
            code = task.code()
            harness.open().delete(task.id)
            return code

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(life, range(1, 17))) == list(range(1, 17))
