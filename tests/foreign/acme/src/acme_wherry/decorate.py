"""A decorator that writes down each driver call: one line a call, "<kind>.<id> <method>"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.api import Kind, hookimpl


class Counted:
    """Stands for a driver; whatever is called on it is written down first."""

    def __init__(self, name: str, driver: object, file: str) -> None:
        self._name = name
        self._driver = driver
        self._file = file

    def __getattr__(self, method: str) -> Any:
        value = getattr(self._driver, method)
        if not callable(value) or method.startswith("_"):
            return value

        def call(*arguments: Any, **keywords: Any) -> Any:
            with open(self._file, "a") as file:
                file.write(f"{self._name} {method}\n")
            return value(*arguments, **keywords)

        return call


@hookimpl
def wherry_decorate(kind: Kind, id: str, driver: object, config: Mapping[str, Any]) -> object:
    return Counted(f"{kind}.{id}", driver, config["file"])
