"""Distributions made for one test: modules and a dist-info with entry points in a directory on sys.path, and drivers to put in."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from wherry.api import Event
from wherry.kernel import Kernel, LoadedConfig, config
from wherry.kernel.discovery import discover
from wherry.kernel.plugins import Plugins, installed

FAKES = Path(__file__).with_name("fake_drivers.py").read_text("utf-8")

DEFAULTS = """
version = 1
default = "standard"
[variant.standard]
store = "fake"
snapshotter = "fake"
isolation = "fake"
network = "fake"
"""

MODULE = """
from fake_drivers import *
@hookimpl
def wherry_{family}():
    return Registration(id="{id}", config={config}, init={init}{more})
"""


class Distributions:
    """Makes distributions and kernels that see only them and what is installed for real."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.site = directory / "site"
        self.site.mkdir()
        (self.site / "fake_drivers.py").write_text(FAKES, "utf-8")
        self.kernels: list[Kernel] = []
        self.events: list[Event] = []
        self._count = 0

    def add(
        self, points: Mapping[str, str], modules: Mapping[str, str] = {}, name: str = "", version: str = "1.0"
    ) -> str:
        """A distribution with these entry points (name -> module) and modules (name -> source)."""
        self._count += 1
        name = name or f"dist{self._count}"
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
        lines = "".join(f"{point} = {module}\n" for point, module in points.items())
        (info / "entry_points.txt").write_text(f"[wherry.plugins]\n{lines}", "utf-8")
        for module, source in modules.items():
            (self.site / f"{module}.py").write_text(textwrap.dedent(source), "utf-8")
        return name

    def driver(
        self, family: str, id: str, *, init: str = "", config: str = "Options", more: str = "", extra: str = ""
    ) -> None:
        """A distribution with one driver; init defaults to the fake of the family; extra is source put first."""
        module = f"fake_{family}_{id}".replace("-", "_").replace(".", "_")
        init = init or f"Fake{family.capitalize()}"
        source = MODULE.format(family=family, id=id, config=config, init=init, more=more and f", {more}")
        imports, rest = source.split("@hookimpl", 1)
        self.add({f"{family}.{id}": module}, {module: imports + textwrap.dedent(extra) + "\n@hookimpl" + rest})

    def standard(self) -> None:
        """One working driver of each kind, all named "fake"."""
        for family in ("store", "snapshotter", "isolation", "network"):
            self.driver(family, "fake")

    def plugins(self) -> Plugins:
        """What is found now."""
        return Plugins(discover(None))

    def loaded(self, text: str = "") -> LoadedConfig:
        """The config text, as if from the file config.toml, over DEFAULTS."""
        return config.loads(textwrap.dedent(text), "config.toml", DEFAULTS)

    def kernel(self, text: str = "", *, shim: Any = None, workers: Any = None) -> Kernel:
        """A kernel with this config text."""
        kernel = Kernel(
            self.loaded(text),
            root=self.directory / "root",
            run=self.directory / "run",
            shim=shim,
            workers=workers,
            publish=self.events.append,
            plugins=self.plugins(),
        )
        self.kernels.append(kernel)
        return kernel


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distributions]:
    """A fresh set; modules and kernels made from it are gone afterwards."""
    made = Distributions(tmp_path)
    monkeypatch.syspath_prepend(str(made.site))
    before = set(sys.modules)
    installed.cache_clear()
    yield made
    for kernel in made.kernels:
        kernel.close()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]
    installed.cache_clear()


def eventually(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    """Waits for a condition; fails when it does not come true."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)
