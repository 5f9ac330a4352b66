"""A spec from a template is the spec that building anew gives."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from wherry.api import Bind, Invalid, RunRequest
from wherry.engine.containers import specs
from wherry.engine.containers.records import pack_request
from wherry.engine.containers.specs.templates import KEPT, SpecTemplates

IMAGE = {"Env": ["A=b", "PATH=/bin"], "Cmd": ["true"], "WorkingDir": "/work"}


def inputs_of(
    id: str, request: RunRequest, *, hostname: str = "", network: str = "own", sandbox: str = ""
) -> specs.SpecInputs:
    files = Path("/run/w/bundles") / (sandbox or id)
    return specs.SpecInputs(id, IMAGE, request, hostname or id[:12], f"/wherry-1/{id}", files, network)


def built(templates: SpecTemplates, inputs: specs.SpecInputs) -> specs.EncodedSpec:
    return templates.build(inputs, "sha256:1", pack_request(inputs.request, named=False))


REQUESTS: list[dict[str, Any]] = [
    {},
    {"name": "web", "env": ("X=é", "HOSTNAME")},
    {"tty": True, "memory": 64 << 20, "cap_add": ("NET_RAW",), "pids_limit": 9},
    {"annotations": {"a/b": "c"}, "user": "1:2", "read_only": True, "hooks": {"poststop": [{"path": "/bin/true"}]}},
    {"mounts": (Bind("bind", "/etc", "/mnt"),)},
    {"privileged": True},
]


@pytest.mark.parametrize("wish", REQUESTS, ids=lambda wish: " ".join(wish))
@pytest.mark.parametrize(
    "place", [{}, {"hostname": "here"}, {"network": "host"}, {"network": "shared", "sandbox": "f" * 64}]
)
def test_a_template_gives_what_building_gives(wish: dict[str, Any], place: dict[str, Any]) -> None:
    templates = SpecTemplates()
    for _ in range(3):
        inputs = inputs_of(secrets.token_hex(32), RunRequest(image="i", **wish), **place)
        written, direct = built(templates, inputs), specs.build(inputs)
        assert written.spec == json.loads(json.dumps(direct.spec))
        assert written.owners == direct.owners
        assert json.loads(written.text) == written.spec
        assert json.loads(written.owners_text) == written.owners


def test_what_one_container_does_to_its_spec_is_not_seen_by_the_next() -> None:
    templates, request = SpecTemplates(), RunRequest(image="i")
    first = built(templates, inputs_of("a" * 64, request))
    first.spec["process"]["args"].append("more")
    first.owners["/process"] = "me"
    second = built(templates, inputs_of("b" * 64, request))
    assert second.spec["process"]["args"] == ["true"]
    assert "/process" not in second.owners


def test_requests_that_differ_have_templates_of_their_own() -> None:
    templates = SpecTemplates()
    for number in range(2):
        for command in (("true",), ("false",)):
            written = built(
                templates, inputs_of(secrets.token_hex(32), RunRequest(image="i", command=command, name=f"n{number}"))
            )
            assert written.spec["process"]["args"] == list(command)
    assert len(templates._kept) == 2


def test_another_image_has_a_template_of_its_own() -> None:
    templates, request = SpecTemplates(), RunRequest(image="i")
    one = inputs_of("a" * 64, request)
    other = specs.SpecInputs("b" * 64, {"Cmd": ["false"]}, request, "b" * 12, "/w/x", None)
    templates.build(one, "sha256:1", pack_request(request))
    assert templates.build(other, "sha256:2", pack_request(request)).spec["process"]["args"] == ["false"]


def test_the_hosts_files_are_looked_at_each_time(tmp_path: Path) -> None:
    templates = SpecTemplates()
    source = tmp_path / "data"
    source.mkdir()
    request = RunRequest(image="i", mounts=(Bind("bind", str(source), "/data"),))
    built(templates, inputs_of("a" * 64, request))
    source.rmdir()
    with pytest.raises(Exception, match="no such file"):
        built(templates, inputs_of("b" * 64, request))


def test_a_request_that_can_not_be_is_refused_each_time() -> None:
    templates = SpecTemplates()
    for _ in range(2):
        with pytest.raises(Invalid, match="sysctl"):
            built(templates, inputs_of(secrets.token_hex(32), RunRequest(image="i", sysctls={"kernel.panic": "1"})))
    assert not templates._kept


def test_only_some_are_kept() -> None:
    templates = SpecTemplates()
    for number in range(KEPT + 2):
        built(
            templates,
            inputs_of(secrets.token_hex(32), RunRequest(image="i", hostname=f"h{number}"), hostname=f"h{number}"),
        )
    assert len(templates._kept) <= KEPT
