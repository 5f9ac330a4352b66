"""network/cni against the CNI specification, with a plugin that notes how it is called."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.drivers import Died, Driven, driven, killed_everywhere
from support.shims import eventually
from wherry.api import (
    AttachRequest,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InUse,
    Invalid,
    NetworkConfig,
    NotFound,
    Port,
    Reservation,
    Unavailable,
)
from wherry.kit.networks import ports
from wherry.kit.networks.records import AttachmentFiles
from wherry.kit.programs import Programs
from wherry_plugins.network.cni.chain import Chain

PLUGIN = Path(__file__).parent.parent / "support/cni_plugin.py"


class Lab:
    """A configuration directory, a plugin "noting", and what was asked of it."""

    def __init__(self, directory: Path) -> None:
        self.conf = directory / "net.d"
        self.bin = directory / "bin"
        self.note = directory / "calls"
        self.conf.mkdir()
        self.bin.mkdir()
        shutil.copy(PLUGIN, self.bin / "noting")
        (self.bin / "noting").chmod(0o755)
        self.made: Driven

    def write(self, *plugins: dict[str, Any], name: str = "lab", file: str = "10-lab.conflist", **more: Any) -> None:
        body = {
            "cniVersion": "1.1.0",
            "name": name,
            "plugins": [{"type": "noting", "note": str(self.note), **plugin} for plugin in plugins],
        }
        (self.conf / file).write_text(json.dumps({**body, **more}))

    def calls(self, *commands: str) -> list[dict[str, Any]]:
        """In their order."""
        if not self.note.exists():
            return []
        found = [json.loads(line) for line in self.note.read_text().splitlines()]
        return [call for call in found if not commands or call["command"] in commands]

    def told(self, *commands: str) -> list[str]:
        return [f"{call['command']} {call['plugin']}" for call in self.calls(*commands)]

    def options(self, **more: Any) -> dict[str, Any]:
        return {"conf_dirs": (str(self.conf),), "bin_dirs": (str(self.bin),), **more}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    with driven("cni", lab.options()) as made:
        lab.made = made
        yield lab


def request(id: str = "s-1", **wishes: Any) -> AttachRequest:
    return AttachRequest(id, "lab", names=(id, "alias"), **wishes)


def inode(made: Driven, id: str) -> int:
    fd = made.shim.namespace(id, "net")
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_a_chain(lab: Lab) -> None:
    """Sections 2 and 3: ADD in the list's order, each with the result before it; DEL in the reverse order with the last result."""
    lab.write(
        {"label": "a", "capabilities": {"portMappings": True, "unknown": True}, "own": [1]},
        {"label": "b", "capabilities": {"aliases": True, "portMappings": False}},
        {"label": "c"},
    )
    made = lab.made.attached("lab", "s-1", ports=(Port(80, host_ip="127.0.0.1"),))
    assert (made.addresses, made.gateways, made.nameservers) == (("10.1.0.2/24",), ("10.1.0.1",), ("10.1.0.53",))
    assert made.mac == "02:00:00:00:00:01"
    lab.made.open().check("s-1", "lab")
    driver = lab.made.reopen()  # a restart
    driver.check("s-1", "lab")
    driver.detach("s-1", "lab")
    driver.detach("s-1", "lab")
    assert lab.told("ADD", "CHECK", "DEL") == [
        "ADD a", "ADD b", "ADD c", "CHECK a", "CHECK b", "CHECK c", "CHECK a", "CHECK b", "CHECK c", "DEL c", "DEL b", "DEL a",
    ]  # fmt: skip
    calls = lab.calls("ADD", "CHECK", "DEL")
    assert len({call["netns"] for call in calls}) == 1, "plugins compare it with what is in their result"
    assert {call["inode"] for call in calls} == {inode(lab.made, "s-1")}
    assert {(call["container"], call["interface"]) for call in calls} == {("s-1", "eth0")}
    first, second, third = (call["config"] for call in calls[:3])
    (mapping,) = first["runtimeConfig"]["portMappings"]
    assert mapping == {"hostPort": mapping["hostPort"], "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}
    assert mapping["hostPort"] > 0
    assert second["runtimeConfig"] == {"aliases": ["s-1"]}
    assert "runtimeConfig" not in third
    assert (first["own"], first["name"], first["cniVersion"]) == ([1], "lab", "1.1.0")
    assert "capabilities" not in first
    assert "prevResult" not in first
    assert all("prevResult" in call["config"] for call in calls[1:])
    assert all(call["config"]["runtimeConfig"] == first["runtimeConfig"] for call in calls if call["plugin"] == "a")


def test_one_that_fails(lab: Lab) -> None:
    lab.write(
        {"label": "a"},
        {"label": "b", "do": {"ADD": {"error": {"code": 7, "msg": "bad colour", "details": "no such pink"}}}},
        {"label": "c"},
    )
    with pytest.raises(Invalid) as caught:
        lab.made.attached("lab", "s-1")
    assert str(caught.value) == 'CNI plugin "noting" (ADD, network "lab"): bad colour (code 7): no such pink'
    assert lab.told("ADD", "DEL") == ["ADD a", "ADD b", "DEL c", "DEL b", "DEL a"]
    lab.made.open().detach("s-1", "lab")
    assert len(lab.told("DEL")) == 3, "it has been undone"
    assert not lab.made.open().inspect("lab")[1]


@pytest.mark.parametrize(
    ("do", "error", "says"),
    [
        ({"error": {"code": 11, "msg": "busy"}}, Unavailable, "busy (code 11); try again"),
        ({"error": {"code": 1, "msg": "too new"}}, Invalid, "too new (code 1)"),
        ({"error": {"code": 100, "msg": "own"}}, Error, "own (code 100)"),
        ({"text": "no json", "code": 3}, Error, "ended with status 3: no json"),
        ({"text": "no json"}, Error, "its result is no JSON object: no json"),
        ({"text": "[]"}, Error, "its result is no JSON object"),
        ({"text": ""}, Error, "its result is no JSON object: nothing"),
    ],
)
def test_errors(lab: Lab, do: dict[str, Any], error: type[Error], says: str) -> None:
    lab.write({"do": {"ADD": do}})
    with pytest.raises(error) as caught:
        lab.made.attached("lab", "s-1")
    assert says in str(caught.value)
    assert lab.told("DEL")


def test_delete_that_fails_is_tried_again(lab: Lab) -> None:
    lab.write({"label": "a"}, {"label": "b", "do": {"DEL": {"error": {"code": 5, "msg": "no"}}}})
    lab.made.attached("lab", "s-1")
    for _ in range(2):
        with pytest.raises(Error, match="no"):
            lab.made.open().detach("s-1", "lab")
    with pytest.raises(InUse):
        lab.made.open().reserve(request())
    path = next((lab.made.context.root / "attached").iterdir())
    data = json.loads(path.read_text())
    data["conflist"]["plugins"][1]["do"] = {}
    path.write_text(json.dumps(data))
    assert lab.made.open().gc(()) == 1
    assert lab.told("DEL")[-2:] == ["DEL b", "DEL a"]


def test_delete_when_the_namespace_is_gone(lab: Lab) -> None:
    lab.write({})
    lab.made.attached("lab", "s-1")
    lab.made.shim.remove_sandbox("s-1")
    lab.made.open().detach("s-1", "lab")
    (call,) = lab.calls("DEL")
    assert call["netns"] == ""
    assert call["config"]["prevResult"]["ips"]


def test_the_list_as_it_was_is_undone(lab: Lab) -> None:
    lab.write({"label": "old"})
    lab.made.attached("lab", "s-1")
    lab.write({"label": "new"})
    lab.made.attached("lab", "s-2")
    lab.made.open().detach("s-1", "lab")
    (lab.conf / "10-lab.conflist").unlink()
    lab.made.open().detach("s-2", "lab")
    assert lab.told("ADD", "DEL") == ["ADD old", "ADD new", "DEL old", "DEL new"]


# what ends and what does not


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_that_hangs(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    left = tmp_path / "left"
    with driven("cni", lab.options(timeout=5.0)) as lab.made:
        lab.write({"do": {"ADD": {"hang": True, "leave": str(left)}}}, cniVersion="1.0.0")
        with pytest.raises(DeadlineExceeded, match="5 seconds"):
            lab.made.attached("lab", "s-1")
        assert lab.told("ADD", "DEL") == ["ADD ", "DEL "]
        eventually(lambda: not alive(int(left.read_text())), 30)


def test_one_that_leaves_a_process(lab: Lab, tmp_path: Path) -> None:
    left = tmp_path / "left"
    lab.write({"do": {"ADD": {"leave": str(left)}}})
    assert lab.made.attached("lab", "s-1").addresses
    eventually(lambda: not alive(int(left.read_text())), 30)


def test_what_a_killed_engine_was_running(lab: Lab) -> None:
    """The next one's gc ends it."""
    started = Programs(lab.made.shim, lab.made.context.id).start("old", ["/bin/sleep", "1000"])
    lab.made.reopen().gc(())
    assert not alive(started.pid)


# STATUS, CHECK, GC, VERSION


def test_status_is_asked_before_anything(lab: Lab) -> None:
    """Section 2, "STATUS": 50 is not available, 51 has limited connectivity."""
    for code in (50, 51):
        lab.write({"label": "a"}, {"label": "b", "do": {"STATUS": {"error": {"code": code, "msg": "not yet"}}}})
        with pytest.raises(Unavailable, match="not yet"):
            lab.made.open().reserve(request())
    assert lab.told() == ["STATUS a", "STATUS b"] * 2
    assert not list((lab.made.context.root / "attached").iterdir())
    lab.write({"label": "a", "do": {"STATUS": {"error": {"code": 50, "msg": "no"}}}}, cniVersion="1.0.0")
    assert lab.made.open().reserve(request()), "nobody is asked before 1.1"


def test_check_tells_what_a_plugin_found(lab: Lab) -> None:
    lab.write({"do": {"CHECK": {"error": {"code": 101, "msg": "the address is gone"}}}})
    lab.made.attached("lab", "s-1")
    with pytest.raises(FailedPrecondition, match="the address is gone"):
        lab.made.open().check("s-1", "lab")
    lab.made.open().detach("s-1", "lab")
    lab.write({"do": {"CHECK": {"error": {"code": 101, "msg": "no"}}}}, disableCheck=True)
    lab.made.attached("lab", "s-1")
    lab.made.open().check("s-1", "lab")


def test_gc_names_the_valid_attachments(lab: Lab) -> None:
    lab.write({"label": "a"}, {"label": "b"})
    lab.write({"label": "off"}, name="off", file="20.conflist", disableGC=True)
    lab.write({"label": "old"}, name="old", file="30.conflist", cniVersion="1.0.0")
    for id in ("s-1", "s-2", "s-3"):
        lab.made.attached("lab", id)
    assert lab.made.open().gc({"s-2"}) == 2
    assert lab.told("GC") == ["GC a", "GC b"]
    for call in lab.calls("GC"):
        kept = [{"containerID": "s-2", "ifname": "eth0"}]
        assert call["config"]["cni.dev/valid-attachments"] == kept
        assert call["config"]["cni.dev/attachments"] == kept
        assert (call["container"], call["netns"]) == ("", "")


def test_gc_goes_on_after_an_error(lab: Lab) -> None:
    lab.write({"label": "a", "do": {"GC": {"error": {"code": 5, "msg": "stuck"}}}}, {"label": "b"})
    lab.made.attached("lab", "s-1")
    with pytest.raises(Error, match="stuck"):
        lab.made.open().gc(())
    assert lab.told("GC", "DEL") == ["DEL b", "DEL a", "GC a", "GC b"]
    (lab.conf / "10-lab.conflist").unlink()


def added_beside_gc(lab: Lab, monkeypatch: pytest.MonkeyPatch, seconds: float) -> bool:
    """Whether an attach that begins while plugins collect has called a plugin by then; it may take so long."""
    lab.write({})
    driver = lab.made.open()
    reservation, sandbox = driver.reserve(request()), lab.made.sandbox("s-1", "")
    attach = threading.Thread(target=lambda: driver.attach(reservation, sandbox))
    found = []
    real = Chain.collect

    def collect(*arguments: Any) -> None:
        attach.start()
        end = time.monotonic() + seconds
        while not lab.told("ADD") and time.monotonic() < end:
            time.sleep(0.01)
        found.append(bool(lab.told("ADD")))
        real(*arguments)

    monkeypatch.setattr(Chain, "collect", collect)
    driver.gc({"s-1"})
    attach.join(60)
    monkeypatch.undo()
    driver.check("s-1", "lab")
    return found[0]


def test_no_add_beside_gc(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not added_beside_gc(lab, monkeypatch, 1)
    assert lab.told("ADD", "GC") == ["GC ", "ADD "]


def test_without_the_locks_there_is(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.made.open()._busy = (contextlib.nullcontext(),) * 64
    assert added_beside_gc(lab, monkeypatch, 30)


def test_versions(lab: Lab, tmp_path: Path) -> None:
    lab.write({}, cniVersion="0.4.0", cniVersions=["0.4.0", "1.1.0", "9.0.0"])
    lab.made.attached("lab", "s-1")
    assert lab.calls("ADD")[0]["config"]["cniVersion"] == "1.1.0"
    other = tmp_path / "other.conflist"
    other.write_text(
        json.dumps({"cniVersion": "0.3.1", "name": "x", "plugins": [{"type": "noting", "note": "/dev/null"}]})
    )
    with pytest.raises(Invalid, match=r"does not speak CNI 0\.3\.1, but 0\.4\.0, 1\.0\.0, 1\.1\.0"):
        lab.made.open().create(NetworkConfig("mine", options={"conflist": str(other)}))
    other.write_text(json.dumps({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "missing"}]}))
    with pytest.raises(NotFound, match='plugin "missing": is in none of'):
        lab.made.open().create(NetworkConfig("mine", options={"conflist": str(other)}))


# the files


def test_what_is_no_list_is_passed_over_and_told(lab: Lab) -> None:
    for name, text in (
        ("00-a.conflist", "{"),
        ("01-b.conflist", "[]"),
        ("02-c.conflist", '{"cniVersion": "9.9.9", "name": "c", "plugins": [{"type": "x"}]}'),
        ("03-d.conflist", '{"cniVersion": "1.0.0", "name": "../d", "plugins": [{"type": "x"}]}'),
        ("04-e.conflist", '{"cniVersion": "1.0.0", "name": "e", "plugins": [{"type": "../x"}]}'),
        ("05-f.conflist", '{"cniVersion": "1.0.0", "name": "f", "plugins": []}'),
        ("06-g.txt", "no list and no JSON"),
    ):
        (lab.conf / name).write_text(text)
    lab.write({})
    lab.write({"label": "second"}, file="99-again.conflist")
    (lab.conf / "50-old.conf").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "lone", "type": "noting", "note": "x"})
    )
    assert [config.name for config in lab.made.open().list()] == ["lab", "lone"]
    with pytest.raises(NotFound) as caught:
        lab.made.open().reserve(AttachRequest("s-1", "c"))
    for word in ("00-a", "01-b", "9.9.9", "../d", "../x", "has no plugins"):
        assert word in str(caught.value)
    assert "06-g" not in str(caught.value)
    lab.made.attached("lab", "s-1")
    assert lab.told("ADD") == ["ADD "], "the first file of that name counts"
    with pytest.raises(Invalid, match="remove that file"):
        lab.made.open().remove("lab")


def test_the_default_one(lab: Lab) -> None:
    with pytest.raises(NotFound):
        lab.made.open().reserve(AttachRequest("s-1", "cni"))
    lab.write({}, name="zz", file="10.conflist")
    lab.write({}, name="aa", file="20.conflist")
    lab.made.attached("cni", "s-1")
    assert lab.calls("ADD")[0]["config"]["name"] == "zz"
    assert lab.made.open().inspect("zz")[1][0].reservation.request.network == "cni"
    lab.made.open().detach("s-1", "cni")
    assert lab.calls("DEL")


# wishes


def test_ports_need_the_capability(lab: Lab) -> None:
    lab.write({})
    with pytest.raises(Invalid, match="portMappings"):
        lab.made.open().reserve(request(ports=(Port(80),)))


@pytest.mark.parametrize("declared", [True, False])
def test_addresses_by_capability_or_by_args(lab: Lab, declared: bool) -> None:
    capabilities = {"ips": True, "mac": True} if declared else {}
    ipam = {"ipam": {"type": "any", "subnet": "10.1.0.0/24"}}
    lab.write({"capabilities": capabilities, "give": ["10.1.0.9/24"], **ipam})
    lab.made.attached("lab", "s-1", addresses=("10.1.0.9",), mac="02:00:00:00:00:01")
    config = lab.calls("ADD")[0]["config"]
    given = config["runtimeConfig"] if declared else config["args"]["cni"]
    assert given == {"ips": ["10.1.0.9/24"], "mac": "02:00:00:00:00:01"}


@pytest.mark.parametrize("wish", [{"addresses": ("10.1.0.77",)}, {"mac": "02:00:00:00:00:77"}])
def test_a_wish_that_no_plugin_heard_is_an_error(lab: Lab, wish: dict[str, Any]) -> None:
    lab.write({})
    with pytest.raises(Invalid, match="no plugin of network"):
        lab.made.attached("lab", "s-1", **wish)
    assert lab.told("ADD", "DEL") == ["ADD ", "DEL "]


# races


def at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], None]) -> None:
    """Does something once, right after the first call of a method."""
    real = getattr(owner, name)
    done = threading.Event()

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        answer = real(*arguments, **keywords)
        if not done.is_set():
            done.set()
            act()
        return answer

    monkeypatch.setattr(owner, name, wrapped)


def test_a_network_that_goes_while_somebody_reserves(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.write({}, name="source", file="x.conflist")
    driver = lab.made.open()
    driver.create(NetworkConfig("lab", options={"conflist": str(lab.conf / "x.conflist")}))
    at(monkeypatch, Chain, "status", lambda: driver.remove("lab"))
    with pytest.raises(NotFound):
        driver.reserve(request())
    assert not list((lab.made.context.root / "attached").iterdir())


def test_a_network_that_is_made_anew_while_somebody_reserves(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.write({"label": "old"})
    at(monkeypatch, Chain, "status", lambda: lab.write({"label": "new"}))
    lab.made.attached("lab", "s-1")
    assert lab.told("ADD") == ["ADD new"]


def test_a_network_in_which_somebody_reserves_stays(lab: Lab) -> None:
    lab.write({}, name="source", file="x.conflist")
    driver = lab.made.open()
    driver.create(NetworkConfig("lab", options={"conflist": str(lab.conf / "x.conflist")}))
    driver.reserve(request())
    with pytest.raises(InUse):
        driver.remove("lab")
    driver.detach("s-1", "lab")
    driver.remove("lab")


def both(lab: Lab, port: Port) -> list[Any]:
    """What 8 reserves of one port at once get."""
    lab.write({"capabilities": {"portMappings": True}}, cniVersion="1.0.0")
    driver = lab.made.open()
    gate = threading.Barrier(8)

    def reserve(number: int) -> Any:
        gate.wait(30)
        try:
            return driver.reserve(request(f"s-{number}", ports=(port,))).ports[0].host_port
        except InUse as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(reserve, range(8)))


def test_no_two_starts_choose_one_port(lab: Lab) -> None:
    found = both(lab, Port(80, host_ip="127.0.0.1"))
    assert len(set(found)) == 8
    taken = Port(80, host_ip="127.0.0.1", host_port=found[0])
    lab.made.open().gc(())
    assert sum(isinstance(one, InUse) for one in both(lab, taken)) == 7


def test_without_the_claims_they_would(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        number = 4711
        protocol = "tcp"

        def close(self) -> None: ...

    monkeypatch.setattr(ports, "bind", lambda *_args, **_options: Fake())
    assert both(lab, Port(80)) == [4711] * 8


@pytest.mark.parametrize("twin", [False, True])
def test_the_first_add_of_a_network_goes_alone(monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """As when plugins are to make what they all use. The twin has begun already."""
    now, most, met = 0, 0, threading.Barrier(4)

    def add(_self: Chain, _conflist: Any, _attached: Any) -> dict[str, Any]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if twin:
            met.wait(30)
        now -= 1
        return {}

    monkeypatch.setattr(Chain, "_add", add)
    chain: Any = Chain(None, (), 1.0)  # type: ignore[arg-type]
    lab = SimpleNamespace(name="lab")
    if twin:
        chain._begun.add("lab")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: chain.add(lab, None), range(4))) == [{}] * 4
    assert most == (4 if twin else 1)


def test_claims_are_held_until_detach_and_over_a_restart(lab: Lab) -> None:
    lab.write({"capabilities": {"portMappings": True}})
    (port,) = lab.made.attached("lab", "s-1", ports=(Port(80, host_ip="127.0.0.1"),)).reservation.ports
    for driver in (lab.made.open(), lab.made.reopen()):
        with pytest.raises(InUse, match=str(port.host_port)):
            driver.reserve(request("s-2", ports=(port,)))
    lab.made.open().detach("s-1", "lab")
    lab.made.open().reserve(request("s-2", ports=(port,)))


# kill -9


STEPS = ((os, "rename"), (os, "fsync"), (os, "unlink"), (os, "symlink"), (Chain, "_call"))


def life(lab: Lab) -> None:
    driver = lab.made.open()
    reservation = driver.reserve(request(ports=(Port(80, host_ip="127.0.0.1"),)))
    driver.attach(reservation, lab.made.sandbox("s-1", ""))
    driver.detach("s-1", "lab")


def test_killed_at_every_step(lab: Lab) -> None:
    """Whatever was added is deleted by the next engine, and nothing is left."""
    lab.write({"label": "a", "capabilities": {"portMappings": True}}, {"label": "b"}, cniVersion="1.0.0")

    def after(step: int) -> None:
        lab.made.reopen().gc(())
        told = lab.told("ADD", "DEL")
        for plugin in "ab":
            mine = [word for word in told if word.endswith(plugin)]
            assert not mine or mine[-1].startswith("DEL"), (step, told)
        assert not list((lab.made.context.root / "attached").glob("*.json")), step
        assert not list((lab.made.context.run / "netns").iterdir()), step
        lab.note.unlink(missing_ok=True)

    assert killed_everywhere(lambda: life(lab), after, STEPS, 3) > 30


def test_a_step_less_and_it_leaks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without the note that DEL has to run, an ADD that was interrupted stays for ever."""
    real = AttachmentFiles.write

    def forgetful(self: AttachmentFiles, key: Any, data: Any) -> None:
        real(self, key, {**data, "added": bool(data.get("attachment"))})

    monkeypatch.setattr(AttachmentFiles, "write", forgetful)
    lab.write({"label": "a", "do": {"ADD": {"text": "{}"}}}, cniVersion="1.0.0")
    reservation: Reservation = lab.made.open().reserve(request())

    def die(*_arguments: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wherry_plugins.network.cni.driver._attachment", die)
        patch.setattr(Chain, "delete", die)
        with pytest.raises(Died):
            lab.made.open().attach(reservation, lab.made.sandbox("s-1", ""))
    lab.made.reopen().gc(())
    assert lab.told("ADD", "DEL") == ["ADD a"]
