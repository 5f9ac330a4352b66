"""Images as docker save and skopeo write them, under each snapshotter by its name in the config; and a database that keeps its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.engines import Wherry

CONFIG = """
version = 1
default = "overlay"

[variant.overlay]
extends = "standard"
snapshotter = "overlayfs"

[variant.copies]
extends = "standard"
snapshotter = "vfs"
"""
#: What the container sees of its root: every file with its mode, owner and content; what it changes; who it is.
LOOK = """
cd /
find . -xdev ! -type d -exec ls -ln {} + | sort -k 9 | sed 's/  */ /g' | grep -v -e resolv.conf -e hostname -e /hosts
find . -xdev -type f ! -path ./etc/hostname ! -path ./etc/hosts ! -path ./etc/resolv.conf -exec sha256sum {} + | sort -k 2
cat /etc/os-release /etc/debian_version 2>/dev/null
echo new > /etc/made && rm /etc/group && mv /etc/passwd /etc/moved && ls /etc && cat /etc/made
id -u; pwd; echo $PATH
exit 7
"""


@pytest.mark.parametrize(
    ("kind", "form"), [("busybox", "docker-archive"), ("busybox", "oci-archive"), ("debian", "docker-archive")]
)
def test_the_same_under_overlayfs_and_vfs(
    wherry: Wherry, tmp_path: Path, request: pytest.FixtureRequest, kind: str, form: str
) -> None:
    archive = request.getfixturevalue(f"{kind}_image") / f"{form}.tar"
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    env = {"WHERRY_CONFIG": str(config)}
    said = {}
    for variant, snapshotter in (("overlay", "overlayfs"), ("copies", "vfs")):
        chosen = [] if variant == "overlay" else ["--variant", variant]
        image = f"archive:{archive}"
        done = wherry("run", "--name", variant, *chosen, image, "sh", "-c", LOOK, code=7, env=env, timeout=120)
        assert done.stderr == ""
        said[variant] = done.stdout
        record = json.loads(wherry("inspect", variant, env=env).stdout)[0]
        assert snapshotter in json.dumps(record)
        wherry("rm", variant, env=env)
    assert said["overlay"] == said["copies"]
    assert "\nnew\n0\n/\n" in said["overlay"]
    assert len(said["overlay"].splitlines()) > (250 if kind == "busybox" else 3000)


def test_a_redis_keeps_its_data_in_a_bind(wherry: Wherry, tmp_path: Path) -> None:
    programs = [shutil.which(name) for name in ("redis-server", "redis-cli")]
    if None in programs:
        pytest.skip("redis is not installed: contrib/setup test")
    image = "host:/bin/sh," + ",".join(str(program) for program in programs)
    data = tmp_path / "data"
    data.mkdir()
    server = ["redis-server", "--dir", "/data", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    wherry("run", "-d", "--name", "db", "-v", f"{data}:/data", image, *server)

    def client(*command: str) -> str:
        wait = 'until redis-cli ping >/dev/null 2>&1; do :; done; exec redis-cli "$@"'
        return wherry("exec", "db", "sh", "-c", wait, "sh", *command).stdout.strip()

    assert client("set", "key", "kept") == "OK"
    first = wherry("inspect", "--format", "{{.State.Pid}}", "db").stdout
    wherry("stop", "db")
    assert wherry("inspect", "--format", "{{.State.ExitCode}}", "db").stdout == "0\n"
    assert any(path.is_file() and path.stat().st_size for path in data.rglob("*"))
    wherry("start", "db")
    assert wherry("inspect", "--format", "{{.State.Pid}}", "db").stdout not in (first, "0\n")
    assert client("get", "key") == "kept"
    wherry("rm", "-f", "db")
    # and a new container on the same data
    wherry("run", "-d", "--name", "db", "-v", f"{data}:/data", image, *server)
    assert client("get", "key") == "kept"
