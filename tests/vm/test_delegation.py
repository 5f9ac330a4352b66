"""An ordinary user whose service manager delegates control groups to that user (systemd.resource-control(5), "Delegate=")."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from support.running import until

pytestmark = pytest.mark.timeout(900)
USER = "boat"  # made by contrib/vm
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep"
PATH = f"{Path(__file__).resolve().parents[2]}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture
def user() -> str:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        pytest.skip(f'there is no user "{USER}"')
    if not os.access(sys.executable, os.X_OK):
        pytest.skip("the interpreter can't be reached by others")
    return USER


def as_user(user: str, command: str, code: int | None = 0) -> str:
    """A command in a session of the user's, which systemd-run(1) asks the user's own manager for."""
    entry = pwd.getpwnam(user)
    argv = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "systemd-run"]
    argv += [
        "--user",
        "--wait",
        "--pipe",
        "--quiet",
        "--collect",
        "-p",
        "Delegate=yes",
        "-E",
        f"PATH={PATH}",
        "-E",
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    argv += ["--", "sh", "-c", command]
    environ = {
        "PATH": PATH,
        "HOME": entry.pw_dir,
        "XDG_RUNTIME_DIR": f"/run/user/{entry.pw_uid}",
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path=/run/user/{entry.pw_uid}/bus",
    }
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=600, check=False, cwd="/")
    if code is not None:
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if code is None else "")


def test_limits_without_root(user: str) -> None:
    until(lambda: Path(f"/run/user/{pwd.getpwnam(user).pw_uid}/bus").exists(), 120)
    run = "wherry run --rm --network none --memory 64m --memory-swap 64m --pids-limit 30"
    said = as_user(
        user,
        f"{run} --name limited -d {IMAGE} sleep 600 && wherry stats --no-stream --json limited; "
        "find /sys/fs/cgroup/user.slice -name memory.max -path '*wherry*' -exec cat {} + | sort -u; "
        "wherry rm -f limited; wherry engine stop",
    )
    assert str(64 << 20) in said
    assert "memory.current" in said


def test_out_of_memory_without_root(user: str) -> None:
    script = "x=x; while :; do x=$x$x; done"
    run = "wherry run --name eater --network none --memory 16m --memory-swap 16m"
    said = as_user(
        user, f"{run} {IMAGE} sh -c '{script}'; echo code $?; wherry inspect eater; wherry rm eater; wherry engine stop"
    )
    assert "code 137" in said
    document = said[said.index("[") : said.rindex("]") + 1]
    assert "true" in json.dumps([value for key, value in _walk(json.loads(document)) if "oom" in key.lower()])


def _walk(value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in ((str(key), inner), *_walk(inner))]
    if isinstance(value, list):
        return [pair for inner in value for pair in _walk(inner)]
    return []


def test_a_lost_shim_leaves_the_limits_and_their_groups(user: str) -> None:
    """The next shim is in a scope of its own; the container stays in that of the lost one, and is found there."""
    said = as_user(
        user,
        f"wherry run -d --name stays --network none --memory 64m --memory-swap 64m {IMAGE} sleep 600 && "
        "pid=$(wherry inspect -f '{{.State.Pid}}' stays) && before=$(cat /proc/$pid/cgroup) && "
        "kill -9 $(wherry info --format '{{.shim.pid}}') && "
        "until wherry exec stays sh -c 'echo entered; cat /proc/self/cgroup'; do sleep 0.2; done && "
        '[ "$before" = "$(cat /proc/$pid/cgroup)" ] && echo the same && '
        "wherry stats --no-stream --json stays && wherry pause stays && wherry unpause stays && wherry rm -f stays && "
        "if [ -e /proc/$pid ]; then echo it lives; fi; "
        "wherry doctor; wherry engine stop",
    )
    assert "entered" in said
    assert "the same" in said
    assert str(64 << 20) in said
    assert "it lives" not in said
    assert "all is well" in said
