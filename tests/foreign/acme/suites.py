"""The contract suites on these drivers: ``python -m pytest suites.py`` where acme-wherry is installed."""

from __future__ import annotations

from wherry.testing import IsolationContract, SnapshotterContract


class TestCopy(SnapshotterContract):
    plugin = "acme_wherry.snapshotter"
    options = {"reflink": "never"}  # noqa: RUF012
    depth = 20


class TestGroupless(IsolationContract):
    plugin = "acme_wherry.isolation"
    must_run = True
