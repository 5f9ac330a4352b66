"""Hostile images, specs and callers against a plan, each with a twin that lacks the protection and must fall.

The catalogue is that of container runtimes' CVEs; the number stands with each test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.boxes import CORE, Box, Result
from wherry.oci.errors import SpecError

SECRET = "of the host\n"


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the host that no container may see."""
    path = tmp_path / "canary"
    path.write_text(SECRET)
    return path


def refused(result: Result, name: str, what: str = "") -> None:
    assert result.error is not None, result
    assert result.error["class"] == name, result.error
    assert what in result.error["what"]
    assert result.output == ""


# masks


def hostile_dev(box: Box, canary: Path) -> None:
    """/dev is a directory that the image's owner prepared, with a link where the null device should be."""
    dev = box.directory / "dev"
    dev.mkdir()
    (dev / "null").symlink_to(canary)
    box.spec["mounts"] = [mount for mount in box.spec["mounts"] if not mount["destination"].startswith("/dev")]
    box.spec["mounts"].append({"destination": "/dev", "type": "bind", "source": str(dev), "options": ["rbind"]})
    box.linux["maskedPaths"] = ["/proc/keys"]


def test_null_is_a_link(box: Box, canary: Path) -> None:
    """CVE-2025-31133: the file that hides others is the null device, whatever /dev/null leads to."""
    hostile_dev(box, canary)
    result = box.run("cat", "/proc/keys")
    assert (result.error, result.output) == (None, "")


def test_null_is_a_link_twin(box: Box, canary: Path) -> None:
    hostile_dev(box, canary)
    assert box.run("cat", "/proc/keys", patch={"wherry.oci.execute_files._null": "follow null"}).output == SECRET


def test_null_is_a_file(box: Box, canary: Path) -> None:
    hostile_dev(box, canary)
    null = box.directory / "dev/null"
    null.unlink()
    null.write_text("decoy\n")
    assert box.run("cat", "/proc/keys").output == ""
    assert box.run("cat", "/proc/keys", patch={"wherry.oci.execute_files.verify_null": "true"}).output == "decoy\n"


# /proc and what is mounted on it


def test_proc_is_a_link(box: Box) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: proc is mounted where its name says, or not at all."""
    (box.rootfs / "tmp/decoy").mkdir()
    (box.rootfs / "proc").symlink_to("tmp/decoy")
    refused(box.run("true"), "Invalid", 'mount "/proc"')


def test_proc_is_a_link_twin(box: Box) -> None:
    (box.rootfs / "tmp/decoy").mkdir()
    (box.rootfs / "proc").symlink_to("tmp/decoy")
    result = box.run("readlink", "/proc", patch={"wherry.oci.execute_root._target": "any target"})
    assert (result.error, result.output) == (None, "tmp/decoy\n")


@pytest.mark.parametrize("through_link", [False, True])
def test_mount_inside_proc(box: Box, tmp_path: Path, through_link: bool) -> None:
    """CVE-2019-16884: an image's volume over /proc/sys would replace what confines it."""
    (tmp_path / "volume").mkdir()
    target = "/proc/sys"
    if through_link:
        (box.rootfs / "innocent").symlink_to("/proc/sys")
        target = "/innocent"
    box.spec["mounts"].append(
        {"destination": target, "type": "bind", "source": str(tmp_path / "volume"), "options": ["bind"]}
    )
    box.linux["readonlyPaths"] = []
    refused(box.run("ls", "/proc/sys"), "Invalid", target)
    twin = box.run("ls", "/proc/sys", patch={"wherry.linux.path.filesystem": "no magic"}, remove=["mask", "sysctl"])
    assert (twin.error, twin.output) == (None, "")


def test_a_few_files_of_proc_may_be_replaced(box: Box, canary: Path) -> None:
    box.spec["mounts"].append(
        {"destination": "/proc/uptime", "type": "bind", "source": str(canary), "options": ["bind", "ro"]}
    )
    assert box.run("cat", "/proc/uptime").output == SECRET


def test_sysctl_into_a_decoy(box: Box, tmp_path: Path) -> None:
    """CVE-2025-52881: a shared directory as /proc would catch the write, or lead it elsewhere."""
    decoy = tmp_path / "decoy"
    (decoy / "sys/net/ipv4").mkdir(parents=True)
    file = decoy / "sys/net/ipv4/ip_forward"
    file.write_text("")
    box.spec["mounts"] = [mount for mount in box.spec["mounts"] if mount["destination"] != "/proc"]
    box.spec["mounts"].insert(0, {"destination": "/proc", "type": "bind", "source": str(decoy), "options": ["bind"]})
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    refused(box.run("true"), "Invalid", "sysctl")
    assert file.read_text() == ""
    box.spec["mounts"] = box.spec["mounts"][:1]
    box.run("true", patch={"wherry.linux.path.filesystem": "proc magic"})
    assert file.read_text() == "1"


@pytest.mark.parametrize(
    "name, value",
    [
        ("kernel.core_pattern", "|/x"), ("kernel.domainname/../core_pattern", "|/x"), ("net.core.somaxconn\nkernel.core_pattern", "1"),
        ("net.ipv4.ip_forward", "1\n2"), ("net/../kernel/core_pattern", "|/x"), ("kernel.msgmax+kernel.core_pattern", "1"),
        ("vm.overcommit_memory", "1"), ("/etc/passwd", "x"), ("net..core", "1"), ("", "1"),
    ],
)  # fmt: skip
def test_sysctl_of_the_host(box: Box, name: str, value: str) -> None:
    """CVE-2022-0811: only sysctls of the container's own namespaces, with nothing smuggled into name or value."""
    box.linux["sysctl"] = {name: value}
    with pytest.raises(SpecError):
        box.compiled()


def test_sysctl_of_the_host_twin(box: Box) -> None:
    """Without the list the executor writes what it is told: here a harmless one that belongs to no namespace."""
    path = Path("/proc/sys/kernel/printk_delay")
    before = path.read_text()

    def smuggle(steps: list[list[Any]]) -> None:
        index = next(number for number, step in enumerate(steps) if step[0] == "mask")
        steps.insert(index, ["sysctl", [["kernel/printk_delay", before.strip()]]])

    assert box.run("true", change=smuggle).error is None
    assert path.read_text() == before


# the root


def test_links_in_the_image_stay_inside(box: Box, tmp_path: Path) -> None:
    """CVE-2021-30465, CVE-2024-45310, CVE-2026-41579: mount targets, /dev and the working directory are resolved in the root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.rootfs / "dev").symlink_to(outside)
    (box.rootfs / "escape").symlink_to("../../../.." + str(outside))
    box.spec["mounts"].append({"destination": "/escape/made", "type": "tmpfs", "source": "tmpfs"})
    box.process["cwd"] = "/escape/cwd"
    result = box.run("sh", "-c", "pwd; ls /dev/null")
    assert (result.error, result.output) == (None, f"{outside}/cwd\n/dev/null\n")
    assert list(outside.iterdir()) == []
    assert Path(str(box.rootfs) + str(outside)).is_dir()


def test_links_in_the_image_stay_inside_twin(box: Box, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.rootfs / "escape").symlink_to(outside)
    box.process["cwd"] = "/escape/cwd"
    box.spec["mounts"] = []
    box.run("true", patch={"wherry.linux.path.open_in": "naive open"})
    assert [path.name for path in outside.iterdir()] == ["cwd"]


def leaked_cwd(box: Box, tmp_path: Path, **twin: Any) -> list[Result]:
    """The working directory is a descriptor of a host directory that the caller left open."""
    (tmp_path / "leak").mkdir(exist_ok=True)
    (tmp_path / "leak/secret").write_text(SECRET)
    results = []
    for number in range(3, 9):
        box.process["cwd"] = f"/proc/self/fd/{number}"
        results.append(box.run("cat", "secret", strays=[str(tmp_path / "leak")], remove=["directory"], **twin))
    return results


def test_working_directory_by_a_leaked_descriptor(box: Box, tmp_path: Path) -> None:
    """CVE-2024-21626."""
    box.seccomp = None
    for result in leaked_cwd(box, tmp_path):
        assert (result.output, result.error is None) == ("", False), result
    # the second line of defence, with the descriptor still open
    results = leaked_cwd(box, tmp_path, keep_strays=True)
    assert not any(SECRET in result.output for result in results)
    assert any(result.error is not None and result.error["class"] == "Denied" for result in results)


def test_working_directory_by_a_leaked_descriptor_twin(box: Box, tmp_path: Path) -> None:
    results = leaked_cwd(box, tmp_path, keep_strays=True, patch={"wherry.oci.execute_process.verify_cwd": "nothing"})
    assert any(result.output == SECRET for result in results)


def test_no_descriptor_is_inherited(box: Box, tmp_path: Path) -> None:
    script = "for fd in /proc/self/fd/*; do readlink $fd; done"
    seen = box.run("sh", "-c", script, strays=["/etc", str(tmp_path)]).output.split()
    assert "/etc" not in seen
    assert len(seen) <= 4
    twin = box.run("sh", "-c", script, strays=["/etc"], keep_strays=True).output.split()
    assert "/etc" in twin


def from_directory(box: Box, tmp_path: Path, **twin: Any) -> Result:
    """stdin is a directory of the host's."""
    (tmp_path / "given").mkdir()
    (tmp_path / "secret").write_text(SECRET)
    return box.run("sh", "-c", "cd /proc/self/fd/0 && cat ../secret", stdin=str(tmp_path / "given"), **twin)


def test_standard_streams_are_no_directories(box: Box, tmp_path: Path) -> None:
    refused(from_directory(box, tmp_path), "Invalid", "stdin")


def test_standard_streams_are_no_directories_twin(box: Box, tmp_path: Path) -> None:
    twin = {"wherry.oci.execute_process.verify_stream": "nothing"}
    assert from_directory(box, tmp_path, patch=twin).output == SECRET


# hooks of the image's


def by_hook(box: Box, **twin: Any) -> dict[str, str]:
    """What a program of the image that runs as a startContainer hook is, by its own status."""
    (box.rootfs / "inside").write_text("#!/bin/sh\ncat /proc/self/status >&2\n")
    (box.rootfs / "inside").chmod(0o755)
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.process["noNewPrivileges"] = True
    box.spec["hooks"] = {"startContainer": [{"path": "/inside"}]}
    result = box.run("true", **twin)
    assert result.error is None
    return dict(line.split(":\t", 1) for line in result.output.splitlines() if ":\t" in line)


def rights(found: dict[str, str]) -> tuple[str, int, str, str]:
    return found["Uid"].split()[0], int(found["CapEff"], 16), found["NoNewPrivs"], found["Seccomp"]


def test_a_hook_in_the_container_may_what_the_container_may(box: Box) -> None:
    assert rights(by_hook(box)) == ("1000", 0, "1", "2")


def test_a_hook_in_the_container_may_what_the_container_may_twin(box: Box) -> None:
    def early(steps: list[list[Any]]) -> None:
        (hooks,) = (step for step in steps if step[0] == "hooks")
        steps.remove(hooks)
        steps.insert(next(index for index, step in enumerate(steps) if step[0] == "created") + 1, hooks)

    uid, effective, *_rest = rights(by_hook(box, change=early))
    assert uid == "0"
    assert effective & 1 << 21  # CAP_SYS_ADMIN of the host's


# propagation


_SHARED_HOST = """
mount --make-rshared / && cat /proc/self/mountinfo > "$0/before" && "$@"; code=$?
cat /proc/self/mountinfo > "$0/after"; exit $code
"""


def mounted_on_the_host(box: Box, **twin: Any) -> tuple[Result, list[str]]:
    """A run on a host whose mounts are shared, as systemd has them: what came of it, and what is mounted there now."""
    where = str(box.directory)
    wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _SHARED_HOST, where)
    result = box.run("cat", "/proc/self/mountinfo", wrapper=wrapper, **twin)
    texts = [(box.directory / name).read_text() for name in ("before", "after")]
    before, after = ({line.split()[0] for line in text.splitlines()} for text in texts)
    assert before
    return result, sorted(after - before)


@pytest.mark.parametrize("wanted", ["shared", "rshared", "private", "unbindable"])
def test_propagation_of_the_root_is_not_the_host_s(box: Box, wanted: str) -> None:
    box.linux["rootfsPropagation"] = wanted
    result, more = mounted_on_the_host(box)
    assert (result.error, more) == (None, [])
    (root,) = (line.split(" - ")[0] for line in result.output.splitlines() if line.split()[4] == "/")
    assert ("shared:" in root, "unbindable" in root) == ("shared" in wanted, wanted == "unbindable")


def test_propagation_of_the_root_is_not_the_host_s_twin(box: Box) -> None:
    """The container's root is mounted over the host's."""

    def shared(steps: list[list[Any]]) -> None:
        (step,) = (step for step in steps if step[0] == "propagation")
        step[1] = 1 << 20

    _result, more = mounted_on_the_host(box, change=shared)
    assert more


# exec


_LOOK = "for n in $(ls /proc/$x/fd); do readlink /proc/$x/fd/$n || echo denied; done; readlink /proc/$x/exe"


def test_a_joining_process_cannot_be_looked_into(box: Box) -> None:
    """CVE-2016-9962: until its execve neither its descriptors nor its program are the container's to see."""
    seen = box.joined(_LOOK, dumpable=False)
    assert "denied" in seen
    assert "socket:" not in seen
    assert "python" not in seen


def test_a_joining_process_cannot_be_looked_into_twin(box: Box) -> None:
    seen = box.joined(_LOOK, dumpable=True)
    assert "socket:" in seen
    assert "python" in seen


def with_ptrace(box: Box) -> str:
    """A container that may look into others; what it looks for."""
    for names in box.process["capabilities"].values():
        if names:
            names.append("CAP_SYS_PTRACE")
    return f"cat /proc/$x/root{box.directory}/canary || echo none; readlink /proc/$x/cwd"


def test_a_joining_process_has_left_the_host_before_it_is_seen(box: Box, canary: Path) -> None:
    """CAP_SYS_PTRACE opens /proc/PID/root of whoever is in its pid namespace: one that still has the host's would give that away."""
    script = with_ptrace(box)
    seen = box.joined(script, early=True)
    assert SECRET not in seen
    assert seen.endswith("none\n/\nlooked\n")


def test_a_joining_process_has_left_the_host_before_it_is_seen_twin(box: Box, canary: Path) -> None:
    script = with_ptrace(box)
    assert SECRET in box.joined(script, early=True, remove=["pidns"])


# keys


def session_of(box: Box, **twin: Any) -> str:
    """The session keyring that a container ends up with, started by a process that has one of its own."""
    join = (
        f"import os, sys; sys.path[:0] = [{str(CORE)!r}]; from wherry.linux import process; "
        "process.join_session_keyring(b'of-the-host'); os.execv(sys.argv[1], sys.argv[1:])"
    )

    def ask(steps: list[list[Any]]) -> None:
        index = next(number for number, step in enumerate(steps) if step[0] == "created")
        steps.insert(index, ["tell_session"])

    result = box.run("true", wrapper=[sys.executable, "-I", "-S", "-c", join], change=ask, **twin)
    assert result.error is not None
    told: str = result.error["cause"]
    return told


def test_the_session_s_keys_stay_outside(box: Box) -> None:
    """A session keyring of the container's own: nothing that the host's session holds is possessed inside."""
    told = session_of(box)
    assert told.startswith("keyring;")
    assert told.endswith(";_ses.box")


def test_the_session_s_keys_stay_outside_twin(box: Box) -> None:
    assert session_of(box, remove=["keyring"]).endswith(";of-the-host")


# USER


def as_user(box: Box, name: str, **twin: Any) -> Result:
    box.process["user"] = {"uid": 0, "gid": 0, "username": name}
    return box.run("id", "-u", **twin)


def test_users_and_groups(box: Box) -> None:
    """CVE-2022-2989, CVE-2023-25173: the groups are the primary one and those that list the user as a member."""
    for name, expected in (
        ("worker", "1234 4321 4321 77 78"), ("1234", "1234 4321 4321 77 78"), ("worker:extra", "1234 77 77"),
        ("worker:55", "1234 55 55"), ("99", "99 0 0"), ("99:4321", "99 4321 4321"), ("root", "0 0 0"), ("0", "0 0 0"),
    ):  # fmt: skip
        box.process["user"] = {"uid": 0, "gid": 0, "username": name}
        result = box.run("sh", "-c", "id -u; id -g; id -G")
        first, second, third = result.output.splitlines()
        assert f"{first} {second} {' '.join(sorted(third.split(), key=int))}" == (
            " ".join([*expected.split()[:2], *sorted(expected.split()[2:], key=int)])
        ), name
        assert result.created == {"user": f"{first}:{second}"}


@pytest.mark.parametrize(
    "name",
    ["2147483648", "4294967296", "4294967295", "-1", "0x0", "1e0", "+0", "0b0", "0_0", "1.0", "18446744073709551616"],
)
def test_users_that_only_look_like_numbers(box: Box, name: str) -> None:
    """CVE-2024-40635, CVE-2026-46680: refused, even where the image's passwd has such a name for uid 0."""
    (box.rootfs / "etc/passwd").write_text(f"{name}:x:0:0::/:/bin/sh\n")
    refused(as_user(box, name), "Invalid", name)
    refused(as_user(box, f"0:{name}"), "Invalid", name)
    twin = as_user(box, name, patch={"wherry.oci.users.number": "nothing"})
    assert (twin.error, twin.output) == (None, "0\n")


def test_unknown_users(box: Box) -> None:
    refused(as_user(box, "nobody-here"), "Invalid", "nobody-here")
    refused(as_user(box, "worker:nogroup"), "Invalid", "nogroup")


def with_groups(box: Box, **twin: Any) -> Result:
    """A shim whose starter is in a group, and a filter of the user's own that refuses to leave it."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["setgroups", "setgroups32"], "action": "SCMP_ACT_ERRNO"}],
    }
    box.seccomp = json.dumps(profile)
    box.process["user"] = {"uid": 1000, "gid": 1000}
    return box.run("cat", "/proc/self/status", wrapper=("setpriv", "--groups", "0,27"), **twin)


def test_groups_of_the_starter_stay_outside(box: Box) -> None:
    result = with_groups(box)
    assert result.error is not None
    assert result.error["what"] == "identity"


def test_groups_of_the_starter_stay_outside_twin(box: Box) -> None:
    result = with_groups(box, patch={"wherry.oci.execute_process._KEEPS_GROUPS": True})
    assert "Groups:\t0 27 \n" in result.output


def make_fifo(path: Path, _canary: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path, _canary: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))


def make_directory(path: Path, _canary: Path) -> None:
    path.mkdir()


def make_huge(path: Path, _canary: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


@pytest.mark.parametrize("make", [make_fifo, make_device, make_directory, make_huge])
@pytest.mark.parametrize("name", ["passwd", "group"])
def test_passwd_is_no_small_file(box: Box, canary: Path, make: Callable[[Path, Path], None], name: str) -> None:
    """CVE-2024-9676, CVE-2026-47262: never blocks, never reads without end."""
    path = box.rootfs / "etc" / name
    path.unlink()
    make(path, canary)
    refused(as_user(box, "worker" if name == "passwd" else "0:workers"), "Invalid", f"/etc/{name}")


def test_passwd_is_a_link_to_the_host(box: Box, tmp_path: Path) -> None:
    host = tmp_path / "host-passwd"
    host.write_text("intruder:x:4242:0::/:/bin/sh\n")
    for target in ("../../../../../../../.." + str(host), str(host)):
        (box.rootfs / "etc/passwd").unlink()
        (box.rootfs / "etc/passwd").symlink_to(target)
        refused(as_user(box, "intruder"), "Invalid", "intruder")
    naive = {"wherry.linux.path.open_in": "naive open"}
    assert as_user(box, "intruder", patch=naive, remove=["mask", "readonly", "remount"]).output == "4242\n"


def test_many_lines_of_passwd_end_in_time(box: Box) -> None:
    with (box.rootfs / "etc/passwd").open("w") as file:
        file.write("a:x:0:\n" * 1_000_000)
        file.write("late:x:7:7::/:/bin/sh\n")
    assert as_user(box, "late").created == {"user": "7:7"}
    refused(as_user(box, "a"), "Invalid")


# Python after entry


def traced(box: Box, tmp_path: Path, **twin: Any) -> list[str]:
    """The calls that take a path, by the child, between pivot_root and execve."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace"
    result = box.run("true", wrapper=[strace, "-f", "-o", str(log), "-e", "trace=%file,pivot_root,execve"], **twin)
    assert result.error is None or twin, result
    lines = log.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if "pivot_root(" in line)
    child = lines[start].split()[0]
    mine = [line.split(" ", 1)[1].strip() for line in lines[start + 1 :] if line.split()[0] == child]
    end = next((index for index, line in enumerate(mine) if line.startswith("execve(")), len(mine))
    return mine[:end]


def allowed(call: str) -> bool:
    return re.match(r'(umount2\("\."|chdir\("/|mount_setattr\(|getcwd\(|<\.\.\. )', call) is not None


def test_nothing_is_opened_by_name_after_entry(box: Box, tmp_path: Path) -> None:
    """CVE-2019-14271: an image brings its own encodings/, libnss and passwd; nobody asks them."""
    for name in ("lib/python/encodings", "usr/lib/python3/encodings", "lib/x86_64-linux-gnu"):
        (box.rootfs / name).mkdir(parents=True)
    (box.rootfs / "lib/x86_64-linux-gnu/libnss_files.so.2").write_text("")
    box.process["user"] = {"uid": 0, "gid": 0, "username": "worker:extra"}
    assert [call for call in traced(box, tmp_path) if not allowed(call)] == []


def test_nothing_is_opened_by_name_after_entry_twin(box: Box, tmp_path: Path) -> None:
    (box.rootfs / "lib/python").mkdir(parents=True)
    (box.rootfs / "lib/python/planted.py").write_text("open('/tmp/pwned', 'w').close()\n")

    def late(steps: list[list[Any]]) -> None:
        index = next(number for number, step in enumerate(steps) if step[0] == "created")
        steps.insert(index, ["late_import"])

    calls = traced(box, tmp_path, change=late)
    assert any("/lib/python/planted.py" in call for call in calls)
    assert (box.rootfs / "tmp/pwned").exists()


# CVE-2019-5736


_LIVE = "import sys; sys.path[:0] = [{core!r}]; from wherry.linux import exe, process; import time; "


def overwrite(python: Path, launcher: str) -> bool:
    """A process holds the interpreter's file by /proc/PID/exe, waits for it to end, and opens that for writing."""
    child = subprocess.Popen([str(python), "-I", "-S", "-c", launcher], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    held = os.open(f"/proc/{child.pid}/exe", os.O_PATH)
    child.kill()
    child.wait()
    child.stdout.close()
    try:
        fd = os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
        try:
            os.pwrite(fd, b"owned", 0)
        finally:
            os.close(fd)
    except OSError:
        return False
    finally:
        os.close(held)
    return True


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A copy of the interpreter, to be attacked."""
    copy = tmp_path / "python"
    shutil.copy(Path(sys.executable).resolve(), copy)
    return copy


def launcher(python: Path, prepare: str, step: str) -> str:
    """Runs step (an exec of the interpreter that then says so and waits)."""
    wait = "import time; print('ready', flush=True); time.sleep(60)"
    live = _LIVE.format(core=str(CORE))
    return live + prepare + step.format(argv=[str(python), "-I", "-S", "-c", wait], exe=str(python))


def test_the_interpreter_cannot_be_overwritten(python: Path) -> None:
    digest = python.read_bytes()
    assert not overwrite(python, launcher(python, "", "exe.reexec({argv!r}, {{}}, {exe!r})"))
    sealed = "exe.mount.open_tree = None; exe.open_readonly = exe._sealed_copy; "
    assert not overwrite(python, launcher(python, sealed, "exe.reexec({argv!r}, {{}}, {exe!r})"))
    assert python.read_bytes() == digest


def test_the_interpreter_cannot_be_overwritten_twin(python: Path) -> None:
    assert overwrite(python, launcher(python, "import os; ", "os.execv({exe!r}, {argv!r})"))
    assert python.read_bytes().startswith(b"owned")
