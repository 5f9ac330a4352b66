"""What a shim in a user namespace of its own has a child do, since it could not come back itself."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from wherry.linux import namespaces, pidfd
from wherry.oci import execute_root, sandbox


def test_a_descriptor_comes_back() -> None:
    reader, writer = os.pipe()
    try:
        fd = sandbox.elsewhere({}, lambda: writer)
        os.write(fd, b"x")
        assert os.read(reader, 1) == b"x"
        os.close(fd)
        assert sandbox.elsewhere({}, lambda: None) == -1
    finally:
        os.close(reader)
        os.close(writer)


def test_an_error_comes_back() -> None:
    def fails() -> None:
        raise OSError(13, "denied")

    with pytest.raises(PermissionError):
        sandbox.elsewhere({}, fails)

    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(OSError):
        sandbox.elsewhere({}, dies)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")
def test_the_child_is_elsewhere_and_this_process_is_not() -> None:
    here = os.readlink("/proc/self/ns/net")
    made = sandbox.make_sandbox({"netns": "", "ipc": False, "uts": True, "hostname": "first"})
    try:
        sandbox.elsewhere({made["uts"]: namespaces.NEWUTS}, lambda: socket.sethostname("second"))
        fd = sandbox.elsewhere(
            {made["net"]: namespaces.NEWNET}, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
        )
        with socket.socket(fileno=fd) as sock:
            with pytest.raises(OSError):  # nothing but lo is there, and no route
                sock.connect(("198.51.100.1", 9))
        name = sandbox.elsewhere({made["uts"]: namespaces.NEWUTS}, _hostname)
        with os.fdopen(name, "rb") as file:
            assert file.read() == b"second"
    finally:
        for fd in made.values():
            os.close(fd)
    assert os.readlink("/proc/self/ns/net") == here
    assert socket.gethostname() != "second"


def _hostname() -> int:
    fd = os.memfd_create("name")
    os.write(fd, socket.gethostname().encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@pytest.mark.skipif(os.geteuid() != 0, reason="makes user namespaces")
@pytest.mark.parametrize("what", ["sandbox", "idmap"])
def test_a_child_that_waits_ends_with_who_made_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim killed between the clone and the kill: nobody would ever end the child."""
    reader, writer = os.pipe()

    def halt(pid: int, *_arguments: object) -> None:
        os.write(writer, str(pid).encode())
        signal.pause()

    module = sandbox if what == "sandbox" else execute_root
    monkeypatch.setattr(module.namespaces, "write_id_maps", halt)
    parent = os.fork()
    if parent == 0:
        try:
            rows = ((0, 5_000_000, 10),)
            if what == "sandbox":
                sandbox.make_sandbox({"idmap": {"uids": rows, "gids": rows}})
            else:
                execute_root.idmapped_userns(rows, rows)
        finally:
            os._exit(0)
    try:
        child = pidfd.open(int(os.read(reader, 16)))
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            try:
                pidfd.send_signal(child, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        pidfd.send_signal(child, signal.SIGKILL)
        pytest.fail("it goes on")
    finally:
        os.close(child)
