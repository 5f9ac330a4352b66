"""Containers made by plans alone: what a process finds around it, and how it ends."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pytest

from support.boxes import Box
from wherry.linux import caps

DEFAULT = 0xA80425FB  # Docker's 14 capabilities


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def mounts(text: str) -> dict[str, tuple[set[str], str]]:
    """target -> (mount options, file system)"""
    found = {}
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        if not dash:
            continue
        fields = left.split()
        found[fields[4]] = (set(fields[5].split(",")), right.split()[0])
    return found


def test_a_command_runs_and_its_code_comes_back(box: Box) -> None:
    result = box.run("sh", "-c", "echo hello from PID $$; exit 7")
    assert (result.error, result.code, result.output) == (None, 7, "hello from PID 1\n")
    assert result.created == {"user": "0:0"}


def test_overlay_keeps_the_lower_layer(box: Box) -> None:
    box.overlay()
    assert box.run("sh", "-c", "echo new > /etc/passwd; cat /etc/passwd").output == "new\n"
    assert (box.rootfs / "etc/passwd").read_text().startswith("root:")
    assert (box.directory / "upper/etc/passwd").read_text() == "new\n"


def test_status_is_docker_s_profile(box: Box) -> None:
    found = status(box.run("cat", "/proc/self/status").output)
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {DEFAULT}
    assert (found["NoNewPrivs"], found["Seccomp"], found["Seccomp_filters"]) == ("0", "2", "1")
    assert {int(found[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")} == {0}
    assert found["Umask"] == "0022"


def test_no_new_privileges(box: Box) -> None:
    box.process["noNewPrivileges"] = True
    found = status(box.run("cat", "/proc/self/status").output)
    assert (found["NoNewPrivs"], found["Seccomp"], int(found["CapEff"], 16)) == ("1", "2", DEFAULT)


def test_a_user_has_no_capabilities_but_may_get_ambient_ones(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    found = status(box.run("cat", "/proc/self/status").output)
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapAmb", "CapInh")} == {0}
    only = ["CAP_NET_BIND_SERVICE"]
    box.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), only)
    found = status(box.run("cat", "/proc/self/status").output)
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapAmb", "CapInh", "CapBnd")} == {caps.mask(only)}


def test_mounts_are_docker_s(box: Box) -> None:
    found = mounts(box.run("cat", "/proc/self/mountinfo").output)
    for target, kind, options in (
        ("/proc", "proc", {"rw", "nosuid", "nodev", "noexec"}),
        ("/dev", "tmpfs", {"rw", "nosuid"}),
        ("/dev/pts", "devpts", {"rw", "nosuid", "noexec"}),
        ("/dev/shm", "tmpfs", {"rw", "nosuid", "nodev", "noexec"}),
        ("/dev/mqueue", "mqueue", {"rw", "nosuid", "nodev", "noexec"}),
        ("/sys", "sysfs", {"ro", "nosuid", "nodev", "noexec"}),
        ("/sys/fs/cgroup", "tmpfs", {"ro", "nosuid", "nodev", "noexec"}),
        ("/proc/sys", "proc", {"ro", "nosuid", "nodev", "noexec"}),
        ("/proc/keys", "tmpfs", {"rw", "nosuid"}),
    ):
        seen, system = found[target]
        assert (system, seen - {"relatime"}) == (kind, options), target
    host = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert not {target for target in found if target.startswith(str(box.directory))}
    assert len(found) < 40, host


def test_devices(box: Box) -> None:
    listing = box.run(
        "sh",
        "-c",
        "cd /dev; stat -c '%n %a %t:%T %u' null zero full random urandom tty; "
        "for n in fd stdin stdout stderr ptmx core; do readlink $n; done",
    )
    lines = listing.output.splitlines()
    assert lines[:6] == [
        f"{name} 666 {number} 0"
        for name, number in (
            ("null", "1:3"),
            ("zero", "1:5"),
            ("full", "1:7"),
            ("random", "1:8"),
            ("urandom", "1:9"),
            ("tty", "5:0"),
        )
    ]
    assert lines[6:] == ["/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3)), "pts/ptmx", "/proc/kcore"]
    assert box.run("sh", "-c", "ls /dev").output.split() == (
        ["core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"]
        + ["stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    )


def test_devices_of_the_spec(box: Box) -> None:
    box.linux["devices"] = [
        {"path": "/dev/deep/er", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/pipe", "type": "p", "fileMode": 0o600},
    ]
    out = box.run("stat", "-c", "%F %a %t:%T %u:%g", "/dev/deep/er", "/pipe").output.splitlines()
    assert out == ["character special file 640 1:5 5:6", "fifo 600 0:0 0:0"]


def test_masked_files_are_empty_and_directories_too(box: Box) -> None:
    out = box.run(
        "sh", "-c", "cat /proc/keys /proc/timer_list; ls /proc/acpi /sys/firmware; echo x > /proc/sys/kernel/domainname"
    )
    lines = out.output.splitlines()
    (refused,) = [line for line in lines if line and not line.endswith(":")]  # shells word its beginning differently
    assert refused.endswith("/proc/sys/kernel/domainname: Read-only file system")


def test_namespaces_are_its_own(box: Box) -> None:
    box.linux["namespaces"].append({"type": "time"})
    names = ("mnt", "pid", "ipc", "uts", "net", "time", "user", "cgroup")
    out = box.run("sh", "-c", "for n in " + " ".join(names) + "; do readlink /proc/self/ns/$n; done").output.split()
    own = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    assert [name for name, inside, outside in zip(names, out, own, strict=True) if inside == outside] == [
        "user",
        "cgroup",
    ]


def test_time_offsets(box: Box) -> None:
    box.linux["namespaces"].append({"type": "time"})
    box.linux["timeOffsets"] = {"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 2_000_000, "nanosecs": 5}}
    uptime = float(box.run("cat", "/proc/uptime").output.split()[0])
    assert 1_000_000 < uptime - time.clock_gettime(time.CLOCK_BOOTTIME) + 60 < 1_000_120


def test_hostname_and_loopback(box: Box) -> None:
    box.spec["domainname"] = "example.org"
    out = box.run("sh", "-c", "hostname; cat /proc/sys/kernel/domainname /sys/class/net/lo/flags; ls /sys/class/net")
    assert out.output.split() == ["box", "example.org", "0x9", "lo"]


def test_namespaces_without_a_sandbox(box: Box) -> None:
    box.sandboxed = False
    out = box.run("sh", "-c", "hostname; cat /sys/class/net/lo/flags; readlink /proc/self/ns/net")
    assert out.output.split()[:2] == ["box", "0x9"]
    assert out.output.split()[2] != os.readlink("/proc/self/ns/net")


def test_a_network_that_the_sandbox_does_not_lend_is_refused(box: Box) -> None:
    box.netns = "host"
    result = box.run("true")
    assert result.error is not None
    assert (result.error["class"], result.error["what"]) == ("FailedPrecondition", "net namespace")


def test_terminal(box: Box) -> None:
    box.process["terminal"] = True
    box.process["consoleSize"] = {"height": 31, "width": 97}
    box.process["user"] = {"uid": 1000, "gid": 1000}
    script = "test -t 0 && test -t 1 && test -t 2 && echo all; "
    script += "stat -c '%F %u' /dev/console; readlink /proc/self/fd/0; ls -1 /dev/pts; busybox stty size"
    out = box.run("sh", "-c", script).output.split("\r\n")
    assert out[:2] == ["all", "character special file 1000"]
    assert out[2:5] == ["/dev/pts/0", "0", "ptmx"]
    assert "31 97" in out


def test_console_is_the_terminal(box: Box) -> None:
    box.process["terminal"] = True
    out = box.run("sh", "-c", "echo through > /dev/console; stat -c '%t:%T' /dev/console").output
    assert out.split() == ["through", "88:0"]


def test_working_directory_is_made_in_the_root(box: Box) -> None:
    (box.rootfs / "link").symlink_to("/etc")
    box.process["cwd"] = "/link/deep/er"
    assert box.run("sh", "-c", "pwd").output == "/etc/deep/er\n"
    assert (box.rootfs / "etc/deep/er").is_dir()


def test_home_comes_from_passwd_unless_it_is_set(box: Box) -> None:
    box.process["user"] = {"uid": 0, "gid": 0, "username": "worker"}
    assert box.run("sh", "-c", "echo $HOME").output == "/home/w\n"
    box.process["env"] = ["PATH=/bin", "HOME=/given"]
    assert box.run("sh", "-c", "echo $HOME").output == "/given\n"
    box.process["env"] = ["PATH=/bin"]
    box.process["user"] = {"uid": 99, "gid": 99}
    assert box.run("sh", "-c", "echo $HOME").output == "/\n"


def test_commands_that_cannot_run(box: Box) -> None:
    (box.rootfs / "bin/plain").write_text("#!/bin/sh\n")
    (box.rootfs / "bin/data").write_bytes(b"\0\1\2\3")
    (box.rootfs / "bin/data").chmod(0o755)
    (box.rootfs / "bin/orphan").write_text("#!/no/such/interpreter\n")
    (box.rootfs / "bin/orphan").chmod(0o755)
    for argv, name, cause, code in (
        ("nope", "CommandNotFound", "executable file not found in $PATH", 127),
        ("/bin/nope", "CommandNotFound", "no such file or directory", 127),
        ("orphan", "CommandNotFound", "executable file not found in $PATH", 127),
        ("plain", "CommandNotExecutable", "permission denied", 126),
        ("/etc", "CommandNotExecutable", "permission denied", 126),
        ("/bin/data", "CommandNotExecutable", "exec format error", 126),
    ):
        result = box.run(argv)
        assert result.error is not None
        assert (result.error["class"], result.error["cause"], result.code) == (name, cause, code), argv
        assert result.error["what"] == f'exec "{argv}"'


def test_rlimits_and_umask(box: Box) -> None:
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    box.process["user"]["umask"] = 0o077
    out = box.run("sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c; umask").output.split()
    assert out == ["64", "128", "0", "0077"]


def test_oom_score(box: Box) -> None:
    box.process["oomScoreAdj"] = 333
    assert box.run("cat", "/proc/self/oom_score_adj").output == "333\n"


def test_sysctls_of_its_namespaces(box: Box) -> None:
    box.linux["sysctl"] = {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "kernel.msgmax": "9000",
        "net/ipv4/conf/lo/forwarding": "1",
    }
    out = box.run(
        "sh", "-c", "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/msgmax net/ipv4/conf/lo/forwarding"
    )
    assert out.output.split() == ["0", "9000", "1"]


def test_read_only_root(box: Box) -> None:
    for layered in (False, True):
        if layered:
            box.overlay()
        box.spec["root"]["readonly"] = True
        out = box.run("sh", "-c", "touch /x; touch /dev/shm/y && echo fine").output.splitlines()
        assert out == ["touch: /x: Read-only file system", "fine"]


def test_binds(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("content\n")
    (box.rootfs / "current").symlink_to("/inner/place")
    box.spec["mounts"] += [
        {"destination": "/current", "type": "bind", "source": str(source), "options": ["rbind", "ro", "rprivate"]},
        {
            "destination": "/etc/one",
            "type": "bind",
            "source": str(source / "file"),
            "options": ["bind", "nosuid", "noexec"],
        },
    ]
    script = "cat /inner/place/file /etc/one; touch /current/x; echo more >> /etc/one; cat /proc/self/mountinfo"
    out = box.run("sh", "-c", script).output
    assert out.startswith("content\ncontent\ntouch: /current/x: Read-only file system\n")
    found = mounts(out)
    assert found["/inner/place"][0] >= {"ro"}
    assert found["/etc/one"][0] >= {"nosuid", "noexec"}
    assert (source / "file").read_text() == "content\nmore\n"
    assert stat.S_ISREG((box.rootfs / "etc/one").stat().st_mode)


def test_the_mode_of_a_tmpfs(box: Box) -> None:
    """As docker: what is asked, else that of the directory it covers, else the file system's own, open to every user."""
    (box.rootfs / "covered").mkdir(mode=0o710)
    (box.rootfs / "link").symlink_to("/covered")
    for name, options in (("asked", ["mode=1770"]), ("covered", []), ("new/inner", []), ("link", [])):
        box.spec["mounts"].append({"destination": f"/{name}", "type": "tmpfs", "source": "tmpfs", "options": options})
    assert box.run("stat", "-c", "%a", "/asked", "/covered", "/new/inner").output.split() == ["1770", "710", "1777"]


def test_a_missing_bind_source_is_named(box: Box) -> None:
    box.spec["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such/dir", "options": ["rbind"]})
    result = box.run("true")
    assert result.error is not None
    assert (result.error["class"], result.error["what"]) == ("NotFound", 'bind source "/no/such/dir"')


def test_a_held_child_holds_nothing_of_others(box: Box) -> None:
    held = box.run("true", strays=["/etc", "/var"]).answer["held"]
    kinds = {re.sub(r"\d+", "N", name) for name in held}
    assert "/etc" not in held
    assert "/var" not in held
    assert kinds <= {"/dev/null", "pipe:[N]", "socket:[N]", "/", "/proc", "/dev", "/dev/pts", "/sys", "mqueue:/"}, held


def test_hooks_of_the_child(box: Box, tmp_path: Path) -> None:
    log = tmp_path / "hook.log"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho $1 $X >> {log}\ncat >> {log}\nreadlink /proc/self/ns/mnt >> {log}\n")
    hook.chmod(0o755)
    (box.rootfs / "inside").write_text("#!/bin/sh\necho inside $1 >> /tmp/log\ncat >> /tmp/log\n")
    (box.rootfs / "inside").chmod(0o755)
    box.spec["annotations"] = {"key": "välue"}
    box.spec["hooks"] = {
        "createRuntime": [{"path": "/bin/true"}],
        "createContainer": [{"path": str(hook), "args": ["hook", "one"], "env": ["X=y"], "timeout": 10}],
        "startContainer": [{"path": "/inside", "args": ["inside", "two"]}],
    }
    result = box.run("cat", "/tmp/log")
    assert result.answer.get("runtime_hooks") is True
    lines = log.read_text().splitlines()
    assert lines[0].startswith("one y{") or lines[0] == "one y"
    assert '"status": "creating"' in log.read_text()
    assert "mnt:[" in log.read_text()
    assert os.readlink("/proc/self/ns/mnt") not in log.read_text()
    assert result.output.startswith("inside two\n")
    assert '"status": "created"' in result.output
    assert '"pid": 1' in result.output


def test_a_failing_hook_ends_the_start(box: Box) -> None:
    for hook, cause in (
        ({"path": "/bin/false"}, "exited with status 1"),
        ({"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}, "took too long"),
    ):
        box.spec["hooks"] = {"createContainer": [hook]}
        result = box.run("true")
        assert result.error is not None
        assert (result.error["class"], result.error["cause"]) == ("FailedPrecondition", cause)


# user namespaces


@pytest.mark.parametrize("sandboxed", [True, False])
def test_user_namespace(box: Box, sandboxed: bool) -> None:
    box.map_ids()
    box.sandboxed = sandboxed
    box.directory.chmod(0o700)
    box.overlay()
    for name in ("upper", "work"):
        os.chown(box.directory / name, 100000, 100000)
    script = "id -u; cat /proc/self/uid_map; hostname; touch /made; stat -c %u /made; echo x > /dev/null && echo null"
    result = box.run("sh", "-c", script)
    assert result.error is None
    assert result.output.split() == ["0", "0", "100000", "65536", "box", "0", "null"]
    assert (box.directory / "upper/made").stat().st_uid == 100000


def test_user_namespace_owns_the_others(box: Box) -> None:
    """What root may do in its own namespaces it may do here, and nothing in the host's."""
    box.map_ids()
    box.seccomp = None
    box.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps.NAMES)
    script = "hostname other && hostname; mount -t tmpfs none /tmp && echo mounted; echo 1 > /proc/sys/kernel/panic"
    lines = box.run("sh", "-c", script).output.splitlines()
    assert lines[:2] == ["other", "mounted"]
    assert "Read-only file system" in lines[2]


def test_idmapped_bind(box: Box, tmp_path: Path) -> None:
    box.map_ids()
    source = tmp_path / "source"
    source.mkdir(mode=0o755)
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    mount = {"destination": "/data", "type": "bind", "source": str(source), "options": ["rbind"]}
    box.spec["mounts"].append({**mount, "uidMappings": maps, "gidMappings": maps})
    box.spec["mounts"].append({**mount, "destination": "/plain"})
    out = box.run("sh", "-c", "stat -c %u /data /plain; touch /data/new && stat -c %u /data/new; touch /plain/no")
    assert out.output.splitlines() == ["0", "65534", "0", "touch: /plain/no: Permission denied"]
    assert (source / "new").stat().st_uid == 0


def test_terminal_in_a_user_namespace(box: Box) -> None:
    box.map_ids()
    box.process["terminal"] = True
    assert box.run("sh", "-c", "test -t 0 && stat -c %F /dev/console").output.strip() == "character special file"
