"""The base of every suite: how a driver is found, made and put away around each clause."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from wherry.hookspecs import FAMILY_HOOK
from wherry.interfaces.kernel import Registration
from wherry.testing.harness import Harness


class Contract:
    """plugin: the dotted name of the module with the hook. options: its config table. with_shim: give it a real shim.

    must_run: a probe that refuses this host fails the clause instead of skipping it.
    """

    family: ClassVar[str] = ""
    plugin: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    with_shim: ClassVar[bool] = False
    must_run: ClassVar[bool] = False

    def register(self) -> Registration[Any, Any]:
        """The driver's record, from the hook of its module."""
        module = importlib.import_module(self.plugin)
        registration: Registration[Any, Any] = getattr(module, FAMILY_HOOK[self.family])()
        return registration

    def make_harness(self, directory: Path) -> Harness[Any]:
        return Harness(directory, self.family, self.register(), self.options, with_shim=self.with_shim)

    @pytest.fixture
    def harness(self) -> Iterator[Harness[Any]]:
        """A harness below a short path (socket names are at most 107 bytes) that any user may search."""
        directory = Path(tempfile.mkdtemp(prefix="wherry-"))
        directory.chmod(0o755)
        harness = self.make_harness(directory)
        try:
            reason = harness.reason()
            if reason is not None:
                (pytest.fail if self.must_run else pytest.skip)(f"{harness.context.id}: {reason}")
            yield harness
        finally:
            harness.close()
            shutil.rmtree(directory, ignore_errors=True)

    @pytest.fixture
    def driver(self, harness: Harness[Any]) -> Any:
        return harness.open()


def clauses(suite: type[Contract]) -> tuple[str, ...]:
    """The names of a suite's clauses."""
    return tuple(sorted(name for name in dir(suite) if name.startswith("test_")))
