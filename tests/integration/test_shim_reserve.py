"""What the shim makes ahead: one spare process, one sandbox's namespaces; each used once, and never by a plan that it does not fit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shims import Shimmed, eventually, read_all, shimmed
from wherry.api import Sandbox, Stdio
from wherry.linux import namespaces as ns
from wherry.oci.prefork import shared


@pytest.fixture
def made() -> Iterator[Shimmed]:
    with shimmed() as made:
        yield made


def children(made: Shimmed) -> set[int]:
    pid = made.client.pid
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def spare_of(made: Shimmed) -> int:
    """The pid of the one that waits, once there is one."""
    found: list[int] = []

    def there() -> bool:
        known = {made.client._call("hello")[0]["logger"], *[state.pid for state in made.client.list()]}
        found[:] = children(made) - known
        return len(found) == 1

    eventually(there)
    return found[0]


def output(made: Shimmed, id: str, script: str, sandbox: str = "") -> str:
    """Runs a container to its end: what it wrote."""
    reader, writer = os.pipe()
    made.container(id, script, Stdio(stdout=writer, stderr=writer), sandbox=sandbox)
    os.close(writer)
    made.client.start(id, "")
    said = read_all(reader).decode()
    os.close(reader)
    assert made.exit(id).attributes["code"] == "0", said
    made.client.forget(id, "")
    return said


def test_a_spare_becomes_the_next_container(made: Shimmed) -> None:
    first = made.container("a", "exit 3")
    spare = spare_of(made)
    second = made.container("b", 'test $$ = 1 && test "$(ls /dev/pts)" = ptmx && test -c /dev/null && exit 5')
    assert (second.pid, first.pid == second.pid) == (spare, False)
    assert spare_of(made) != spare
    for id, code in (("a", "3"), ("b", "5")):
        made.client.start(id, "")
        assert made.exit(id).attributes["code"] == code
        made.client.forget(id, "")


def test_each_has_namespaces_and_devices_of_its_own(made: Shimmed) -> None:
    seen: set[str | int] = set()
    for number in range(4):
        pid = made.container(f"c{number}", "test ! -e /dev/mark && touch /dev/mark").pid
        spare_of(made)
        seen |= {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "mnt", "net", "ipc", "uts")}
        seen |= {os.stat(f"/proc/{pid}/root/{name}").st_dev for name in ("dev", "dev/pts", "proc")}
    assert len(seen) == 4 * 8
    for number in range(4):
        made.client.start(f"c{number}", "")
        assert made.exit(f"c{number}").attributes["code"] == "0"
        made.client.forget(f"c{number}", "")


def test_a_spare_sees_and_holds_the_mounts_of_the_moment(made: Shimmed, tmp_path: Path) -> None:
    output(made, "a", "true")
    spare_of(made)
    subprocess.run(["mount", "-t", "tmpfs", "late", tmp_path], check=True)
    try:
        (tmp_path / "file").write_text("here")
        assert output(made, "b", f"cat {tmp_path}/file") == "here"
        spare_of(made)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert str(tmp_path) not in Path(f"/proc/{spare_of(made)}/mountinfo").read_text()


def test_a_spare_holds_no_descriptor_of_others(made: Shimmed) -> None:
    made.container("a", "exit 0")
    spare = Path(f"/proc/{spare_of(made)}/fd")

    def own() -> bool:
        try:
            links = [os.readlink(entry) for entry in spare.iterdir()]
        except FileNotFoundError:  # it is not ready yet
            return False
        foreign = [link for link in links if link.startswith(("pipe:", "net:", "/sys/"))]
        return not foreign and len([link for link in links if link.startswith("socket:")]) == 1

    eventually(own)
    made.client.start("a", "")
    made.exit("a")
    made.client.forget("a", "")


def test_a_spare_that_was_killed_is_not_missed(made: Shimmed) -> None:
    output(made, "a", "true")
    spare = spare_of(made)
    os.kill(spare, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{spare}").exists())
    assert output(made, "b", "echo well") == "well\n"
    assert spare_of(made) != spare


def test_a_spare_ends_with_its_shim() -> None:
    with shimmed() as made:
        output(made, "a", "true")
        spare = spare_of(made)
    eventually(lambda: not Path(f"/proc/{spare}").exists())


def test_sandboxes_in_reserve_are_named_and_never_given_twice(made: Shimmed) -> None:
    seen: set[int] = set()
    for number in range(4):
        made.client.create_sandbox(Sandbox(f"box{number}", hostname=f"host{number}"))
        assert output(made, f"c{number}", "hostname", sandbox=f"box{number}") == f"host{number}\n"
        spare_of(made)
        for kind in ("net", "ipc", "uts"):
            fd = made.client.namespace(f"box{number}", kind)
            seen.add(os.fstat(fd).st_ino)
            os.close(fd)
    assert len(seen) == 12
    assert socket.gethostname() not in {f"host{number}" for number in range(4)}


STEPS = [
    ["setsid"], ["mount", "/proc", "proc", [], 0, 0], ["mount", "/dev", "tmpfs", [["mode", "755"]], 0, 0],
    ["mount", "/sys", "sysfs", [], 0, 0], ["devices", [["/dev/null", 8630, 1, 3, 0, 0]]], ["bounding", 1], ["created"],
]  # fmt: skip


def names(*extra: list[object], **fields: object) -> list[str] | None:
    plan = {"flags": ns.NEWPID | ns.NEWNS, "steps": [*STEPS, *extra], **fields}
    found = shared(plan)
    return None if found is None else [step[0] for step in found]


def test_what_is_done_ahead_is_what_every_container_has() -> None:
    assert names() == ["setsid", "mount", "mount", "devices", "bounding"]
    assert names(["bind", 0, "/dev/null", 0, 0, 0, 0]) == ["setsid", "mount", "mount", "bounding"]
    assert names(["link", "there", "/dev/here"]) == ["setsid", "mount", "mount", "bounding"]
    assert names(["devices", [["/srv/node", 8630, 1, 3, 0, 0]]]) == ["setsid", "mount", "mount", "bounding"]
    assert names(["timens", [["monotonic", 1, 0]]]) == ["setsid", "mount", "mount", "devices", "bounding"]
    for unfit in (["userns"], ["enter", 1], ["hooks", "createContainer", [], "{}"]):
        assert names(unfit) is None
    for fields in (
        {"flags": ns.NEWNS},
        {"flags": ns.NEWPID},
        {"join": ["/proc/1/ns/pid"]},
        {"target": "c"},
        {"how": "spawn"},
    ):
        assert names(**fields) is None
