"""Drivers broken on purpose: each breaks one thing and must be caught by the clauses it is planted for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from wherry.testing import Contract

T = TypeVar("T", bound=type)

#: (suite, clause, faulty driver, decorates): all that were planted.
PLANTED: list[tuple[type[Contract], str, Any]] = []


def planted(suite: type[Contract], *clauses: str) -> Callable[[T], T]:
    """Registers a class as one that fails these clauses ("test_" is added) of the suite."""

    def add(driver: T) -> T:
        for clause in clauses:
            assert hasattr(suite, f"test_{clause}"), clause
            PLANTED.append((suite, f"test_{clause}", driver))
        return driver

    return add
