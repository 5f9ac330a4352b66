"""Which plans a runner is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wherry.linux import namespaces, process
from wherry.oci.exec_helper import fits


def plan(**changes: Any) -> dict[str, Any]:
    return {"target": "c", "steps": [["enter", 0], ["spawn"]], "cgroups": [], **changes}


def test_what_it_is_for() -> None:
    assert fits(plan())
    assert not fits(plan(target=""))
    assert not fits(plan(join=["/proc/1/ns/net"]))
    assert not fits(plan(steps=[["enter", 0], ["execute"]]))
    assert not fits({})


def test_a_filter_and_cgroup_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's profile answers ENOSYS to clone3(2), and only that puts a process into a cgroup v2 at its birth."""
    filtered = [["enter", 0], ["filter", "", 0], ["spawn"]]
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
    (tmp_path / "v1/tasks").touch()
    v1, v2 = [f"{tmp_path}/v1"], [f"{tmp_path}/v2"]
    assert fits(plan(steps=filtered))
    assert fits(plan(steps=filtered, cgroups=v1))
    assert not fits(plan(steps=filtered, cgroups=v2))
    monkeypatch.setattr(process, "spawns_into_cgroups", lambda: True)
    assert fits(plan(cgroups=v2))
    spaced = [["enter", namespaces.NEWPID | namespaces.NEWCGROUP], ["spawn"]]
    assert fits(plan(steps=spaced, cgroups=v1))
    assert not fits(plan(steps=spaced, cgroups=v2)), "with nsdelegate, ENOENT from within the namespace"
    monkeypatch.setattr(process, "spawns_into_cgroups", lambda: False)
    assert not fits(plan(cgroups=v2))
