"""From a spec to steps: their order, their words, and the specs that are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from wherry.api import IdMap, Mount, Step
from wherry.linux import mount, namespaces
from wherry.oci import compile, options, spec, steps
from wherry.oci.errors import SpecError
from wherry.oci.spawn import TABLE, bind

ROOT = (Mount("overlay", "overlay", "", ("lowerdir=/a:/b\\:c", "upperdir=/u", "workdir=/w")),)
SPEC: dict[str, Any] = {
    "process": {
        "args": ["true"],
        "env": ["PATH=/bin", "STRAY", "=x"],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_KILL"]},
    },
    "root": {"readonly": True},
    "hostname": "h",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rro", "rslave"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ],
    "linux": {
        "namespaces": [{"type": name} for name in ("mount", "pid", "ipc", "uts", "network")],
        "maskedPaths": ["/proc/keys"],
        "readonlyPaths": ["/proc/sys"],
        "sysctl": {"net.core.somaxconn": "1"},
    },
}


def made(change: dict[str, Any] | None = None, host: compile.HostFacts | None = None) -> compile.Compiled:
    merged = copy.deepcopy(SPEC)
    for key, value in (change or {}).items():
        place, *rest = key.split("/")
        target = merged[place] if rest else merged
        target[rest[0] if rest else place] = value
    return compile.container("id", merged, ROOT, host or compile.HostFacts(filter=(b"\0" * 8, 0)), bundle="/b")


def names(compiled: compile.Compiled) -> list[str]:
    return [step.name for step in compiled.steps]


def test_the_order_of_a_start() -> None:
    assert names(made()) == [
        "cgroup", "overlay", "source", "join", "setsid", "hostname", "propagation", "root", "mount", "mount", "bind", "mount",
        "remount",
        "devices", "links", "user", "sysctl", "mask", "readonly", "own_stdio", "remount", "pivot", "keyring", "umask", "created",
        "bounding", "filter", "identity", "signals", "chdir", "execute",
    ]  # fmt: skip


def test_the_filter_comes_last_with_no_new_privileges() -> None:
    tail = names(made({"process/noNewPrivileges": True}))[-7:]
    assert tail == ["bounding", "identity", "no_new_privileges", "filter", "signals", "chdir", "execute"]


def test_a_user_namespace_comes_before_the_others_and_after_host_paths() -> None:
    spaces = [{"type": name} for name in ("user", "mount", "pid", "ipc", "uts", "network", "cgroup", "time")]
    maps = [{"containerID": 0, "hostID": 1000, "size": 10}]
    compiled = made({"linux/namespaces": spaces, "linux/uidMappings": maps, "linux/gidMappings": maps})
    order = names(compiled)
    assert (
        order.index("overlay")
        < order.index("userns")
        < order.index("join")
        < order.index("unshare")
        < order.index("timens")
    )
    assert max(index for index, name in enumerate(order) if name == "source") < order.index("userns")
    assert "devices" not in order
    assert compiled.idmap == (((0, 1000, 10),), ((0, 1000, 10),))
    assert compiled.flags == namespaces.NEWNS | namespaces.NEWPID


def test_hooks_have_their_moments() -> None:
    hooks = {
        name: [{"path": "/h"}]
        for name in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    }
    compiled = made({"hooks": hooks})
    order = names(compiled)
    assert order.index("user") < order.index("runtime_hooks") < order.index("hooks") < order.index("sysctl")
    assert order[-2:] == ["hooks", "execute"]
    assert set(compiled.hooks) == {"prestart", "createRuntime", "poststart", "poststop", "state"}
    assert compiled.hooks["createRuntime"] == [{"path": "/h", "args": [], "env": [], "timeout": 0}]
    assert compiled.hooks["state"]["bundle"] == "/b"


def test_an_exec_ends_like_a_start() -> None:
    compiled = compile.exec("id", SPEC, SPEC["process"], compile.HostFacts(filter=(b"\0" * 8, 0)))
    assert names(compiled)[:5] == ["cgroup", "enter", "setsid", "user", "own_stdio"]
    assert names(compiled)[5:] == names(made())[-9:]


def test_an_exec_is_seen_late_where_others_may_look() -> None:
    for sets in ({"bounding": ["CAP_SYS_PTRACE"]}, {"permitted": ["CAP_SYS_PTRACE"]}):
        spec = {**SPEC, "process": {**SPEC["process"], "capabilities": sets}}
        compiled = compile.exec("id", spec, SPEC["process"], compile.HostFacts())
        assert names(compiled)[:4] == ["cgroup", "enter", "pidns", "setsid"]


def test_an_exec_that_starts_at_once_is_born_last() -> None:
    """In the pid namespace, with all that the process is to have: nothing of the host's is ever seen inside."""
    host = compile.HostFacts(filter=(b"\0" * 8, 0), spawns=True)
    compiled = compile.exec("id", SPEC, SPEC["process"], host, start=True)
    assert names(compiled) == [
        "cgroup", "enter", "user", "own_stdio", "keyring", "umask", "bounding", "filter", "identity", "signals", "chdir", "spawn",
    ]  # fmt: skip
    (enter,) = (step for step in compiled.steps if step.name == "enter")
    assert enter[0] & namespaces.NEWPID
    limits = [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}]
    assert "spawn" in names(compile.exec("id", SPEC, {**SPEC["process"], "rlimits": limits}, host, start=True))


def test_an_exec_is_not_born_last_where_that_is_no_good() -> None:
    process = SPEC["process"]
    few = [{"type": "RLIMIT_AS", "soft": 1 << 20, "hard": 1 << 20}]
    sees = {**SPEC, "process": {**process, "capabilities": {"bounding": ["CAP_SYS_PTRACE"]}}}
    full = {**SPEC, "linux": {**SPEC["linux"], "resources": {"pids": {"limit": 2}}}}
    aware = compile.HostFacts(spawns=True, apparmor=True)
    for container, wanted, host, start in (
        (SPEC, process, aware, False),
        (SPEC, process, compile.HostFacts(filter=(b"\0" * 8, 0)), True),  # a filter of the user's own
        (SPEC, {**process, "terminal": True}, aware, True),
        (SPEC, {**process, "rlimits": few}, aware, True),
        (SPEC, {**process, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9}]}, aware, True),
        (SPEC, {**process, "apparmorProfile": "p"}, aware, True),
        (full, process, aware, True),  # there is room for one process, not for who has it spawned
        (sees, process, aware, True),  # its processes could look into the one that waits for the birth
    ):
        compiled = names(compile.exec("id", container, wanted, host, start=start))
        assert compiled[-1] == "execute"
        assert "created" in compiled


def test_steps_are_frozen_data_that_travel() -> None:
    for step in made().steps:
        read: Step = step
        assert read.describe()
        assert json.loads(json.dumps(step.encode()))[0] in TABLE
        with pytest.raises(TypeError):
            step[0] = 1  # type: ignore[index]


def test_every_step_class_has_its_executor() -> None:
    classes = [
        value
        for value in vars(steps).values()
        if isinstance(value, type) and issubclass(value, steps.Step) and value is not steps.Step
    ]
    assert {cls.name for cls in classes} == set(TABLE) - {"stdio"}


def test_bind_refuses_what_is_no_plan() -> None:
    for bad, why in (
        (["nonsense"], 'no such step "nonsense"'),
        (["filter", "***", 0], "0 bytes are no BPF program"),
        (["filter", "AAAA", 0], "3 bytes are no BPF program"),
    ):
        with pytest.raises(ValueError, match=why):
            bind([bad])


def test_environment_without_equals_is_dropped() -> None:
    """CVE-2026-57231."""
    assert made().env == ("PATH=/bin",)


def test_layers_are_told_apart() -> None:
    overlay = next(step for step in made().steps if step.name == "overlay")
    assert overlay[1] == ["/a", "/b:c"]
    assert overlay[2] == [["source", "overlay"], ["upperdir", "/u"], ["workdir", "/w"]]


def test_cgroup_v1_shows_the_own_groups_and_v2_the_tree() -> None:
    host = compile.HostFacts(cgroup_binds=[("cpu,cpuacct", "/c/x")], cgroup_links=[("cpu", "cpu,cpuacct")])
    order = names(made(host=host))
    assert order.count("link") == 1
    unified = made(host=compile.HostFacts(unified=True))
    assert ["/sys/fs/cgroup", "cgroup2"] in [list(step[:2]) for step in unified.steps if step.name == "mount"]


@pytest.mark.parametrize(
    "key, value, what",
    [
        ("process/args", [], "process.args"), ("process/args", ["a\0b"], "process"), ("process/cwd", "relative", "working directory"),
        ("process/user", {"uid": -1}, "user id"), ("process/user", {"uid": 1 << 31}, "user id"),
        ("process/user", {"gid": True}, "user id"),
        ("process/oomScoreAdj", 1001, "oomScoreAdj"), ("process/capabilities", {"bounding": ["CAP_X"]}, "capability"),
        ("process/capabilities", {"effective": ["CAP_KILL"]}, "capabilities"),
        ("process/capabilities", {"ambient": ["CAP_KILL"]}, "capabilities"),
        ("process/rlimits", [{"type": "RLIMIT_X"}], "rlimit"),
        ("process/rlimits", [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}], "rlimit"),
        ("process/apparmorProfile", "x", "AppArmor"), ("process/selinuxLabel", "x", "selinuxLabel"),
        ("linux/namespaces", [], 'namespace "mount"'), ("linux/namespaces", [{"type": "mount", "path": "/x"}], 'namespace "mount"'),
        ("linux/namespaces", [{"type": "new"}], 'namespace "new"'),
        ("linux/namespaces", [{"type": "pid"}, {"type": "pid"}], 'namespace "pid"'),
        ("linux/namespaces", [{"type": "mount"}, {"type": "pid", "path": "/" + "x" * 70000}], 'namespace "pid"'),
        ("mounts", [{"destination": "/../x", "type": "tmpfs"}], "mount"), ("mounts", [{"destination": "/", "type": "tmpfs"}], "mount"),
        ("linux/devices", [{"path": "/dev/x", "type": "x"}], "device"), ("linux/rootfsPropagation", "odd", "rootfsPropagation"),
        ("linux/intelRdt", {"closID": "x"}, "intelRdt"), ("hooks", {"createContainer": [{"path": "relative"}]}, "hook"),
        ("linux/uidMappings", [{"containerID": 0, "hostID": 0, "size": 0}], ""),
    ],
)  # fmt: skip
def test_specs_that_can_never_work(key: str, value: Any, what: str) -> None:
    if key == "linux/uidMappings":
        with pytest.raises(SpecError):
            compile.id_maps({"linux": {"uidMappings": value}})
        return
    with pytest.raises(SpecError) as caught:
        made({key: value})
    assert what in caught.value.what


@pytest.mark.parametrize("column", ["containerID", "hostID"])
def test_overlapping_id_maps(column: str) -> None:
    rows = [{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 100, "hostID": 100, "size": 10}]
    rows[1][column] = 9
    with pytest.raises(SpecError, match=r"overlap"):
        compile.id_maps({"linux": {"gidMappings": rows}})


def test_an_idmapped_overlay_has_idmapped_layers() -> None:
    mapped = (Mount("overlay", "overlay", "", ("lowerdir=/a:/b",), IdMap(((0, 1, 2),), ((0, 3, 4),))),)
    step = next(
        step for step in compile.container("id", SPEC, mapped, compile.HostFacts()).steps if "overlay" in step.name
    )
    assert (step.name, step[1], step[4], step[5]) == ("mapped_overlay", ["/a", "/b"], [(0, 1, 2)], [(0, 3, 4)])
    assert "2 layers idmapped" in step.describe()


def test_sysctl_names() -> None:
    own = ("network", "ipc", "uts")
    assert spec.sysctls({"net.ipv4.conf.eth0/100.forwarding": "1", "net/core/x": "2", "kernel.shmmax": "3"}, own) == [
        ("net/ipv4/conf/eth0.100/forwarding", "1"), ("net/core/x", "2"), ("kernel/shmmax", "3"),
    ]  # fmt: skip
    with pytest.raises(SpecError, match=r"another network namespace"):
        spec.sysctls({"net.core.somaxconn": "1"}, ())


def test_mount_options() -> None:
    parsed = options.MountOptions(
        ["ro", "nosuid", "exec", "rprivate", "size=1m", "newinstance", "rbind", "noatime", "rw"]
    )
    assert parsed.set == mount.ATTR_NOSUID | mount.ATTR_NOATIME
    assert parsed.clear == mount.ATTR_NOEXEC | mount.ATTR_ATIME | mount.ATTR_RDONLY
    assert (parsed.bind, parsed.recursive, parsed.propagation) == (True, True, mount.MS_PRIVATE | mount.MS_REC)
    assert parsed.data == [("size", "1m"), ("newinstance", None)]
