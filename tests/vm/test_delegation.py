"""An ordinary user whose service manager delegates control groups to that user (systemd.resource-control(5), "Delegate=")."""

from __future__ import annotations

import json

import pytest

from vm.user import as_user

pytestmark = pytest.mark.timeout(900)
IMAGE = "host:/bin/sh,/bin/cat,/bin/sleep"


def test_limits_without_root(user: str) -> None:
    run = "wherry run --rm --network none --memory 64m --memory-swap 64m --pids-limit 30"
    said = as_user(
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
        f"{run} {IMAGE} sh -c '{script}'; echo code $?; wherry inspect eater; wherry rm eater; wherry engine stop"
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
