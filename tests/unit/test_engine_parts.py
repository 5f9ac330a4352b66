"""Database, leases, event bus, names, signals, host files and acks of the engine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from attrs import evolve

from wherry.api import Event, Invalid, RunRequest, Unavailable
from wherry.engine.containers import bundles, hostfiles, names, signals
from wherry.engine.containers.records import ContainerRecord, pack_request, unpack_record, unpack_request
from wherry.engine.networks.endpoints import SandboxEndpoint
from wherry.engine.shim.acks import Acks
from wherry.engine.shim.facade import for_drivers
from wherry.engine.state.database import EngineDatabase
from wherry.engine.state.events import EventBus
from wherry.engine.state.leases import Leases
from wherry.engine.state.ownership import DirectoryLock
from wherry.kit.names import check_name


def test_a_broken_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "wherry.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable, match="restore it from a backup, or move it away"):
        EngineDatabase(path)  # the doctor needs an engine, and there is none without a database


def test_events_have_no_gaps_even_after_a_rollback(tmp_path: Path) -> None:
    seen: list[Event] = []
    database = EngineDatabase(tmp_path / "wherry.db", seen.extend)
    database.publish(Event("a.b", "1", 5))
    with pytest.raises(ZeroDivisionError), database.transaction() as tx:
        tx.event("a.c", "2")
        raise ZeroDivisionError
    with database.transaction() as tx:
        tx.event("a.d", "3", {"k": "v"})
        tx.event("a.e", "4")
    assert [event.sequence for event in seen] == [1, 2, 3]
    assert database.events_after(0) == seen
    assert database.prune_events(1) == 2
    database.close()
    again = EngineDatabase(tmp_path / "wherry.db")
    assert again.publish(Event("a.f", "5", 0)).sequence == 4
    assert again.check() == []
    again.close()


def test_followers_replay_then_follow(tmp_path: Path) -> None:
    bus = EventBus()
    database = EngineDatabase(tmp_path / "wherry.db", bus.deliver)
    for number in range(3):
        database.publish(Event("a.b", str(number), 0))
    assert [event.id for event in bus.follow(database, 1, follow=False)] == ["1", "2"]
    stream = bus.follow(database, 0, follow=True)
    live = bus.follow(database, -1, follow=True)
    assert [next(stream).id for _ in range(3)] == ["0", "1", "2"]
    database.publish(Event("a.b", "3", 0))
    assert next(stream).id == "3"
    assert next(live).id == "3"
    assert next(stream).topic == ""
    for number in range(5000):  # more than a follower's queue: it reads them from the database
        database.publish(Event("a.b", f"n{number}", 0))
    found = [next(stream) for _ in range(5000)]
    assert [event.sequence for event in found] == list(range(5, 5005))
    stream.close()  # type: ignore[attr-defined]
    bus.close()
    assert len(list(live)) >= 0
    database.close()


def test_leases_hold_and_expire(tmp_path: Path) -> None:
    database = EngineDatabase(tmp_path / "wherry.db")
    leases = Leases(database, "one")
    with leases.hold() as lease:
        lease.add("blob/sha256:1")
        assert database.all("SELECT engine FROM leases") == [("one",)]
        with leases.hold() as inner:
            assert inner is lease
            inner.add("blob/sha256:2")
        assert leases.resources() == {"blob/sha256:1", "blob/sha256:2"}
    assert leases.resources() == frozenset()
    assert database.all("SELECT * FROM leases") == []
    with database.transaction() as tx:
        leases.write(tx, "dead")
    assert Leases(database, "two").expire_dead() == 1
    assert database.all("SELECT * FROM leases") == []
    database.close()


def test_leases_of_threads_are_apart(tmp_path: Path) -> None:
    database = EngineDatabase(tmp_path / "wherry.db")
    leases = Leases(database, "one")
    seen = []
    with leases.hold() as lease:
        thread = threading.Thread(target=lambda: seen.append(leases.current()))
        thread.start()
        thread.join()
        assert leases.current() is lease
    assert seen == [None]
    database.close()


def test_one_engine_a_directory(tmp_path: Path) -> None:
    claim = DirectoryLock(tmp_path / "engine.lock", "root")
    with pytest.raises(Unavailable, match=r"an engine with pid [0-9]+ has it"):
        DirectoryLock(tmp_path / "engine.lock", "root")
    claim.close()
    DirectoryLock(tmp_path / "engine.lock", "root").close()


def test_acks_follow_the_slowest() -> None:
    told: list[int] = []
    acks = Acks(told.append)
    for number in (1, 2, 3, 4):
        acks.begin(number)
    acks.done(2)
    acks.done(3)
    assert told == []
    acks.done(1)
    assert told == [3]
    acks.done(4)
    assert told == [3, 4]


def test_requests_and_records_survive_the_database() -> None:
    from wherry.api import Bind, Port

    request = RunRequest(
        image="x",
        command=("a",),
        entrypoint=(),
        env=("A=\udcff", "B="),
        mounts=(Bind("bind", "/a", "/b", ("ro",), True), Bind("tmpfs", "", "/t")),
        ports=(Port(80, "udp", "127.0.0.1", 8080),),
        ulimits=(("nofile", 1, 2),),
        labels={"a": "b"},
        hooks={"prestart": [{"path": "/x"}]},
        cpus=1.5,
    )
    again = unpack_request(pack_request(request))
    assert again == request or again.hooks == {"prestart": [{"path": "/x"}]}
    record = ContainerRecord(
        id="1" * 64, name="n", image="x", ports=request.ports, labels={"a": "b"}, drivers={"store": "s"}
    )
    copy = unpack_record(record.pack(status="running"))
    assert copy.status == "running"
    assert copy.view().ports == record.view().ports


def test_names() -> None:
    seen = {names.random_name() for _ in range(200)}
    assert len(seen) > 150
    for name in seen:
        check_name(name, "container name")
    for bad in ("", "-a", "a b", "a/b", "x" * 129, "a\n"):
        with pytest.raises(Invalid):
            check_name(bad, "container name")
    ids = {names.new_id() for _ in range(100)}
    assert all(len(id) == 64 and not id[:12].isdecimal() for id in ids)


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGKILL", 9), ("sigusr1", 10), ("15", 15), ("RTMIN", 34), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "TURM", "RTMIN+99", "-1", "9x", "\u0663"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(Invalid):
        signals.parse(text)


def test_names_of_others_between_two_marks() -> None:
    peers = [SandboxEndpoint("n", "d", names=("db", "db.n"), addresses=("10.1.2.3/24", "fd00::3/64"))]
    block = hostfiles.names_block(peers)
    assert "10.1.2.3\tdb db.n\nfd00::3\tdb db.n\n" in block
    assert hostfiles.names_block(()) == ""
    text = hostfiles.make(RunRequest(image="x"), hostname="h", peers=peers).hosts
    assert block in text
    without = hostfiles.with_names(text + "192.0.2.9 mine\n", "")
    assert without == hostfiles.make(RunRequest(image="x"), hostname="h").hosts + "192.0.2.9 mine\n"
    assert hostfiles.with_names("192.0.2.9 mine", block) == "192.0.2.9 mine\n" + block
    assert hostfiles.with_names("192.0.2.9 mine", "") == "192.0.2.9 mine"


def test_host_files(tmp_path: Path) -> None:
    request = RunRequest(
        image="x", extra_hosts=("db:10.0.0.9", "six=[::9]"), dns=("9.9.9.9",), dns_search=("a.example",)
    )
    files = hostfiles.make(
        request, hostname="h", places=[SandboxEndpoint("n", "d", names=("web",), addresses=("10.1.2.3/24",))]
    )
    bundles.write(str(tmp_path), files.files())
    hosts = (tmp_path / "hosts").read_text()
    assert "10.1.2.3\th web\n" in hosts
    assert "10.0.0.9\tdb\n" in hosts
    assert "::9\tsix\n" in hosts
    assert (tmp_path / "hostname").read_text() == "h\n"
    gateway = evolve(request, extra_hosts=("me:host-gateway",))
    places = [SandboxEndpoint("n", "d"), SandboxEndpoint("m", "d", host="10.1.2.1")]
    assert "10.1.2.1\tme\n" in hostfiles.make(gateway, hostname="h", places=places).hosts
    assert "203.0.113.1\tme\n" in hostfiles.make(gateway, hostname="h", places=places[:1]).hosts
    assert "127.0.0.1\tme\n" in hostfiles.make(gateway, hostname="h", host=True).hosts
    assert (tmp_path / "resolv.conf").read_text().startswith("nameserver 9.9.9.9\nsearch a.example\n")
    for bad in ({"extra_hosts": ("db",)}, {"extra_hosts": ("db:x",)}, {"dns": ("resolver",)}):
        with pytest.raises(Invalid):
            hostfiles.make(RunRequest(image="x", **bad), hostname="h")  # type: ignore[arg-type]


def test_a_driver_cannot_quit_the_shim() -> None:
    class Whole:
        def __getattr__(self, name: str) -> object:
            return lambda *_arguments: name

    shim = for_drivers(Whole())  # type: ignore[arg-type]
    assert shim.list("c") == "list"
    for name in ("quit", "replace", "ack", "ack_soon", "engine", "events", "close"):
        assert not hasattr(shim, name)
        assert hasattr(Whole(), name)
