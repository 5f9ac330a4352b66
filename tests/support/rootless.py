"""An ordinary user for tests, and Wherry where that user can read it; the machine stays as it is.

The user is made by bind mounts over /etc/passwd and its like in the test process's own mount namespace; so are /dev/net/tun and
/dev/fuse opened to everybody, as distributions have them. Wherry is built as a wheel
and installed in a virtual environment in /var/tmp, with copies of the packages it needs, once for each state of the sources.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from support import isolation
from support.running import SLOW
from wherry.linux import mount

TOP = Path(__file__).resolve().parents[2]
NAME = "wherrytest"
#: Another one in each process: files in /tmp that are named by it are shared with other runs on this machine.
UID = GID = 30_000 + random.SystemRandom().randrange(30_000)
FIRST, COUNT = 7_000_000, 65536
_PATIENCE = 600  # seconds, on an emulated processor
_FILES = ("passwd", "group", "subuid", "subgid")
#: Devices that distributions let everybody open, and this kind of machine only root: (major, minor).
_TOOLS = ("pytest", "pytest-timeout", "hypothesis")
_DEVICES = {"/dev/net/tun": (10, 200), "/dev/fuse": (10, 229)}


class User(NamedTuple):
    """name, ids, home, and the wherry command. ranges: whether there are subordinate ids."""

    name: str
    uid: int
    gid: int
    home: Path
    program: Path
    ranges: bool = True

    @property
    def identity(self) -> dict[str, Any]:
        """For subprocess: who the child is."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def refused() -> str:
    """Why there can be no such user here, or ""."""
    if os.geteuid() != 0 or not isolation.isolated():
        return "making an ordinary user needs root, in namespaces of one's own"
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    most = Path("/proc/sys/user/max_user_namespaces")
    if not most.exists() or not int(most.read_text()):
        return "this kernel has no user namespaces"
    python = Path(sys.executable).resolve()
    for path in (python, *python.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            return f"{python} can't be run by other users: {path} bars them"
    return ""


def _lines(home: Path, ranges: str | None) -> Mapping[str, str]:
    row = f"{NAME}:{FIRST}:{COUNT}\n" if ranges is None else ranges
    return {
        "passwd": f"{NAME}:x:{UID}:{GID}::{home}:/bin/sh\n",
        "group": f"{NAME}:x:{GID}:\n",
        "subuid": row,
        "subgid": row,
    }


@contextmanager
def made(home: Path, program: Path, ranges: str | None = None) -> Iterator[User]:
    """The user while the block runs. ranges: what subuid and subgid say, None for a range of its own, "" for none."""
    placed: list[str] = []
    wanted = _lines(home, ranges)
    with tempfile.TemporaryDirectory(prefix="wherry-etc-") as directory:
        try:
            for name in _FILES:
                target, source = f"/etc/{name}", Path(directory, name)
                before = Path(target).read_text() if os.path.exists(target) else ""
                kept = before if name in ("passwd", "group") else ""
                source.write_text(kept + wanted[name])
                source.chmod(0o644)
                if not os.path.exists(target):
                    raise FileNotFoundError(f"{target}: install the package uidmap")
                mount.mount(str(source), target, None, mount.MS_BIND)
                placed.append(target)
            for target, numbers in _DEVICES.items():
                if os.path.exists(target) and not os.stat(target).st_mode & stat.S_IWOTH:
                    node = Path(directory, target.rpartition("/")[2])
                    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(*numbers))
                    node.chmod(0o666)
                    mount.mount(str(node), target, None, mount.MS_BIND)
                    placed.append(target)
            os.chown(home, UID, GID)
            yield User(NAME, UID, GID, home, program, ranges is None or bool(ranges))
        finally:
            for target in reversed(placed):
                mount.umount(target, mount.MNT_DETACH)


_ENTER = """
import os, sys
from wherry.oci import idmaps
from wherry.shim import launch, rootless
rootless.enter(sys.argv[1], idmaps.own(os.getuid(), os.getgid(), launch.login_name()))
os.execv(sys.executable, [sys.executable, "-I", *sys.argv[2:]])
"""


def inside(user: User, *argv: str, timeout: float = 110, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs python with arguments as the user, in namespaces such as the user's engine lives in. more: of the environment."""
    directory = user.home / "inside"
    directory.mkdir(mode=0o700, exist_ok=True)
    os.chown(directory, user.uid, user.gid)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHERRY_", "XDG_", "PYTEST_"))}
    return subprocess.run(
        [user.program.parent / "python3", "-I", "-c", _ENTER, directory, *argv],
        cwd=directory, env={**kept, "HOME": str(user.home), **more},
        capture_output=True, text=True, timeout=timeout * SLOW, check=False, **user.identity,
    )  # fmt: skip


# -- the wheel -------------------------------------------------------------------------------------------------------------


def _stamp() -> str:
    digest = hashlib.sha256(f"{_TOOLS} {sys.version} {Path(sys.executable).resolve()}".encode())
    for root in ("core", "plugins"):
        for path in sorted((TOP / root).rglob("*")):
            if path.suffix != ".pyc" and path.is_file():
                digest.update(f"{path.relative_to(TOP)}\0".encode() + path.read_bytes())
    digest.update((TOP / "pyproject.toml").read_bytes())
    return digest.hexdigest()[:16]


def _needed(name: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        found[key] = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # for another version of Python
        return
    for requirement in found[key].requires or ():
        if "extra ==" not in requirement:
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert match is not None
            _needed(match[0], found)


@functools.cache
def installed() -> Path:
    """The environment's wherry command; made when it is not there yet for these sources."""
    top = Path(f"/var/tmp/wherry-test-wheel-{os.getuid()}")
    top.mkdir(mode=0o755, exist_ok=True)
    venv = top / _stamp()
    with (top / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (venv / "done").exists():
            for old in sorted(top.iterdir(), key=lambda path: path.stat().st_mtime)[:-12]:
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(venv, ignore_errors=True)
            old_mask = os.umask(0o022)
            try:
                _install(venv)
            finally:
                os.umask(old_mask)
            (venv / "done").touch()
    return venv / "bin/wherry"


def _install(venv: Path) -> None:
    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"

    with tempfile.TemporaryDirectory(prefix="wherry-wheel-") as directory:
        source = Path(directory, "source")
        for name in ("core", "plugins"):
            shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(TOP / name, source)
        build = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory],
            cwd=source, capture_output=True, text=True, timeout=_PATIENCE, check=False,
        )  # fmt: skip
        assert build.returncode == 0, build.stderr
        (wheel,) = Path(directory).glob("*.whl")
        python = Path(sys.executable).resolve()
        run(str(python), "-I", "-m", "venv", "--without-pip", str(venv))
        pip = [sys.executable, "-I", "-m", "pip", "--python", str(venv / "bin/python3"), "install"]
        run(*pip, "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel))
    variables = {"base": str(venv), "platbase": str(venv)}
    target = Path(sysconfig.get_path("purelib", "venv", variables))
    found: dict[str, importlib.metadata.Distribution] = {}
    _needed("wherry", found)
    for name in _TOOLS:
        _needed(name, found)
    found.pop("wherry")
    for distribution in found.values():
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(str(distribution.locate_file(file))), target / file)
    run(str(venv / "bin/python3"), "-I", "-m", "compileall", "-q", "-j", "2", str(target))
