"""Each clause of each suite catches the faults that were planted for it."""

from __future__ import annotations

import ctypes
import inspect
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract.faults import PLANTED, isolation, network, snapshotter, store  # noqa: F401 - they plant
from contract.reference import isolation as reference_isolation
from contract.reference import network as reference_network
from contract.reference import snapshotter as reference_snapshotter
from contract.reference import store as reference_store
from wherry.api import Registration
from wherry.testing import Contract, IsolationContract, NetworkContract, SnapshotterContract, StoreContract
from wherry.testing.contract import clauses

REGISTER = {
    StoreContract: reference_store.registration,
    SnapshotterContract: reference_snapshotter.registration,
    IsolationContract: reference_isolation.registration,
    NetworkContract: reference_network.registration,
}


def subject(suite: type[Contract], driver: Any) -> Contract:
    """The suite over a driver that is made from a reference driver."""

    class Subject(suite):  # type: ignore[misc, valid-type]
        with_shim = False

        def register(self) -> Registration[Any, Any]:
            return REGISTER[suite](driver)

    return Subject()


def leave_network() -> None:
    """A thread in a network namespace of its own: no fault reaches the host's links."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare network namespace")


def run_clause(suite: type[Contract], clause: str, driver: Any) -> None:
    """Calls one clause as pytest would."""
    self = subject(suite, driver)
    directory = Path(tempfile.mkdtemp(prefix="wherry-"))
    directory.chmod(0o755)
    harness = self.make_harness(directory)
    try:
        method = getattr(self, clause)
        offered = {"harness": lambda: harness, "driver": harness.open}
        method(**{name: offered[name]() for name in inspect.signature(method).parameters})
    finally:
        harness.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("suite", "clause", "driver"),
    PLANTED,
    ids=[f"{suite.family}-{clause[5:]}-{driver.__name__}" for suite, clause, driver in PLANTED],
)
def test_fault_is_caught(suite: type[Contract], clause: str, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry.testing.isolation_harness.PATIENCE", 2.0)
    monkeypatch.setattr("wherry.testing.isolation.PATIENCE", 2.0)
    with (
        pytest.raises((Exception, pytest.fail.Exception)) as caught,
        ThreadPoolExecutor(1, initializer=leave_network) as pool,
    ):
        pool.submit(run_clause, suite, clause, driver).result()
    assert not isinstance(caught.value, pytest.skip.Exception), "the clause did not run"


@pytest.mark.parametrize("suite", REGISTER, ids=lambda suite: suite.family)
def test_every_clause_has_a_fault(suite: type[Contract]) -> None:
    """A clause that nothing can break proves nothing."""
    with_fault = {clause for planted, clause, _ in PLANTED if planted is suite}
    assert set(clauses(suite)) == with_fault


class TestReferenceStore(StoreContract):
    def register(self) -> Registration[Any, Any]:
        return reference_store.registration()


class TestReferenceSnapshotter(SnapshotterContract):
    depth = 12

    def register(self) -> Registration[Any, Any]:
        return reference_snapshotter.registration()


class TestReferenceIsolation(IsolationContract):
    with_shim = False

    def register(self) -> Registration[Any, Any]:
        return reference_isolation.registration()


class TestReferenceNetwork(NetworkContract):
    with_shim = False

    def register(self) -> Registration[Any, Any]:
        return reference_network.registration()
