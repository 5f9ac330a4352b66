"""The thin wrappers: what they answer, and that a failure is an OSError with errno and name."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wherry.linux import caps, cgroup, cgroup1, cgroup2, device_filter, mount, namespaces, pidfd, probe, process


def test_errors_carry_errno_and_path() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mount.mount("none", "/no/such/place", "tmpfs")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such/place")
    with pytest.raises(OSError, match=r"tmpfs: nonsense"):
        mount.new_mount("tmpfs", [("nonsense", None)])
    with pytest.raises(ProcessLookupError):
        pidfd.open((1 << 22) - 1)


def test_fsconfig_repeats_what_the_kernel_logged() -> None:
    with pytest.raises(OSError, match=r"\(") as caught:
        mount.new_mount("tmpfs", [("size", "much")])
    assert caught.value.errno == errno.EINVAL


def test_clone3_is_a_fork() -> None:
    pid, fd = namespaces.clone3(namespaces.CLONE_CLEAR_SIGHAND)
    if pid == 0:
        os._exit(7)
    try:
        ended = os.waitid(os.P_PIDFD, fd, os.WEXITED)
        assert ended is not None
        assert (ended.si_pid, ended.si_status) == (pid, 7)
    finally:
        os.close(fd)


def test_clone3_says_why_it_failed() -> None:
    with pytest.raises(OSError, match=r"clone3") as caught:
        namespaces.clone3(namespaces.NEWNS | 0x200)  # CLONE_FS with CLONE_NEWNS
    assert caught.value.errno == errno.EINVAL


def test_pidfd_tells_how_a_process_ended() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", "raise SystemExit(5)"], {})
    fd = pidfd.open(pid)
    try:
        assert pidfd.start_time(pid) > 0
        os.waitpid(pid, 0)
        if "pidfd.exit" not in probe.features():
            pytest.skip("this kernel has no PIDFD_INFO_EXIT")
        status = pidfd.exit_status(fd)
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == 5
        with pytest.raises(ProcessLookupError):
            pidfd.send_signal(fd, signal.SIGTERM)
    finally:
        os.close(fd)


def test_close_others_keeps_what_it_is_told() -> None:
    pid = os.fork()
    if pid == 0:
        kept = os.open("/", os.O_PATH)
        dropped = [os.dup(kept) for _ in range(5)]
        process.close_others((0, 1, 2, kept, dropped[2]))
        left = {fd for fd in range(1024) if Path(f"/proc/self/fd/{fd}").exists()}
        os._exit(0 if left <= {0, 1, 2, kept, dropped[2]} and {kept, dropped[2]} <= left else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_capability_masks() -> None:
    assert caps.mask(["CAP_CHOWN", "kill"]) == 0b100001
    assert caps.names(0b100001) == ("CAP_CHOWN", "CAP_KILL")
    with pytest.raises(KeyError):
        caps.mask(["CAP_NONSENSE"])
    effective, permitted, _inheritable = caps.get()
    assert effective & ~permitted == 0
    assert caps.last() >= 37


def test_features_are_known_names() -> None:
    known = {
        "overlay", "overlay.userxattr", "overlay.lowerdir+", "mount.idmapped", "mount.fd", "cgroup1", "cgroup2", "userns", "seccomp",
        "time-ns", "pidfd.exit", "apparmor",
    }  # fmt: skip
    assert probe.features() <= known


def test_device_rules_of_v1() -> None:
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    assert cgroup1.device_lines(rules) == [(False, "a"), (True, "c 1:3 rw"), (True, "b *:* m")]


def test_cpu_shares_as_weight() -> None:
    assert [cgroup2.weight(shares) for shares in (1, 2, 1024, 262144, 10**9)] == [1, 1, 39, 10000, 10000]


def test_device_filter_of_v2() -> None:
    """The eBPF program, on any cgroup2 mount: the tree needs no controller for it."""
    layout = cgroup.detect()
    if not layout.v2 or os.geteuid():
        pytest.skip("no cgroup2 mount, or not root")
    path = f"{layout.v2}/wherry-unit-{os.getpid()}-{time.monotonic_ns():x}"
    os.mkdir(path)
    try:
        device_filter.attach(path, [{"allow": True}])
        device_filter.attach(
            path,
            [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "access": "r"},
                {"allow": False, "type": "c", "major": 1, "minor": 5, "access": "r"},
            ],
        )
        pid = os.fork()
        if pid == 0:
            cgroup.write(f"{path}/cgroup.procs", "0")
            seen = []
            for name, flags in (
                ("null", os.O_RDWR),
                ("full", os.O_RDONLY),
                ("full", os.O_RDWR),
                ("zero", os.O_RDONLY),
                ("tty", os.O_RDONLY),
            ):
                try:
                    os.open(f"/dev/{name}", flags)
                    seen.append(True)
                except OSError as error:
                    seen.append(error.errno not in (errno.EPERM, errno.EACCES))
            os._exit(0 if seen == [True, True, False, False, False] else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        cgroup.until(lambda: not cgroup.all_pids(path), path)
        os.rmdir(path)


def test_layout_prefers_v1_where_v2_lacks_the_controllers() -> None:
    assert cgroup.Layout({"memory": "/m"}, "/u", ["hugetlb"]).unified is False
    assert cgroup.Layout({}, "/u", ["memory", "pids"]).unified is True
    assert cgroup.Layout({"memory": "/m"}, "/u", ["memory"]).unified is False
    assert cgroup.Layout({}, "", []).available() is False


def test_a_group_that_goes_while_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = cgroup.detect()
    if "freezer" not in layout.v1 or os.geteuid():
        pytest.skip("no freezer of cgroup v1, or not root")
    group = cgroup1.Group1(layout, f"/wherry-unit-{os.getpid()}-{time.monotonic_ns():x}")
    real = cgroup1.Group1.freeze

    def freeze(self: cgroup1.Group1, frozen: bool) -> None:
        if not frozen:
            assert self.delete()
        real(self, frozen)

    monkeypatch.setattr(cgroup1.Group1, "freeze", freeze)
    group.create({})
    try:
        group.kill(signal.SIGKILL)
    finally:
        group.delete()


def without_devices(directory: Path, rules: list[dict[str, Any]]) -> None:
    """A group on a host that mounts no hierarchy of the devices controller."""
    (directory / "memory").mkdir()
    layout = cgroup.Layout({"memory": str(directory / "memory")}, "", ())
    try:
        cgroup1.Group1(layout, "/wherry-x/c", {}).create({"devices": rules})
    finally:
        assert list((directory / "memory").glob("*/*")) == (
            [directory / "memory/wherry-x/c"] if rules[0]["allow"] else []
        )


def test_rules_for_devices_hold_or_are_refused(tmp_path: Path) -> None:
    """Else a container could make the node of any device, a disk's, and open it."""
    with pytest.raises(FileNotFoundError, match="controller devices is not mounted"):
        without_devices(tmp_path, [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "access": "m"}])


def test_rules_for_devices_that_allow_all_need_nobody(tmp_path: Path) -> None:
    without_devices(tmp_path, [{"allow": True, "access": "rwm"}])
