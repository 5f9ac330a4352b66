"""The process that the shim has ready for the next exec: it makes one, and never another; and how such an exec ends and fails."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shims import Shimmed, eventually, read_all, shimmed
from wherry.api import CommandNotExecutable, CommandNotFound, Plan, Stdio
from wherry.linux import caps, process, seccomp
from wherry.oci import compile, filters


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as made:
        made.container("c", "exec sleep 1000")
        made.client.start("c", "")
        yield made
        made.end("c")


def bounding(pid: int | str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("CapBnd:"))


def waiting(made: Shimmed) -> tuple[list[int], list[int]]:
    """Mothers and runners: unlike a spare, or one that was used, they are in the shim's own namespaces. A runner has dropped what its
    process is not to have."""
    shim = made.client.pid
    known = {made.client._call("hello")[0]["logger"], *[state.pid for state in made.client.list()]}
    own = [os.readlink(f"/proc/{shim}/ns/{kind}") for kind in ("pid", "mnt")]
    mothers, runners = [], []
    for word in Path(f"/proc/{shim}/task/{shim}/children").read_text().split():
        try:
            if int(word) in known or own != [os.readlink(f"/proc/{word}/ns/{kind}") for kind in ("pid", "mnt")]:
                continue
            (mothers if bounding(word) == bounding(shim) else runners).append(int(word))
        except FileNotFoundError:
            continue
    return mothers, runners


def both_of(made: Shimmed) -> tuple[int, int]:
    """The mother and the one that waits, once there are both."""
    found: list[tuple[int, int]] = []

    def there() -> bool:
        mothers, runners = waiting(made)
        found[:] = [(mothers[0], runners[0])] if (len(mothers), len(runners)) == (1, 1) else []
        return bool(found)

    eventually(there)
    return found[0]


def runner_of(made: Shimmed) -> int:
    return both_of(made)[1]


def done(made: Shimmed, exec_id: str, script: str) -> tuple[str, str]:
    """Runs an exec to its end: what it wrote, and its exit code."""
    reader, writer = os.pipe()
    state = made.exec("c", exec_id, script, Stdio(stdout=writer, stderr=writer), start=True)
    os.close(writer)
    assert (state.status, state.user) == ("running", "0:0")
    said = read_all(reader).decode()
    os.close(reader)
    code = made.exit("c", exec_id).attributes["code"]
    made.client.forget("c", exec_id)
    return said, code


def test_with_and_without_one(made: Shimmed) -> None:
    """The first has to do without; what comes of it is the same."""
    for exec_id in ("one", "two", "three"):
        said, code = done(
            made, exec_id, "readlink /proc/self/ns/pid; readlink /proc/self/root; echo $(ls /proc/self/fd); exit 7"
        )
        first = made.client.list("c")
        (pid,) = (state.pid for state in first if not state.exec_id)
        assert said.splitlines()[0] == os.readlink(f"/proc/{pid}/ns/pid")
        assert said.splitlines()[1:] == ["/", "0 1 2 3"]
        assert code == "7"
        runner_of(made)


def test_each_serves_once(made: Shimmed) -> None:
    done(made, "one", "true")
    seen = {runner_of(made)}
    for number in range(3):
        done(made, f"x{number}", "true")
        seen.add(runner_of(made))
    assert len(seen) == 4


def test_a_long_one_is_the_shim_s_child_in_the_end(made: Shimmed) -> None:
    done(made, "one", "true")
    runner = runner_of(made)
    state = made.exec("c", "long", "exec sleep 1000", start=True)
    eventually(lambda: not Path(f"/proc/{runner}").exists())
    parent = Path(f"/proc/{state.pid}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(parent) == made.client.pid
    made.client.signal("c", "long", signal.SIGTERM)
    assert made.exit("c", "long").attributes["code"] == str(128 + signal.SIGTERM)
    made.client.forget("c", "long")


def test_what_cannot_be_executed(made: Shimmed) -> None:
    done(made, "one", "true")
    for exec_id, argv, error in (
        ("a", ("no-such-command",), CommandNotFound),
        ("b", ("/no/such/command",), CommandNotFound),
        ("c", ("/etc/passwd",), CommandNotExecutable),
        ("d", ("/etc",), CommandNotExecutable),
    ):
        for _again in range(2):  # nothing is left of the first under that name
            runner_of(made)
            with pytest.raises(error):
                made.exec("c", exec_id, "", start=True, argv=argv)
    assert [state.exec_id for state in made.client.list("c")] == [""]


def ignored(said: str) -> int:
    """The signals that a process ignores, by its /proc/PID/status."""
    (word,) = (line.split()[1] for line in said.splitlines() if line.startswith("SigIgn:"))
    return int(word, 16)


STATUS = "exec cat /proc/self/status"


def ignored_below_a_filter() -> int:
    """What a process ignores that is spawned under Docker's filter: it refuses clone3, and glibc goes another way."""
    code = filters.Filters().compiled("", 0)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.set_inheritable(writer, True)
            seccomp.load(seccomp.Program(code), 0)
            argv = process.strings([b"sh", b"-c", f"{STATUS} > /proc/self/fd/{writer}".encode()])
            env = process.strings([b"PATH=/usr/bin:/bin"])
            os.waitpid(process.spawn(b"/bin/sh", argv, env, process.SpawnAttributes()), 0)
        finally:
            os._exit(0)
    os.close(writer)
    said = read_all(reader).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    return ignored(said) & 0b11 << 31


def test_signals_of_the_c_library_are_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ignored_below_a_filter() == 0
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:  # the twin
        monkeypatch.setattr(process, "_INTERNAL", bytes(128))
        assert ignored_below_a_filter() == 0b11 << 31


@contextlib.contextmanager
def ignoring(number: int) -> Iterator[None]:
    """This process ignores a signal, and then has its handler back.

    The C library's handlers for 32 and 33 too: without them the next setuid(2) among threads ends the process (nptl(7)).
    """
    before = (ctypes.c_ulong * 4)()
    process.check(process._rt_sigaction(number, None, before, 8), "rt_sigaction")
    process.set_disposition(number, ignored=True)
    try:
        yield
    finally:
        process.check(process._rt_sigaction(number, before, None, 8), "rt_sigaction")


def status_under_a_shim_that_was_started_with(number: int) -> int:
    """What a container ignores whose shim was started by a process that ignores that signal."""
    with contextlib.ExitStack() as stack:
        with ignoring(number):
            made = stack.enter_context(shimmed())
        reader, writer = os.pipe()
        made.container("c", STATUS, Stdio(stdout=writer))
        made.client.start("c", "")
        os.close(writer)
        said = read_all(reader).decode()
        os.close(reader)
        made.exit("c")
        made.client.forget("c", "")
    return ignored(said)


def test_a_process_that_ignored_the_c_librarys_signals_may_still_change_its_ids() -> None:
    thread = threading.Thread(target=bool)
    thread.start()  # the C library lays its handlers with the first thread
    thread.join()
    with ignoring(33):
        pass
    pid = os.fork()
    if not pid:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        os.setegid(os.getegid())  # tells the other thread by signal 33
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("number", [32, 33, 40])
def test_what_whoever_started_the_shim_ignores_is_not_for_containers(number: int) -> None:
    assert status_under_a_shim_that_was_started_with(number) == 0


def with_few_descriptors(made: Shimmed) -> str:
    """What an exec says that may have four descriptors."""
    reader, writer = os.pipe()
    types = [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts")]
    process = made._process("echo well", (), False)
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 4, "hard": 4}]
    compiled = compile.exec("c", {"linux": {"namespaces": types}}, process, compile.HostFacts(spawns=True), start=True)
    plan = Plan(argv=compiled.argv, env=compiled.env, steps=tuple(compiled.steps), target="c", start=True)
    try:
        made.client.spawn("c", "few", plan, Stdio(stdout=writer, stderr=writer))
        made.exit("c", "few")
        made.client.forget("c", "few")
    finally:
        os.close(writer)
        said = read_all(reader).decode()
        os.close(reader)
    return said


def test_few_descriptors_are_for_the_process_not_for_whoever_has_it_spawned(made: Shimmed) -> None:
    done(made, "one", "true")
    runner_of(made)
    assert with_few_descriptors(made) == "well\n"


def test_few_descriptors_twin(made: Shimmed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "_ROOM", 0)
    done(made, "one", "true")
    runner_of(made)
    with pytest.raises(OSError, match="Too many open files"):
        with_few_descriptors(made)


@pytest.mark.parametrize("whom", ["mother", "runner"])
def test_one_that_was_killed_is_not_missed(made: Shimmed, whom: str) -> None:
    done(made, "one", "true")
    mother, runner = both_of(made)
    killed = mother if whom == "mother" else runner
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{killed}").exists())
    assert done(made, "two", "echo well") == ("well\n", "0")
    assert runner_of(made) != runner
    assert done(made, "three", "echo well") == ("well\n", "0")


def test_one_holds_nothing_of_others(made: Shimmed) -> None:
    reader, writer = os.pipe()
    made.exec("c", "long", "exec sleep 1000", Stdio(stdout=writer), start=True)
    fds = Path(f"/proc/{runner_of(made)}/fd")

    def own() -> bool:
        links = [os.readlink(entry) for entry in fds.iterdir()]
        foreign = [link for link in links if link.startswith(("pipe:", "net:", "/sys/", "anon_inode:[pidfd]"))]
        return not foreign and len([link for link in links if link.startswith("socket:")]) == 1

    eventually(own)
    os.close(writer)
    made.end("c", "long")
    assert read_all(reader) == b""
    os.close(reader)


@pytest.mark.parametrize("filtered", [True, False])
def test_in_a_cgroup_v2(made: Shimmed, filtered: bool) -> None:
    """Born there, by whichever way Docker's profile leaves."""
    layout = Path("/proc/self/mounts").read_text().splitlines()
    top = next((line.split()[1] for line in layout if line.split()[2] == "cgroup2"), "")
    if not top or not os.access(top, os.W_OK):
        pytest.skip("no cgroup v2 is mounted here")
    group = Path(top, f"wherry-exec-{os.getpid()}")
    group.mkdir()
    names = ["CAP_KILL", "CAP_SETPCAP"]
    try:
        process = made._process("cat /proc/self/cgroup; grep ^Seccomp: /proc/self/status", (), False)
        process["capabilities"] = {"bounding": names, "effective": names, "permitted": names}
        code = (filters.Filters().compiled("", caps.mask(names)), 0) if filtered else None
        kinds = [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts")]
        compiled = compile.exec(
            "c", {"linux": {"namespaces": kinds}}, process, compile.HostFacts(spawns=True, filter=code), start=True
        )
        plan = Plan(
            compiled.argv, compiled.env, steps=tuple(compiled.steps), target="c", start=True, cgroups=(str(group),)
        )
        for exec_id in ("one", "two", "three"):
            reader, writer = os.pipe()
            made.client.spawn("c", exec_id, plan, Stdio(stdout=writer, stderr=writer))
            os.close(writer)
            said = read_all(reader).decode()
            os.close(reader)
            assert made.exit("c", exec_id).attributes["code"] == "0", said
            made.client.forget("c", exec_id)
            assert f"/{group.name}\n" in said
            assert said.endswith("2\n" if filtered else "0\n")
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_one_ends_with_its_shim() -> None:
    with shimmed() as made:
        made.container("c", "exec sleep 1000")
        made.client.start("c", "")
        done(made, "one", "true")
        both = both_of(made)
        made.end("c")
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in both))


def test_one_ends_with_the_code_that_it_is_a_fork_of(made: Shimmed) -> None:
    done(made, "one", "true")
    both = both_of(made)
    made.client.replace()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in both))
    assert done(made, "two", "echo well") == ("well\n", "0")
