"""Specs: what image and request become, and the runtime-spec classes that judge what adjusters made of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wherry.api import Bind, ExecRequest, FailedPrecondition, Invalid, NotFound, RunRequest
from wherry.engine.containers.specs import SpecInputs, build, exec_process, mounts
from wherry.engine.containers.specs.profile import DEFAULT_CAPABILITIES, held_capabilities
from wherry.linux import caps
from wherry.spec import runtime

IMAGE = {
    "Cmd": ["sh"],
    "Entrypoint": ["/entry"],
    "Env": ["PATH=/bin", "SECRET", "A=image"],
    "User": "app",
    "WorkingDir": "/srv",
}


def spec(image: dict[str, Any] | None = None, network: str = "own", **request: Any) -> dict[str, Any]:
    inputs = SpecInputs(
        "a" * 64,
        IMAGE if image is None else image,
        RunRequest(image="x", **request),
        "host",
        "/g/a",
        Path("/b"),
        network,
    )
    made = build(inputs)
    runtime.check(made.spec)
    return made.spec


def test_the_default_profile_is_dockers() -> None:
    made = spec()
    assert made["process"]["capabilities"]["bounding"] == list(DEFAULT_CAPABILITIES)
    assert len(DEFAULT_CAPABILITIES) == 14
    assert made["process"]["capabilities"]["inheritable"] == []
    assert made["process"]["noNewPrivileges"] is False
    assert [mount["destination"] for mount in made["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
        "/etc/resolv.conf", "/etc/hostname", "/etc/hosts",
    ]  # fmt: skip
    assert "/proc/kcore" in made["linux"]["maskedPaths"]
    assert "/proc/sys" in made["linux"]["readonlyPaths"]
    assert made["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert made["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert made["annotations"]["io.wherry.seccomp"] == "default"
    assert {"type": "network"} in made["linux"]["namespaces"]
    assert "network" not in [n["type"] for n in spec(network="host")["linux"]["namespaces"]]


@pytest.mark.parametrize(
    ("image", "request_", "argv"),
    [
        ({"Cmd": ["a"]}, {}, ["a"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {}, ["e", "a"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"command": ("b",)}, ["e", "b"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"entrypoint": ("f",)}, ["f"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"entrypoint": ("f",), "command": ("b",)}, ["f", "b"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, {"entrypoint": ("",), "command": ("b",)}, ["b"]),
        ({"Cmd": ["a"], "Entrypoint": None}, {"command": ()}, ["a"]),
    ],
)
def test_command(image: dict[str, Any], request_: dict[str, Any], argv: list[str]) -> None:
    assert spec(image, **request_)["process"]["args"] == argv


def test_no_command_is_invalid() -> None:
    for image, request in (({}, {}), ({"Entrypoint": ["e"]}, {"entrypoint": ("",)}), ({"Cmd": 5}, {})):
        with pytest.raises(Invalid):
            spec(image, **request)


def test_environment() -> None:
    env = spec(env=("A=request", "B=", "PATH"), tty=True)["process"]["env"]
    assert env == ["HOSTNAME=host", "TERM=xterm", "A=request", "B="]
    assert spec({"Cmd": ["x"], "Env": ["*", "HOME", "", 5, "=x"]})["process"]["env"][1:] == ["HOSTNAME=host"]
    with pytest.raises(Invalid):
        spec(env=("=x",))


def test_user_and_directory() -> None:
    process = spec()["process"]
    assert (process["user"]["username"], process["cwd"]) == ("app", "/srv")
    assert spec(user="1000:1000", workdir="/x")["process"]["user"]["username"] == "1000:1000"
    for bad in ("4294967295", "0:4294967296", ":x", "a\nb"):
        with pytest.raises(Invalid):
            spec(user=bad)
    with pytest.raises(Invalid):
        spec(workdir="relative")


def test_capabilities() -> None:
    def bounding(**request: Any) -> set[str]:
        return set(spec(**request)["process"]["capabilities"]["bounding"])

    default = set(DEFAULT_CAPABILITIES)
    assert bounding(cap_add=("net_admin",)) == default | {"CAP_NET_ADMIN"}
    assert bounding(cap_drop=("CAP_CHOWN", "kill")) == default - {"CAP_CHOWN", "CAP_KILL"}
    assert bounding(cap_drop=("all",)) == set()
    assert bounding(cap_drop=("ALL",), cap_add=("chown",)) == {"CAP_CHOWN"}
    assert bounding(cap_add=("ALL",), cap_drop=("SYS_ADMIN",)) == set(held_capabilities()) - {"CAP_SYS_ADMIN"}
    assert bounding(privileged=True) == set(held_capabilities())
    assert set(held_capabilities()) <= set(caps.NAMES)
    with pytest.raises(Invalid, match=r"did you mean \"CAP_NET_ADMIN\""):
        spec(cap_add=("net_admim",))


def test_limits() -> None:
    resources = spec(memory=64 << 20, cpus=0.5, pids_limit=9, cpu_shares=512, cpuset="0")["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"}
    assert resources["pids"] == {"limit": 9}
    assert "pids" not in spec(pids_limit=-1)["linux"]["resources"]
    for bad in (
        {"memory": 1},
        {"memory": 64 << 20, "memory_swap": 1 << 20},
        {"memory_swap": 1 << 20},
        {"memory": 64 << 20, "memory_reservation": 65 << 20},
        {"oom_score_adj": 1001},
        {"cpus": 10_000.0},
        {"cpus": -1.0},
        {"cpuset": "0-"},
        {"cpuset": "0,99999"},
        {"cpuset": "1-0"},
        {"pids_limit": -2},
        {"command": "sh"},
        {"env": "A=b"},
        {"ulimits": (("nofiles", 1, 1),)},
        {"ulimits": (("nofile", 2, 1),)},
    ):
        with pytest.raises(Invalid):
            spec(**bad)
    assert spec(ulimits=(("nofile", 1, -1),))["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": (1 << 64) - 1}
    ]


def test_sysctls_stay_in_their_namespace() -> None:
    assert spec(sysctls={"net.core.somaxconn": "9"})["linux"]["sysctl"]["net.core.somaxconn"] == "9"
    assert spec(sysctls={"kernel.msgmax": "9"}, network="host")["linux"]["sysctl"] == {"kernel.msgmax": "9"}
    for name, value, network in (
        ("kernel.core_pattern", "x", "own"),
        ("net/../kernel/core_pattern", "x", "own"),
        ("net..core", "x", "own"),
        ("net.core.x=y+z", "1", "own"),
        ("net.core.somaxconn", "1\nkernel.core_pattern=x", "own"),
        ("net.core.somaxconn", "9", "host"),
        ("kernel.msgmax", "9", "shared"),
    ):
        with pytest.raises(Invalid):
            spec(network=network, sysctls={name: value})


def test_mounts(tmp_path: Path) -> None:
    made = spec(
        mounts=(
            Bind("tmpfs", "", "/deep/er", ("size=1m", "exec")),
            Bind("bind", str(tmp_path), "/deep", ("ro",)),
            Bind("bind", str(tmp_path / "new"), "/n/", (), True),
            Bind("tmpfs", "", "/dev/shm"),
        )
    )["mounts"]
    mine = {mount["destination"]: mount for mount in made}
    assert mine["/deep/er"]["options"] == ["nodev", "nosuid", "size=1m"]
    assert mine["/deep"]["options"] == ["rbind", "rro", "rprivate"]
    assert (tmp_path / "new").is_dir()
    assert list(mine).index("/deep") < list(mine).index("/deep/er")
    assert [mount["destination"] for mount in made].count("/dev/shm") == 1
    for bad, error in (
        (Bind("bind", str(tmp_path / "absent"), "/x"), NotFound),
        (Bind("bind", "relative", "/x"), Invalid),
        (Bind("bind", str(tmp_path), "x"), Invalid),
        (Bind("bind", str(tmp_path), "/"), Invalid),
        (Bind("bind", str(tmp_path), "/a/../../proc/sys"), Invalid),
        (Bind("tmpfs", "", "/proc"), Invalid),
        (Bind("volume", "data", "/x"), FailedPrecondition),
    ):
        with pytest.raises(error):
            spec(mounts=(bad,))
    with pytest.raises(Invalid, match="named twice"):
        spec(mounts=(Bind("tmpfs", "", "/x"), Bind("tmpfs", "", "/x/")))


def test_init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "init"
    program.write_bytes(b"")
    monkeypatch.setattr(mounts, "INIT_PROGRAMS", (str(program),))
    made = spec(init=True)
    assert made["process"]["args"][:3] == ["/sbin/docker-init", "--", "/entry"]
    monkeypatch.setattr(mounts, "INIT_PROGRAMS", ())
    with pytest.raises(FailedPrecondition, match="tini"):
        spec(init=True)


def test_privileged_has_none_of_it() -> None:
    made = spec(privileged=True)
    assert "maskedPaths" not in made["linux"]
    assert made["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert made["annotations"]["io.wherry.seccomp"] == "unconfined"
    sys = next(mount for mount in made["mounts"] if mount["destination"] == "/sys")
    assert "ro" not in sys["options"]


def test_devices() -> None:
    made = spec(devices=("/dev/null:/dev/nothing:r",))["linux"]
    assert made["devices"][0]["path"] == "/dev/nothing"
    assert made["resources"]["devices"][-1] == {"allow": True, "access": "r", "type": "c", "major": 1, "minor": 3}
    for bad, error in (
        ("/dev/absent", NotFound),
        ("null", Invalid),
        ("/etc/passwd", Invalid),
        ("/a:/b:/c:/d", Invalid),
    ):
        with pytest.raises(error):
            spec(devices=(bad,))


def test_annotations_hooks_and_seccomp() -> None:
    assert spec(annotations={"a": "b"})["annotations"]["a"] == "b"
    assert spec(hooks={"prestart": [{"path": "/bin/x"}]})["hooks"] == {"prestart": [{"path": "/bin/x"}]}
    assert spec(seccomp='{"defaultAction": "SCMP_ACT_ALLOW"}')["annotations"]["io.wherry.seccomp"].startswith("{")
    for bad in (
        {"annotations": {"io.wherry.seccomp": "unconfined"}},
        {"hooks": {"onStart": []}},
        {"hooks": {"prestart": [{"path": "x"}]}},
        {"seccomp": "nonsense"},
        {"seccomp": "[]"},
    ):
        with pytest.raises(Invalid):
            spec(**bad)


def test_exec_keeps_the_containers_confinement() -> None:
    base = spec(cap_drop=("ALL",), no_new_privileges=True)["process"]
    made = exec_process(base, ExecRequest(("id",), user="5"), user="app", default_capabilities=DEFAULT_CAPABILITIES)
    assert made["capabilities"]["bounding"] == []
    assert made["noNewPrivileges"] is True
    assert made["user"]["username"] == "5"
    made = exec_process(
        base, ExecRequest(("id",), privileged=True), user="app", default_capabilities=DEFAULT_CAPABILITIES
    )
    assert set(made["capabilities"]["bounding"]) == set(held_capabilities())
    assert made["user"]["username"] == "app"
    with pytest.raises(Invalid):
        exec_process(base, ExecRequest(()), user="", default_capabilities=())


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d["process"].update(cwd=3), "/process/cwd: is int, not str"),
    (lambda d: d["process"].update(cwd="x"), "/process/cwd"),
    (lambda d: d["mounts"].append({"type": "x"}), 'lacks "destination"'),
    (lambda d: d["linux"]["resources"].update(memory={"limit": "3"}), "/linux/resources/memory/limit: is str, not int"),
    (lambda d: d["process"]["user"].update(uid=True), "/process/user/uid: is bool, not int"),
    (lambda d: d.pop("root"), 'lacks "root"'),
    (lambda d: d["mounts"][1].update(options=[1]), "/mounts/1/options/0"),
    (lambda d: d["linux"]["namespaces"].append({"type": "x"}), "/linux/namespaces"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_spec_is_named_by_pointer(change: Callable[[dict[str, Any]], object], message: str) -> None:
    document = copy.deepcopy(spec())
    change(document)
    with pytest.raises(Invalid) as caught:
        runtime.check(document)
    assert message in str(caught.value)
