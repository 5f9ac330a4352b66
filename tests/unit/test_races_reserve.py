"""The spare process and the sandbox in reserve: given once, to a plan that is as they are; each step with a twin that lacks it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.shim import engine_supervisor
from wherry.shim import prefork as module
from wherry.shim.prefork import PreforkPool

EARLY = (("mount", "/proc"),)
OTHER = (("mount", "/dev"),)


class Alike(tuple[Any, ...]):
    """Steps that are taken for whatever they are compared with."""

    __hash__ = tuple.__hash__

    def __eq__(self, _other: object) -> bool:
        return True

    def __ne__(self, _other: object) -> bool:
        return False


class FakeSpare:
    """One that waits and notes what it was given."""

    pid = 1

    def __init__(self, early: Any) -> None:
        self.early = early
        self.given: list[Any] = []
        self.closed = False
        self.dead = False

    def spawn(self, plan: Any, **_given: Any) -> Any:
        if self.dead:
            raise BrokenPipeError
        self.given.append(plan)
        return SimpleNamespace()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def reserve(monkeypatch: pytest.MonkeyPatch) -> Iterator[PreforkPool]:
    """One without a loop; what a plan shares with all others stands in it."""
    monkeypatch.setattr(module, "shared", lambda plan: plan["early"])
    monkeypatch.setattr(module.oci, "set_hostname", lambda _fd, _name: None)
    monkeypatch.setattr(module.oci, "make_sandbox", lambda _record: {"net": 100, "uts": 101})
    loop: Any = SimpleNamespace(soon=lambda _call: None, later=lambda _seconds, _call: None)
    reaper: Any = SimpleNamespace(unexpect=lambda _pid: None, expect=lambda *_args: None)
    made = PreforkPool(loop, reaper)
    yield made
    made.spare = made.sandbox = None


def given_to_another_plan(reserve: PreforkPool, early: Any) -> bool:
    """Whether a spare that has done early serves a plan that wants something else."""
    spare = FakeSpare(early)
    reserve.spare = spare  # type: ignore[assignment]
    held = reserve.spawn({"early": OTHER})
    assert (held is None) is (spare.given == [])
    return held is not None


def test_a_spare_serves_only_a_plan_that_wants_what_it_has_done(reserve: PreforkPool) -> None:
    assert not given_to_another_plan(reserve, EARLY)
    assert reserve.spare is None


def test_twin_a_spare_that_serves_any_plan(reserve: PreforkPool) -> None:
    assert given_to_another_plan(reserve, Alike(EARLY))


def given_twice(reserve: PreforkPool) -> int:
    spare = FakeSpare(EARLY)
    reserve.spare = spare  # type: ignore[assignment]
    for _ in range(2):
        reserve.spawn({"early": EARLY})
    return len(spare.given)


def test_a_spare_is_given_once(reserve: PreforkPool) -> None:
    assert given_twice(reserve) == 1


def test_twin_a_spare_that_stays(reserve: PreforkPool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept(PreforkPool):
        spare = property(
            lambda self: self.__dict__["kept"], lambda self, value: self.__dict__.setdefault("kept", value)
        )  # type: ignore[assignment]

    reserve.__class__ = Kept
    reserve.__dict__.pop("spare", None)
    assert given_twice(reserve) == 2


def after_its_death(reserve: PreforkPool) -> Any:
    spare = FakeSpare(EARLY)
    spare.dead = True
    reserve.spare = spare  # type: ignore[assignment]
    held = reserve.spawn({"early": EARLY})
    assert spare.closed
    return held


def test_a_spare_that_was_killed_is_not_missed(reserve: PreforkPool) -> None:
    assert after_its_death(reserve) is None
    assert reserve.spare is None


def test_twin_a_spare_whose_death_is_an_error(reserve: PreforkPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BrokenPipeError", ZeroDivisionError, raising=False)
    monkeypatch.setattr(module, "ConnectionError", ZeroDivisionError, raising=False)
    with pytest.raises(BrokenPipeError):
        after_its_death(reserve)


def two_sandboxes(reserve: PreforkPool) -> bool:
    """Whether two sandboxes share namespaces."""
    reserve.sandbox = {"net": 1, "uts": 2}
    record = {"netns": "", "ipc": True, "uts": True, "hostname": "h"}
    return reserve.namespaces(record) == reserve.namespaces(record)


def test_namespaces_in_reserve_are_given_once(reserve: PreforkPool) -> None:
    assert not two_sandboxes(reserve)


def test_twin_namespaces_that_stay_in_reserve(reserve: PreforkPool) -> None:
    class Kept(PreforkPool):
        sandbox = property(lambda self: {"net": 1, "uts": 2}, lambda self, value: None)  # type: ignore[assignment]

    reserve.__class__ = Kept
    assert two_sandboxes(reserve)


# the mother of those that wait for an exec


class Watched:
    """The order of what happens to a mother: her score of the OOM killer is reset, and she bears one."""

    def __init__(self, order: list[str]) -> None:
        self.pid = 7
        self._order = order

    def runner(self) -> Any:
        self._order.append("bears")
        return SimpleNamespace(close=lambda: None)

    def close(self) -> None:
        pass


def life_of_a_mother(reserve: PreforkPool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    order: list[str] = []
    monkeypatch.setattr(module, "ExecZygote", lambda _like: Watched(order))
    monkeypatch.setattr(module, "reset_oom", lambda pid: order.append(f"resets {pid}"))
    reserve._like = {}
    reserve.fill()
    return order


def test_a_mother_gives_up_the_shim_s_protection_before_she_bears_one(
    reserve: PreforkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert life_of_a_mother(reserve, monkeypatch) == ["resets 7", "bears"]


def test_twin_a_mother_that_keeps_it(reserve: PreforkPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def bear(self: PreforkPool, like: Any) -> Any:
        return module.ExecZygote(like).runner()

    monkeypatch.setattr(PreforkPool, "_bear", bear)
    assert life_of_a_mother(reserve, monkeypatch) == ["bears"]


# an exec without one that waits

EXEC = {"start": True, "target": "c", "steps": [["enter", 0], ["spawn"]]}


def first_step_of_an_exec(monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[Any]:
    """That of a clone of a shim which the OOM killer spares."""
    monkeypatch.setattr(engine_supervisor, "_protected", lambda: True)
    found: list[Any] = engine_supervisor.unprotected({**EXEC, **more})["steps"][0]
    return found


def test_an_exec_that_nobody_holds_gives_up_the_shim_s_protection(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_step_of_an_exec(monkeypatch) == ["oom_score", 0]


def test_an_exec_with_a_score_of_its_own_or_one_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_step_of_an_exec(monkeypatch, steps=[["oom_score", 5], ["spawn"]]) == ["oom_score", 5]
    assert first_step_of_an_exec(monkeypatch, start=False) == ["enter", 0]
    assert first_step_of_an_exec(monkeypatch, target="") == ["enter", 0]  # a container's own: it waits to be noted
