"""Programs of others: skopeo, podman, docker, buildah, each with a state of its own below a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PATIENCE = 90


def need(*names: str) -> None:
    """Skips the test where one of the programs is missing."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def run(*argv: str | Path, stdin: bytes | None = None, **environ: str) -> str:
    """What a program printed; its failure fails the test, with what it said."""
    done = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environ},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')[-2000:]}"
    return done.stdout.decode()


def skopeo(*argv: str | Path, scratch: Path) -> str:
    need("skopeo")
    return run("skopeo", "--insecure-policy", "--tmpdir", scratch, *argv)


def podman(directory: Path, *argv: str | Path) -> str:
    need("podman")
    where = ["--root", directory / "root", "--runroot", directory / "run", "--storage-driver", "vfs"]
    return run("podman", *where, "--tmpdir", directory / "tmp", *argv, PODMAN_IGNORE_CGROUPSV1_WARNING="1")


def buildah(directory: Path, *argv: str | Path) -> str:
    need("buildah")
    where = ["--root", directory / "root", "--runroot", directory / "run", "--storage-driver", "vfs"]
    return run("buildah", *where, *argv)


DOCKER = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /run
dockerd --data-root "$1/data" --exec-root /run/docker -H unix:///run/docker.sock --pidfile /run/docker.pid \
    --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs >"$1/log" 2>&1 &
daemon=$!
export DOCKER_HOST=unix:///run/docker.sock
tries=0
until docker version >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 300 ] || { tail -5 "$1/log" >&2; exit 90; }
    kill -0 $daemon || { tail -5 "$1/log" >&2; exit 90; }
    sleep 0.1
done
shift
code=0
sh -ec "$1" || code=$?
kill $daemon
wait $daemon || true
exit $code
"""


def docker(directory: Path, script: str) -> str:
    """Runs a script of the shell beside a docker daemon of its own, in namespaces of its own; skips where none can run."""
    need("docker", "dockerd", "unshare", "ip")
    directory.mkdir(exist_ok=True)
    argv = ["unshare", "-mnpf", "--mount-proc", "--kill-child", "sh", "-c", DOCKER, "sh", str(directory), script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode == 90:
        pytest.skip(f"dockerd does not run here: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
