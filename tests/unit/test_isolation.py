"""The checks that stand around every test, themselves checked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import images, isolation, leaks

pytestmark = pytest.mark.skipif(not isolation.isolated(), reason=f"no namespaces for tests: {isolation.refused()}")


def test_this_process_is_alone_in_its_namespaces() -> None:
    assert os.getppid() <= os.getpid() < 100
    assert [name for name in leaks.links() if name != "lo"] == []


def test_loopback_is_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


@pytest.mark.parametrize("kind", ["process", "mount", "link", "table", "descriptor"])
def test_a_leak_is_found_and_swept(kind: str, tmp_path: Path) -> None:
    before = leaks.look(leaks.OWN)
    undo = []
    match kind:
        case "process":
            orphan = "sleep 600 & echo $!"
            subprocess.run(["sh", "-c", orphan], stdout=subprocess.DEVNULL, check=True)
        case "mount":
            subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
        case "link":
            subprocess.run(["ip", "link", "add", "leak0", "type", "bridge"], check=True)
            undo = ["ip", "link", "del", "leak0"]
        case "table":
            subprocess.run(["nft", "add", "table", "inet", "leak"], check=True)
            undo = ["nft", "delete", "table", "inet", "leak"]
        case "descriptor":
            fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    found = leaks.settled(before, seconds=0)
    assert len(found) == 1, found
    assert found[0].startswith(f"left {kind} ")
    leaks.sweep(before)
    if undo:
        subprocess.run(undo, check=True)
    if kind == "descriptor":
        os.close(fd)
    assert leaks.settled(before) == []


def pytest_in(directory: Path) -> subprocess.CompletedProcess[str]:
    """pytest in pytest, with our conftest."""
    (directory / "conftest.py").write_text((Path(__file__).parent.parent / "conftest.py").read_text())
    quiet = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, "--rootdir", directory, directory],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "WHERRY_TESTS_SETTLE": "0.2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_test_that_leaks_fails(tmp_path: Path) -> None:
    """A daemon left behind turns a passing test into a failing run."""
    (tmp_path / "test_it.py").write_text(
        "import subprocess\n"
        "def test_leaves_a_process():\n"
        "    subprocess.run(['sh', '-c', 'sleep 600 >/dev/null 2>&1 &'], check=True)\n"
        "def test_leaves_nothing():\n"
        "    pass\n"
    )
    done = pytest_in(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "left process" in done.stdout
    assert "2 passed, 1 error" in done.stdout


def test_what_is_skipped_is_listed_as_not_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.skip(reason='no device-mapper')\ndef test_dm(): pass\n"
    )
    done = pytest_in(tmp_path)
    assert "= not run =" in done.stdout
    assert "test_it.py::test_dm: no device-mapper" in done.stdout


def test_images_are_made_by_others_tools(busybox_archive: Path) -> None:
    assert images.docker_names(busybox_archive) == ["docker.io/library/busybox:latest"]
