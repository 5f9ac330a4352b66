"""Execs in a row: each is born in its container's control group, whichever way a filter, a terminal or a user's delegation leaves."""

from __future__ import annotations

import os
import subprocess

import pytest

from support.engines import Wherry
from vm.user import as_user

pytestmark = pytest.mark.timeout(900)  # an emulated processor
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep"
LIMITS = "--memory 64m --memory-swap 64m --pids-limit 20"
# What an exec sees of its group: that it is counted there, beside the container's first process, and that the limits are those.
LOOK = (
    "cd /sys/fs/cgroup; read count <pids.current; [ $count -ge 2 ] && echo counted; "
    "echo in $(cat /proc/self/cgroup pids.max memory.max)"
)
KINDS = {
    "filtered": "",
    "unfiltered": "--security-opt seccomp=unconfined",
    "tracing": "--cap-add SYS_PTRACE",
    "privileged": "--privileged",
}


def script(options: str) -> str:
    """The last exec stays, so that the group can be looked at from outside."""
    return f"""
set -e
wherry run -d --name c --network none {LIMITS} {options} {IMAGE} sleep 600 >/dev/null
for flags in "" "" "" -t; do
    wherry exec $flags c sh -c '{LOOK}'
done
wherry exec -d c sleep 601
group=/sys/fs/cgroup$(cut -d: -f3 /proc/$(wherry inspect -f '{{{{.State.Pid}}}}' c)/cgroup)
for pid in $(cat $group/cgroup.procs); do tr '\\0' ' ' </proc/$pid/cmdline; echo; done
wherry rm -f c >/dev/null
[ ! -e $group ] && echo gone
wherry doctor
"""


def judge(said: str) -> None:
    lines = said.split("\n")
    assert lines.count("counted") + lines.count("counted\r") == 4, said
    assert said.count(f"in 0::/ 20 {64 << 20}") == 4, said
    assert "sleep 600 \n" in said, said
    assert "sleep 601 \n" in said, said
    assert "gone\n" in said, said
    assert "all is well\n" in said, said


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_roots(wherry: Wherry, options: str) -> None:
    environ = {**wherry.dirs.environ, "PATH": f"{wherry.program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", script(options)], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=800,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    judge(done.stdout)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_users(user: str, options: str) -> None:
    judge(as_user(script(options) + "wherry engine stop"))
