"""Delays, errors and hangs at named calls, from the config: for experiments and for fault tests.

[variant.faulty]
extends = "standard"
decorate = ["inject"]

[[plugin.decorate.inject.rules]]
call = "snapshotter.prepare"     # <kind>.<method>; "*" stands for any kind or method
action = "error"
error = "OSError"
errno = "ENOSPC"
nth = 2                          # only the second such call
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from attrs import Attribute, define, field, frozen

from wherry import api
from wherry.api import Kind, hookimpl, suggest

KINDS: dict[str, type[Any]] = {
    "store": api.Store,
    "snapshotter": api.LayerSnapshotter,
    "isolation": api.Isolation,
    "network": api.Network,
    "ingest": api.Ingest,
}
ERRORS = {
    name: cls for name in api.__all__ if isinstance(cls := getattr(api, name), type) and issubclass(cls, api.Error)
}

_released = threading.Event()


def _methods(cls: type[Any]) -> set[str]:
    return {name for base in cls.__mro__ for name, value in vars(base).items() if callable(value) and name[0] != "_"}


def _known_call(_: Any, __: Attribute[str], value: str) -> None:
    kind, dot, method = value.partition(".")
    if not dot:
        raise ValueError(f'call "{value}" is not named <kind>.<method>')
    if kind != "*" and kind not in KINDS:
        raise ValueError(f'call "{value}": no kind "{kind}"; {suggest(kind, sorted(KINDS))}')
    known = set().union(*map(_methods, KINDS.values())) if kind == "*" else _methods(KINDS[kind])
    if method not in {"*", *known}:
        raise ValueError(f'call "{value}": no method "{method}"; {suggest(method, sorted(known))}')


def _known_error(_: Any, __: Attribute[str], value: str) -> None:
    known = {*ERRORS, "OSError", "RuntimeError", "SystemExit"}
    if value not in known:
        raise ValueError(f'no error class "{value}"; {suggest(value, sorted(known))}')


def _known_errno(_: Any, __: Attribute[str], value: str) -> None:
    known = set(errno.errorcode.values())
    if value not in known:
        raise ValueError(f'no errno "{value}"; {suggest(value, sorted(known))}')


def _probability(_: Any, __: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"probability {value:g} is not between 0 and 1")


def _not_negative(_: Any, attribute: Attribute[Any], value: float) -> None:
    if value < 0:
        raise ValueError(f"{attribute.name} {value:g} is negative")


@frozen
class Rule:
    """One thing to go wrong. driver: only with this driver ("" any). seconds: of a delay, or the longest of a hang (0: for ever).
    error, errno, text: what is raised; RuntimeError and SystemExit are what a driver must not raise. nth: only the n-th such
    call (0: each); count: at most so often (0: no limit); after: once the driver has done its work, not before."""

    call: str = field(validator=_known_call)
    action: Literal["delay", "error", "hang"]
    driver: str = ""
    seconds: float = field(default=0.0, validator=_not_negative)
    error: str = field(default="Unavailable", validator=_known_error)
    errno: str = field(default="EIO", validator=_known_errno)
    text: str = "injected"
    nth: int = field(default=0, validator=_not_negative)
    count: int = field(default=0, validator=_not_negative)
    probability: float = field(default=1.0, validator=_probability)
    after: bool = False

    def matches(self, kind: str, method: str, driver: str) -> bool:
        """Whether the rule is about this call."""
        wanted_kind, _, wanted_method = self.call.partition(".")
        return wanted_kind in {"*", kind} and wanted_method in {"*", method} and self.driver in {"", driver}


@frozen
class InjectConfig:
    """seed: of the dice behind ``probability``, so that an experiment can be repeated."""

    seed: int = 0
    rules: tuple[Rule, ...] = ()


#: Judged by the kernel when the config is read.
wherry_config = InjectConfig


@define
class _State:
    """How often a rule's call came, and how often the rule took effect."""

    calls: int = 0
    hits: int = 0


class Injected:
    """Stands for a driver, or for an Ingest that a store handed out; rules and their counters are shared with it."""

    def __init__(self, driver: Any, kind: str, id: str, rules: Mapping[Rule, _State], dice: random.Random) -> None:
        self._driver = driver
        self._kind = kind
        self._id = id
        self._rules = rules
        self._dice = dice
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_driver"], name)
        rules = [rule for rule in self._rules if rule.matches(self._kind, name, self._id)]
        handed_out = self._kind == "store" and name == "ingest"
        if not callable(value) or not (rules or handed_out):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            due = [rule for rule in rules if self._due(rule)]
            for rule in due:
                if not rule.after:
                    self._act(rule, name)
            result = value(*args, **kwargs)
            for rule in due:
                if rule.after:
                    self._act(rule, name)
            return Injected(result, "ingest", self._id, self._rules, self._dice) if handed_out else result

        return call

    def _due(self, rule: Rule) -> bool:
        state = self._rules[rule]
        with self._lock:
            state.calls += 1
            if rule.nth and state.calls != rule.nth:
                return False
            if rule.count and state.hits >= rule.count:
                return False
            if rule.probability < 1 and self._dice.random() >= rule.probability:
                return False
            state.hits += 1
            return True

    def _act(self, rule: Rule, name: str) -> None:
        if rule.action == "delay":
            time.sleep(rule.seconds)
        elif rule.action == "hang":
            _released.wait(rule.seconds or None)
        else:
            raise self._error(rule, name)

    def _error(self, rule: Rule, name: str) -> BaseException:
        if rule.error == "OSError":
            return OSError(getattr(errno, rule.errno), rule.text)
        if rule.error == "RuntimeError":
            return RuntimeError(rule.text)
        if rule.error == "SystemExit":
            return SystemExit(rule.text)
        return ERRORS[rule.error](
            f"{self._kind}.{self._id}: {name}", rule.text, "a rule of [plugin.decorate.inject] says so"
        )


def release() -> None:
    """Lets every hang end, those to come included; for tests that must not leave threads behind."""
    _released.set()


@hookimpl
def wherry_decorate(kind: Kind, id: str, driver: object, config: Mapping[str, Any]) -> object:
    rules = {Rule(**rule): _State() for rule in config.get("rules", ())}
    if not rules:
        return driver
    return Injected(driver, kind, id, rules, random.Random(config.get("seed", 0)))  # noqa: S311 dice, not secrets
