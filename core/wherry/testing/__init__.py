"""Contract suites: pytest classes that any driver runs, bundled or foreign.

A driver's test module is a subclass and the dotted name of its plugin module::

    from wherry.testing import SnapshotterContract


    class TestMine(SnapshotterContract):
        plugin = "acme_wherry.snapshotter"
        options = {"verify": True}          # what its table in the config would hold

Each ``test_`` method is one clause of the contract. A driver that stands on its own feet (no hook) overrides ``register``.
pytest is imported here and nowhere else in wherry; the names are looked up lazily, so that the helper process of this
package does not import it either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.testing.contract import Contract
    from wherry.testing.harness import Harness, LocalContext
    from wherry.testing.isolation import IsolationContract
    from wherry.testing.isolation_harness import HarnessTask, IsolationHarness
    from wherry.testing.network import NetworkContract, NetworkHarness
    from wherry.testing.snapshotter import SnapshotterContract
    from wherry.testing.store import StoreContract
    from wherry.testing.trees import TreeEntry, change, tree

_HOME = {
    "Contract": "contract",
    "TreeEntry": "trees",
    "Harness": "harness",
    "IsolationContract": "isolation",
    "IsolationHarness": "isolation_harness",
    "LocalContext": "harness",
    "NetworkContract": "network",
    "NetworkHarness": "network",
    "SnapshotterContract": "snapshotter",
    "StoreContract": "store",
    "HarnessTask": "isolation_harness",
    "change": "trees",
    "tree": "trees",
}

__all__ = [
    "Contract",
    "Harness",
    "HarnessTask",
    "IsolationContract",
    "IsolationHarness",
    "LocalContext",
    "NetworkContract",
    "NetworkHarness",
    "SnapshotterContract",
    "StoreContract",
    "TreeEntry",
    "change",
    "tree",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"wherry.testing.{_HOME[name]}"), name)
