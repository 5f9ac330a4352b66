"""Which ids --userns gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wherry.api import FailedPrecondition, IdMap, Invalid
from wherry.engine.containers import userns
from wherry.engine.containers.records import ContainerRecord, unpack_record

ROWS = [(0, 1000, 1), (1, 100000, 400), (401, 200000, 600)]


def record(number: int, *rows: tuple[int, int, int]) -> ContainerRecord:
    return ContainerRecord(id=str(number), name=str(number), image="", uids=rows, gids=rows)


def taken(map: IdMap) -> tuple[int, int]:
    assert map.uids == map.gids
    ((inside, first, size),) = map.uids
    assert inside == 0
    return first, size


@pytest.mark.parametrize("text", ["", "host"])
def test_the_hosts_ids_are_no_map(text: str) -> None:
    assert userns.choose(text, "", []) == IdMap()


@pytest.mark.parametrize(
    "text",
    [
        "private",
        "auto:",
        "auto:size",
        "auto:size=-1",
        "auto:size=x",
        "auto:uid=1",
        "keep-id:size=1",
        "host:x=1",
        "nomap:size=1",
        "AUTO",
    ],
)
def test_nonsense(text: str) -> None:
    if text == "auto:":  # as podman: no option at all
        assert userns.parse(text) == ("auto", {})
        return
    with pytest.raises(Invalid, match="user namespace"):
        userns.parse(text)


def test_ranges_never_overlap_and_are_used_again() -> None:
    records: list[ContainerRecord] = []
    for number in range(10):
        first, size = taken(userns.choose("auto:size=100", "5000:1000", records))
        assert all(first + size <= row[1] or row[1] + row[2] <= first for one in records for row in one.uids)
        assert first >= 5000
        assert first + size <= 6000
        records.append(record(number, (0, first, size)))
    with pytest.raises(FailedPrecondition, match="no 100 ids in a row are left"):
        userns.choose("auto:size=100", "5000:1000", records)
    gone = records.pop(4)
    assert taken(userns.choose("auto:size=100", "5000:1000", records)) == gone.uids[0][1:]
    assert taken(userns.choose("auto:size=40", "5000:1000", records)) == (gone.uids[0][1], 40)


def test_a_gap_between_ranges_is_not_crossed() -> None:
    assert userns._gap([(10, 5), (20, 10)], [], 6) == 20
    assert userns._gap([(10, 5), (20, 10)], [(22, 2)], 6) == 24
    assert userns._gap([(10, 5), (20, 10)], [(12, 1)], 6) == 20
    assert userns._gap([(10, 5)], [(0, 12)], 3) == 12
    assert userns._gap([(10, 5)], [(0, 12)], 4) == -1


def test_twin_without_the_look_at_others_two_are_alike() -> None:
    one = taken(userns.choose("auto:size=100", "5000:1000", []))
    assert one == taken(userns.choose("auto:size=100", "5000:1000", []))


@pytest.mark.parametrize("ranges", ["0:100", "5000", "x:1", "5000:0", "4294967000:1000", "-1:5"])
def test_a_range_with_the_hosts_root_or_none_is_refused(ranges: str) -> None:
    with pytest.raises(FailedPrecondition):
        userns.choose("auto", ranges, [])


def test_ranges_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def ranges(path: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
        asked.append((path, names))
        return [(70000, 65536)]

    monkeypatch.setattr(userns.idmaps, "ranges", ranges)
    assert taken(userns.choose("auto", "", [])) == (70000, 65536)
    assert asked == [("/etc/subuid", ("containers",)), ("/etc/subgid", ("containers",))]
    monkeypatch.setattr(userns.idmaps, "ranges", lambda path, names: [])
    with pytest.raises(FailedPrecondition, match='"/etc/subuid" has no range for "containers"'):
        userns.choose("auto", "", [])


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the namespace of user 1000 with 1000 subordinate ids."""
    monkeypatch.setattr(userns.userns, "confined", lambda: True)
    monkeypatch.setattr(userns.userns, "outer_uid", lambda: 1000)
    monkeypatch.setattr(userns.userns, "id_map", lambda name="uid_map", pid="self": ROWS)


@pytest.mark.usefixtures("confined")
def test_an_ordinary_users_modes() -> None:
    assert userns.choose("nomap", "", []).uids == ((0, 1, 1000),)
    assert userns.choose("keep-id:uid=5,gid=0", "", []) == IdMap(
        ((0, 1, 5), (5, 0, 1), (6, 6, 995)), ((0, 0, 1), (1, 1, 1000))
    )
    assert userns.choose("keep-id", "", []).uids == ((0, 1, 1000), (1000, 0, 1))
    assert taken(userns.choose("auto:size=10", "", [])) == (1, 10)
    assert userns.user_kept("keep-id", userns.choose("keep-id", "", [])) == "1000:1000"
    assert userns.user_kept("auto", IdMap(((0, 1, 5),), ((0, 1, 5),))) == ""


@pytest.mark.usefixtures("confined")
def test_every_id_of_a_kept_map_is_one_of_the_users() -> None:
    for id in (0, 1, 5, 999, 1000, 5000):
        rows = userns.choose(f"keep-id:uid={id},gid={id}", "", []).uids
        assert sum(size for _inside, _outside, size in rows) == 1001
        outside = sorted(outside + offset for _inside, outside, size in rows for offset in range(size))
        assert outside == list(range(1001))
        inside = [inside + offset for inside, _outside, size in rows for offset in range(size)]
        assert len(set(inside)) == len(inside)


def test_a_single_id_has_none_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns.userns, "confined", lambda: True)
    monkeypatch.setattr(userns.userns, "id_map", lambda name="uid_map", pid="self": [(0, 1000, 1)])
    with pytest.raises(FailedPrecondition, match="a single id"):
        userns.choose("auto", "", [])


def spec(**linux: Any) -> dict[str, Any]:
    return {
        "process": {"user": {"uid": 0, "gid": 0, "username": "0"}},
        "mounts": [
            {"destination": "/a", "type": "bind", "source": "/a", "options": ["rbind"]},
            {"destination": "/b", "type": "bind", "source": "/b", "options": ["rbind", "idmap"]},
        ],
        "linux": {"namespaces": [{"type": "pid"}], **linux},
    }


def test_the_spec_has_the_maps() -> None:
    given = spec(sysctl={"net.ipv4.ping_group_range": "0 2147483647"})
    made = userns.fit(given, IdMap(((0, 500, 10),), ((0, 600, 20),)), "")
    assert made["linux"]["namespaces"][-1] == {"type": "user"}
    assert made["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 500, "size": 10}]
    assert made["linux"]["sysctl"] == {"net.ipv4.ping_group_range": "0 19"}
    assert ["uidMappings" in mount for mount in made["mounts"]] == [False, True]
    assert given == spec(sysctl={"net.ipv4.ping_group_range": "0 2147483647"})
    assert userns.fit(given, IdMap(), "") is given


def test_a_record_remembers_its_ids(tmp_path: Path) -> None:
    again = unpack_record(record(1, (0, 500, 10)).pack())
    assert again.idmap == IdMap(((0, 500, 10),), ((0, 500, 10),))
