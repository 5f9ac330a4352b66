"""Images as docker save and skopeo write them, under each snapshotter by its name in the config; and a database that keeps its data."""

from __future__ import annotations

import json
import shutil
import subprocess
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


@pytest.mark.parametrize("variant", ["overlay", "copies"])
def test_apt_get_installs_a_package(wherry: Wherry, tmp_path: Path, apt_image: Path, variant: str) -> None:
    """A package of our own with files, a link, a set-id program and a script that runs: dpkg renames, links and syncs as it likes."""
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    build = tmp_path / "hello-wherry"
    (build / "DEBIAN").mkdir(parents=True)
    (build / "DEBIAN/control").write_text(
        "Package: hello-wherry\nVersion: 1.0\nArchitecture: all\nDepends: dpkg\nMaintainer: nobody <nobody@example.org>\n"
        "Description: says hello\n"
    )
    (build / "DEBIAN/postinst").write_text("#!/bin/sh\nset -e\necho configured > /var/lib/hello-wherry\n")
    (build / "DEBIAN/postinst").chmod(0o755)
    (build / "usr/bin").mkdir(parents=True)
    (build / "usr/bin/hello-wherry").write_text("#!/bin/sh\necho hello from the package\n")
    (build / "usr/bin/hello-wherry").chmod(0o4755)
    (build / "usr/bin/hello-link").symlink_to("hello-wherry")
    package = tmp_path / "in/hello-wherry.deb"
    package.parent.mkdir()
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(build), str(package)], check=True, capture_output=True, timeout=60
    )
    look = """
    set -e
    apt-get install -y --no-install-recommends /in/hello-wherry.deb
    hello-link; cat /var/lib/hello-wherry; dpkg-query -W -f '${db:Status-Status}\n' hello-wherry
    stat -c %a /usr/bin/hello-wherry; dpkg --verify hello-wherry
    apt-get purge -y hello-wherry; test ! -e /usr/bin/hello-wherry
    """
    done = wherry(
        "run", "--rm", "--network", "none", *(["--variant", variant] if variant != "overlay" else []), "-v", f"{package.parent}:/in:ro",
        f"archive:{apt_image / 'oci-archive.tar'}", "bash", "-c", look, env={"WHERRY_CONFIG": str(config)}, timeout=120,
    )  # fmt: skip
    assert "\nhello from the package\nconfigured\ninstalled\n4755\n" in done.stdout
    assert "\nRemoving hello-wherry (1.0)" in done.stdout
