"""Bridges where control groups are the unified hierarchy and systemd is there: root's, and an ordinary user's in a hub."""

from __future__ import annotations

import os
import subprocess

import pytest

from support.drivers import HOST, uplink
from support.engines import Wherry
from vm.user import as_user

pytestmark = pytest.mark.timeout(1800)  # an emulated processor
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep,/usr/bin/busybox"
SERVER = "busybox mkdir /www; echo served >/www/index.html; exec busybox httpd -f -p 80 -h /www"
LIMITS = "--memory 64m --memory-swap 64m --pids-limit 50"
# Served by name to its network and by a port to the host; closed to another network; counted and limited.
SCRIPT = f"""
set -e
wherry network create lab
wherry network create other
wherry run -d --name web --network lab -p 18080:80 {LIMITS} {IMAGE} sh -c '{SERVER}' >/dev/null
try() {{ n=0; until [ $n -gt 60 ] || "$@" 2>/dev/null; do n=$((n+1)); sleep 1; done; }}
try wherry run --rm --network lab {IMAGE} busybox wget -T 20 -qO- http://web/
try busybox wget -T 20 -qO- http://127.0.0.1:18080/
try busybox wget -T 20 -qO- http://{HOST[0]}:18080/
wherry run --rm --network other {IMAGE} busybox wget -T 20 -qO- http://web/ 2>/dev/null || echo closed
wherry stats --no-stream --json web
wherry rm -f web
wherry network rm lab other
wherry doctor
"""


def judge(said: str) -> None:
    assert said.count("served\n") == 3, said
    assert "closed" in said
    assert str(64 << 20) in said
    assert "memory.current" in said
    assert "all is well" in said


def test_roots(wherry: Wherry) -> None:
    environ = {**wherry.dirs.environ, "PATH": f"{wherry.program.parent}:{os.environ['PATH']}"}
    with uplink():
        done = subprocess.run(
            ["sh", "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=1500, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    judge(done.stdout)


def test_a_users(user: str) -> None:
    """In the machine's own network, which has such an uplink too (contrib/vm)."""
    judge(as_user(SCRIPT + "wherry engine stop"))
