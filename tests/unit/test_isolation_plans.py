"""A plan from a template is the plan that compiling anew gives, whatever names the container bears."""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from wherry.api import Mount, RunRequest
from wherry.engine.containers import specs
from wherry.kit.isolation.plans import KEPT, PlanTemplates
from wherry.oci import compile
from wherry.oci.errors import SpecError


class Counting:
    """Compiles for a host with one cgroup hierarchy, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self, id: str, spec: Mapping[str, Any], rootfs: Sequence[Mount], bundle: str, sandboxed: bool
    ) -> compile.Compiled:
        self.count += 1
        host = compile.HostFacts(sandboxed=sandboxed, cgroup_binds=[("pids", f"/sys/fs/cgroup/pids/w/{id}")])
        return compile.container(id, spec, rootfs, host, bundle=bundle)


def spec_of(id: str, **request: Any) -> dict[str, Any]:
    wish = RunRequest(image="i", command=("true", id, "word"), **request)
    inputs = specs.SpecInputs(id, {}, wish, id[:12], f"/w/{id}", Path(f"/run/w/bundles/{id}"))
    return specs.build(inputs).spec


def overlay(number: int, lower: str = "/l/1/fs") -> tuple[Mount]:
    options = (f"lowerdir={lower}", f"upperdir=/s/{number}/fs", f"workdir=/s/{number}/work", "metacopy=off")
    return (Mount("overlay", "overlay", "", options),)


def parts(compiled: compile.Compiled) -> dict[str, Any]:
    found = {name: copy.deepcopy(getattr(compiled, name)) for name in compile.Compiled.__slots__ if name != "steps"}
    found["steps"] = [(type(step), json.dumps(step.encode())) for step in compiled.steps]
    return found


HOOKS = {"createContainer": [{"path": "/bin/true"}], "poststop": [{"path": "/bin/true", "env": ["A=b"]}]}


@pytest.mark.parametrize("request_", [{}, {"tty": True}, {"hooks": HOOKS}, {"hostname": "here"}], ids=str)
@pytest.mark.parametrize("sandboxed", [True, False])
def test_a_template_gives_what_compiling_gives(request_: dict[str, Any], sandboxed: bool) -> None:
    plans, counting, direct = PlanTemplates(), Counting(), Counting()
    for number in range(5):
        id = secrets.token_hex(32)
        spec, root, bundle = spec_of(id, **request_), overlay(number), f"/run/w/bundles/{id}"
        made = plans.compiled(counting, id, spec, root, bundle, sandboxed)
        assert parts(made) == parts(direct(id, spec, root, bundle, sandboxed))
    assert counting.count == 1


def test_binds_have_their_own_root() -> None:
    plans, counting, direct = PlanTemplates(), Counting(), Counting()
    for number in range(3):
        id = secrets.token_hex(32)
        root = (Mount("bind", f"/s/{number}", "", ("rbind", "rw")),)
        made = plans.compiled(counting, id, spec_of(id), root, "/b", True)
        assert parts(made) == parts(direct(id, spec_of(id), root, "/b", True))
    assert counting.count == 1


def test_what_differs_is_compiled_anew() -> None:
    plans, counting = PlanTemplates(), Counting()
    id = secrets.token_hex(32)
    plans.compiled(counting, id, spec_of(id), overlay(1), "/b", True)
    plans.compiled(counting, id, spec_of(id), overlay(1), "/b", False)
    plans.compiled(counting, id, spec_of(id, tty=True), overlay(1), "/b", True)
    plans.compiled(counting, id, spec_of(id), overlay(1, "/l/2/fs"), "/b", True)
    plans.compiled(counting, id, spec_of(id), overlay(1), "/other", True)
    assert counting.count == 5


def test_an_id_of_another_form_is_compiled_as_it_is() -> None:
    plans, counting = PlanTemplates(), Counting()
    for _ in range(2):
        made = plans.compiled(counting, "web", spec_of("web"), overlay(1), "/b", True)
        assert ("keyring", "_ses.web") in [step.encode() for step in made.steps]
    assert counting.count == 2


def test_an_error_names_the_container_and_not_the_template() -> None:
    plans = PlanTemplates()
    id = secrets.token_hex(32)
    spec = spec_of(id)
    spec["mounts"].append({"destination": f"/../{id}", "type": "tmpfs"})
    with pytest.raises(SpecError, match=id):
        plans.compiled(Counting(), id, spec, overlay(1), "/b", True)


def test_a_plan_does_not_change_with_another() -> None:
    plans, counting = PlanTemplates(), Counting()
    first, second = secrets.token_hex(32), secrets.token_hex(32)
    made = plans.compiled(counting, first, spec_of(first), overlay(1), "/b", True)
    before = parts(made)
    other = plans.compiled(counting, second, spec_of(second), overlay(2), "/b", True)
    assert parts(made) == before
    assert first not in str(parts(other))


def test_only_some_are_kept() -> None:
    plans, counting = PlanTemplates(), Counting()
    for number in range(KEPT + 3):
        id = secrets.token_hex(32)
        plans.compiled(counting, id, spec_of(id, hostname=f"h{number}"), overlay(1), "/b", True)
    assert len(plans._templates) <= KEPT
