"""The namespaces driver over a real shim: limits, devices, the freezer, out-of-memory, and what an exec is given."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.api import FailedPrecondition, Invalid, NotFound
from wherry.linux import cgroup
from wherry.testing.isolation import IsolationContract
from wherry.testing.isolation_harness import HarnessTask, IsolationHarness

DOCKER = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
#: Everything but the default devices.
RULES = [{"allow": False, "access": "rwm"}]


def holding(*names: str) -> dict[str, list[str]]:
    """The process object's capabilities."""
    return {
        key: [f"CAP_{name.removeprefix('CAP_')}" for name in names] for key in ("bounding", "effective", "permitted")
    }


class _Suite(IsolationContract):
    plugin = "wherry_plugins.isolation.namespaces"


@pytest.fixture
def harness() -> Iterator[IsolationHarness]:
    directory = Path(tempfile.mkdtemp(prefix="wherry-"))
    directory.chmod(0o755)
    made = _Suite().make_harness(directory)
    try:
        if (reason := made.reason()) is not None:
            pytest.skip(reason)
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def resources(harness: IsolationHarness, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """linux.resources of the containers that this test makes; annotations under "annotations"."""
    wanted: dict[str, Any] = {}
    genuine = harness.spec

    def spec(id: str, process: Any) -> dict[str, Any]:
        made = genuine(id, process)
        made["annotations"] = wanted.pop("annotations", {})
        made["linux"]["resources"] = dict(wanted)
        options = ["ro", "nosuid", "nodev", "noexec"]
        made["mounts"].append(
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}
        )
        return made

    monkeypatch.setattr(harness, "spec", spec)
    return wanted


def group(task: HarnessTask, controller: str) -> Path:
    """The container's directory in a v1 hierarchy, as the kernel tells it."""
    layout = cgroup.detect()
    if layout.unified:
        pytest.skip("reads the files of cgroup v1")
    for line in Path(f"/proc/{task.pid}/cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        if controller in names.split(","):
            assert task.id in path
            return Path(layout.v1[controller] + path)
    raise AssertionError(controller)


def test_limits_are_written(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    resources.update(memory={"limit": 64 << 20, "swap": 64 << 20}, pids={"limit": 40})
    resources.update(cpu={"quota": 50_000, "period": 100_000, "shares": 512})
    task = harness.launch("sleep", "1000")
    assert (group(task, "memory") / "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert (group(task, "cpu") / "cpu.cfs_quota_us").read_text() == "50000\n"
    assert (group(task, "cpu") / "cpu.shares").read_text() == "512\n"
    assert (group(task, "pids") / "pids.max").read_text() == "40\n"
    stats = harness.open().stats(task.id)
    assert (stats["memory.max"], stats["pids.max"], stats["pids.current"]) == (64 << 20, 40, 1)


def test_update(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    resources.update(memory={"limit": 64 << 20, "swap": 64 << 20})
    task = harness.launch("sh", "-c", "sleep 1000 & wait")
    driver = harness.open()
    driver.update(task.id, {"memory": {"limit": 128 << 20, "swap": 256 << 20}, "pids": {"limit": 7}})
    assert driver.stats(task.id)["memory.max"] == 128 << 20
    driver.update(
        task.id, {"memory": {"limit": 32 << 20, "swap": 32 << 20}, "cpu": {"quota": 20_000, "period": 100_000}}
    )
    assert driver.stats(task.id)["memory.max"] == 32 << 20
    assert (group(task, "cpu") / "cpu.cfs_quota_us").read_text() == "20000\n"
    assert len((group(task, "cpu") / "cgroup.procs").read_text().split()) >= 1
    driver.update(
        task.id, {"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1, "period": 100_000}, "pids": {"limit": -1}}
    )
    assert not {"memory.max", "pids.max"} & driver.stats(task.id).keys()


def test_cpuset(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    resources.update(cpu={"cpus": "0"})
    task = harness.launch("sh", "-c", "cat /proc/self/status; echo end")
    assert b"Cpus_allowed_list:\t0\n" in task.expect(b"end")


def test_out_of_memory_is_told(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    resources.update(memory={"limit": 8 << 20, "swap": 8 << 20})
    task = harness.launch("sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done")
    ended = task.wait()
    assert (ended.code, ended.oom_killed) == (128 + signal.SIGKILL, True)
    other = harness.launch("sh", "-c", "kill -9 $$; exit 1")
    other.wait()
    assert other.wait().oom_killed is False


def test_too_many_processes(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    resources.update(pids={"limit": 4})
    task = harness.launch("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done 2>&1; echo end")
    assert b"Resource temporarily unavailable" in task.expect(b"t fork") or b"fork" in task.peek()


MAKE = "mknod /tmp/kmsg c 1 11; mknod /tmp/null c 1 3; echo x > /tmp/null && echo null; (: < /tmp/kmsg) && echo opened; echo end"


def test_devices(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    """Docker's rules: any node may be made, few may be opened, and an exec is under the same."""
    resources.update(devices=RULES)
    held = holding("CAP_MKNOD", "CAP_DAC_OVERRIDE")
    task = harness.launch(
        "sh", "-c", f"busybox {MAKE.replace('; mknod', '; busybox mknod')}; sleep 1000", capabilities=held
    )
    seen = task.expect(b"end")
    assert b"null\n" in seen
    assert b"not permitted" in seen
    assert b"opened" not in seen
    more = harness.exec(task, "sh", "-c", "(: < /tmp/kmsg) && echo opened; echo end", capabilities=held).start()
    assert b"opened" not in more.expect(b"end")


def test_devices_twin(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    resources.update(devices=[{"allow": True, "access": "rwm"}])
    held = holding("CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYSLOG")
    task = harness.launch("sh", "-c", f"busybox {MAKE.replace('; mknod', '; busybox mknod')}", capabilities=held)
    assert b"opened" in task.expect(b"end")


def test_the_own_groups_are_shown_read_only(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    script = "cd /sys/fs/cgroup; cat pids/pids.current; echo 1 > pids/pids.max; busybox mkdir x; echo end"
    task = harness.launch("sh", "-c", script)
    group(harness.create("sleep", "9"), "pids")
    seen = task.expect(b"end")
    assert seen.split()[0].isdigit()
    assert seen.count(b"Read-only file system") == 2


def test_paused_refuses_exec_and_kill_ends_it(harness: IsolationHarness) -> None:
    task = harness.launch("sh", "-c", "while :; do sleep 0.01; done")
    driver = harness.open()
    driver.pause(task.id)
    assert task.status() == "paused"
    with pytest.raises(FailedPrecondition, match="paused"):
        harness.exec(task, "true")
    driver.kill(task.id, signal.SIGKILL)
    assert task.code() == 128 + signal.SIGKILL
    with pytest.raises(FailedPrecondition):
        driver.resume(task.id)


def test_an_exec_gets_the_same_profile(harness: IsolationHarness, resources: dict[str, Any]) -> None:
    """CVE-2022-29162 and the filter: no inheritable capability, and the container's own filter."""
    resources["annotations"] = {"io.wherry.seccomp": "default"}
    held = holding(*DOCKER.split())
    task = harness.launch("sleep", "1000", capabilities=held)
    more = harness.exec(task, "sh", "-c", "cat /proc/self/status; echo end", capabilities=held).start()
    seen = dict(line.split(":\t", 1) for line in more.expect(b"end").decode().splitlines() if ":\t" in line)
    assert (int(seen["CapInh"], 16), int(seen["CapAmb"], 16), seen["Seccomp"]) == (0, 0, "2")
    assert int(seen["CapEff"], 16) == 0xA80425FB
    first = dict(line.split(":\t", 1) for line in Path(f"/proc/{task.pid}/status").read_text().splitlines())
    assert first["Seccomp"] == "2"


def test_a_held_exec_cannot_be_read(harness: IsolationHarness) -> None:
    """CVE-2016-9962: before its execve a joining process is not dumpable: the container's root may not look into it."""
    every = holding("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL")
    script = "while read x; do ls -l /proc/$x/fd 2>&1; echo end; done"
    task = harness.launch("sh", "-c", script, capabilities=every)
    more = harness.exec(task, "sleep", "1000", capabilities=every)
    lines = Path(f"/proc/{more.pid}/status").read_text().splitlines()
    inside = next(line.split()[-1] for line in lines if line.startswith("NSpid"))
    task.write(f"{inside}\n".encode())
    seen = task.expect(b"end")
    assert b"socket:" not in seen
    assert b"ermission denied" in seen or b"can't open" in seen
    more.start()
    time.sleep(0.1)
    task.write(f"{inside}\n".encode())
    deadline = time.monotonic() + 10
    while task.peek(0.1).count(b"end") < 2:
        assert time.monotonic() < deadline


def test_bad_specs_leave_nothing(harness: IsolationHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = harness.spec

    def changed(key: str, value: Any) -> None:
        def spec(id: str, process: Any) -> dict[str, Any]:
            made = genuine(id, process)
            (made if key == "mounts" else made["linux"])[key] = value
            return made

        monkeypatch.setattr(harness, "spec", spec)

    for key, value, error in (
        ("cgroupsPath", "relative", Invalid),
        ("cgroupsPath", "/../x", Invalid),
        ("namespaces", [{"type": "odd"}], Invalid),
        ("sysctl", {"kernel.panic": "1"}, Invalid),
        ("mounts", [{"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}], NotFound),
        ("resources", {"pids": {"limit": "many"}}, Invalid),
        ("mounts", [{"destination": "/proc", "type": "proc", "options": ["nonsense=1"]}], OSError),
    ):
        changed(key, value)
        with pytest.raises(error):
            harness.create("true", id="bad")
        with pytest.raises(NotFound):
            harness.open().state("bad")
        layout = cgroup.detect()
        assert [
            point for point in set(layout.v1.values()) if Path(f"{point}/wherry-test-{os.getpid()}/bad").exists()
        ] == []


_TOLD = (
    "cat /proc/self/status /proc/self/cgroup /proc/self/limits /proc/self/oom_score_adj; "
    "for kind in cgroup ipc mnt net pid uts user; do readlink /proc/self/ns/$kind; done; "
    "umask; pwd; id; env; set -- $(cat /proc/$$/stat); test $5 = $$ && test $6 = $$ && echo leads its session, nice ${19}; "
    "grep -q _ses. /proc/keys && echo keyring; ls -l /proc/self/fd; echo all told"
)


def test_an_exec_that_starts_at_once_is_like_one_that_is_held(harness: IsolationHarness) -> None:
    """The one is born at the very end, the other at the beginning: nothing that can be read from inside tells them apart."""

    def told(start: bool) -> list[str]:
        more = harness.exec(task, "sh", "-c", _TOLD, start=start, oomScoreAdj=300)
        if not start:
            more.start()
        text = more.expect(b"all told\n").decode()
        assert more.code() == 0
        plain = re.sub(
            r"(?m)^(Pid|Tgid|Ngid|NSpid|NStgid|NSsid|NSpgid|PPid|Vm\w+|Rss\w+|voluntary\S+|nonvoluntary\S+|Cpus\S*):.*",
            "",
            text,
        )
        return [
            re.sub(r"[0-9a-f]{8,}|\d+", "n", line) if "_ses" in line or "->" in line else line
            for line in plain.splitlines()
        ]

    task = harness.launch("sleep", "1000")
    for _ in range(3):  # by a process of its own, then by one that waited
        assert told(True) == told(False)
