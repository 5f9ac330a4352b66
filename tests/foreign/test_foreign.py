"""Somebody else's distribution: installed by pip, found, chosen in a config file, held to the contract, and put to work."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import venv
from support.engines import EngineDirs

ACME = Path(__file__).with_name("acme")

CONFIG = """
version = 1
default = "acme"

[engine]
frontends = ["cli"]
log = "json-file"

[variant.acme]
store = "local"
snapshotter = "copy"
isolation = "groupless"
network = "none"
decorate = ["count"]

[variant.bundled]
extends = "acme"
snapshotter = "vfs"
isolation = "namespaces"
decorate = []

[plugin.snapshotter.copy]
reflink = "never"

[plugin.decorate.count]
file = "{calls}"
"""


class Site:
    """A virtual environment with acme-wherry in it and an engine of its own."""

    def __init__(self, directory: Path, dirs: EngineDirs) -> None:
        self.directory = directory
        self.programs = venv.above(directory / "venv")
        self.environ = {**dirs.environ, **venv.environ(self.programs)}
        self.environ |= {name: value for name, value in dirs.environ.items() if name.startswith("WHERRY_")}
        self.calls = directory / "calls"
        self.config = directory / "config.toml"
        self.config.write_text(CONFIG.format(calls=self.calls))
        self.environ["WHERRY_CONFIG"] = str(self.config)

    def __call__(self, program: str, *arguments: str | Path, code: int = 0, timeout: float = 100) -> str:
        """What the program printed; its exit code is asserted."""
        command = [str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environ, cwd=self.directory, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def site(tmp_path: Path, engine_dirs: EngineDirs) -> Iterator[Site]:
    source = tmp_path / "acme"
    shutil.copytree(ACME, source)
    site = Site(tmp_path, engine_dirs)
    site("pip", "install", "--quiet", source)
    yield site
    if (engine_dirs.run / "shim.sock").exists():
        site("wherry", "engine", "stop")


@pytest.mark.timeout(240)
def test_suites_pass(site: Site) -> None:
    printed = site(
        "python", "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", site.directory, "acme/suites.py", timeout=230
    )
    assert " passed" in printed
    assert "failed" not in printed


def test_plugins_are_found(site: Site) -> None:
    rows = {(row["family"], row["id"]): row for row in json.loads(site("wherry", "plugins", "--json"))}
    for family, id in (("snapshotter", "copy"), ("isolation", "groupless"), ("decorate", "count")):
        row = rows[family, id]
        assert (row["distribution"], row["version"]) == ("acme-wherry", "1.2.3")
        assert row["state"] in {"ready", "available"}, row["reason"]
    info = json.loads(site("wherry", "info", "--json"))
    assert info["chosen"]["acme"]["snapshotter"] == "copy"
    assert info["chosen"]["acme"]["isolation"] == "groupless"
    assert info["chosen"]["bundled"]["isolation"] == "namespaces"


def test_container_runs_on_them(site: Site, busybox_archive: Path) -> None:
    loaded = site("wherry", "load", "--input", busybox_archive)
    image = loaded.split()[-1]
    script = 'echo "pid $$"; cat /etc/hostname; id -u; exit 3'
    printed = site("wherry", "run", "--rm", "--hostname", "from-acme", image, "sh", "-c", script, code=3)
    assert printed.split() == ["pid", "1", "from-acme", "0"]
    site("wherry", "run", "--detach", "--name", "kept", image, "sleep", "1000")
    container = json.loads(site("wherry", "inspect", "kept"))
    drivers = json.dumps(container)
    assert '"groupless"' in drivers
    assert '"copy"' in drivers
    assert site("wherry", "exec", "kept", "sh", "-c", "echo inside; hostname") != ""
    site("wherry", "rm", "--force", "kept")
    assert site("wherry", "ps", "--all", "--quiet") == ""

    calls = Counter(site.calls.read_text().splitlines())
    assert calls["isolation.groupless create"] == 2
    assert calls["isolation.groupless start"] == 3
    assert calls["isolation.groupless exec"] == 1
    assert calls["snapshotter.copy prepare"] >= 3, "the layer, and each container"
    assert calls["snapshotter.copy commit"] >= 1
    assert calls["network.none attach"] == 2

    before = site.calls.read_text()
    site("wherry", "run", "--rm", "--variant", "bundled", image, "true")
    assert [line for line in site.calls.read_text()[len(before) :].splitlines() if "snapshotter" in line] == []


def test_limits_it_cannot_keep_are_refused(site: Site, busybox_archive: Path) -> None:
    image = site("wherry", "load", "--input", busybox_archive).split()[-1]
    site("wherry", "run", "--rm", "--memory", "64m", image, "true", code=125)
    assert site("wherry", "ps", "--all", "--quiet") == ""


def test_uninstalled_plugins_are_named(site: Site) -> None:
    """Without the distribution the same config names what is missing; the other variant still works."""
    site("pip", "uninstall", "--quiet", "--yes", "acme-wherry")
    site("wherry", "run", "--rm", "--network", "none", "host:/bin/sh", "sh", "-c", "true", code=125)
    info = json.loads(site("wherry", "info", "--json"))
    assert info["chosen"]["bundled"]["snapshotter"] == "vfs"
