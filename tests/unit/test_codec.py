"""Records as they are stored: by name or by position, and what an older or a newer version wrote."""

from __future__ import annotations

import json

import attrs
import pytest

from wherry.api import Attachment, AttachRequest, Bind, EndpointConfig, Port, Reservation, RunRequest
from wherry.engine.containers.records import ContainerRecord, MountedVolume, pack_request, unpack_record, unpack_request
from wherry.engine.networks.endpoints import SandboxEndpoint, pack_endpoints, unpack_endpoints
from wherry.kit.codec import by_position, restore

REQUEST = RunRequest(
    "x", ("a", "b"), ports=(Port(80, host_port=8080),), mounts=(Bind("bind", "/a", "/b", ("ro",)), Bind("tmpfs", "", "/t")),
    networks=(EndpointConfig("n", ("alias",), ("10.0.0.2",)),), ulimits=(("nofile", 1, 2),), labels={"a": "b"}, cpus=1.5,
    oom_score_adj=-5, hooks={"prestart": [{"path": "/x", "args": ["x"]}]}, options={"free": {"form": [1, None]}},
)  # fmt: skip
ATTACHMENT = Attachment(
    Reservation(AttachRequest("s", "n", names=("one",), ports=REQUEST.ports), addresses=("10.0.0.2/24",), ports=REQUEST.ports),
    mac="02:00:00:00:00:01", addresses=("10.0.0.2/24",), gateways=("10.0.0.1",),
)  # fmt: skip


def test_records_by_name_and_by_position() -> None:
    assert restore(Attachment, json.loads(json.dumps(attrs.asdict(ATTACHMENT)))) == ATTACHMENT
    assert restore(Attachment, json.loads(json.dumps(ATTACHMENT, default=by_position))) == ATTACHMENT
    assert json.dumps((Port(80), {"b", "a"}), default=by_position) == '[[80, "tcp", "", 0, 0], ["a", "b"]]'
    with pytest.raises(TypeError, match="not plain data: object"):
        json.dumps(object(), default=by_position)


def test_requests_and_records_come_back_as_they_were() -> None:
    assert unpack_request(pack_request(REQUEST)) == REQUEST
    assert unpack_request(pack_request(RunRequest("x"))) == RunRequest("x")
    volumes = (MountedVolume("v", "local", "/v", ("ro",), True),)
    record = ContainerRecord(
        "1" * 64, "n", "x", command=("a",), volumes=volumes, ports=REQUEST.ports, uids=((0, 1, 2),)
    )
    again = unpack_record(record.pack())
    assert again.pack() == record.pack()
    assert (again.volumes, again.ports, again.uids, again.gids) == (volumes, REQUEST.ports, ((0, 1, 2),), ())


def test_what_other_versions_wrote() -> None:
    assert unpack_endpoints('[["one", "bridge"]]') == (SandboxEndpoint("one", "bridge"),)
    places = (SandboxEndpoint("one", "bridge", "eth0", ("n",), ("10.0.0.2/24",), host="10.0.0.1"),)
    assert unpack_endpoints(pack_endpoints(places)) == places
    assert unpack_endpoints(json.dumps([[*json.loads(pack_endpoints(places))[0], "of a newer one"]])) == places
    assert restore(Port, {"container_port": 80, "of a newer one": 1}) == Port(80)
    assert unpack_record('{"id": "1", "name": "n", "image": "x", "of a newer one": 1}').name == "n"
