"""``Pool.together``: several driver calls on one thread, each with its own deadline."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from wherry.api import DeadlineExceeded, Network, NetworkConfig, NotFound, PluginFault
from wherry.kernel.breaker import CircuitBreaker
from wherry.kernel.calls import Pool
from wherry.kernel.guard import GuardTarget, guard


class Driver:
    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: list[int] = []

    def create(self, config: NetworkConfig) -> NetworkConfig:
        self.threads.append(threading.get_ident())
        return config

    def remove(self, name: str) -> None:
        self.threads.append(threading.get_ident())
        self.gate.wait(20)

    def check(self, sandbox_id: str, network: str) -> None:
        raise NotFound("sandbox", "no such sandbox")

    def gc(self, live: Any) -> Any:
        return "not a number"

    def list(self) -> Any:
        return iter(())

    inspect = reserve = attach = detach = list


def made(deadline: float = 5.0) -> tuple[Driver, Any, Pool, CircuitBreaker]:
    pool, health, driver = Pool(), CircuitBreaker("network.slow"), Driver()
    return (
        driver,
        guard(driver, GuardTarget("network.slow", pool, health, deadline=deadline), "network", Network),
        pool,
        health,
    )


def test_calls_share_one_thread_and_errors_pass() -> None:
    driver, network, pool, _health = made()

    def work(name: str) -> str:
        network.create(NetworkConfig(name))
        network.create(NetworkConfig(name))
        with pytest.raises(NotFound) as caught:
            network.check("a", "b")
        assert caught.value.plugin == "network.slow"
        with pytest.raises(PluginFault):
            network.gc(())
        return name.upper()

    assert pool.together(work, ("x",), 5.0) == "X"
    assert len(set(driver.threads)) == 1
    assert driver.threads[0] != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        pool.together(lambda: 1 / 0, (), 5.0)
    pool.close()


def test_a_hanging_call_is_given_up_and_nothing_goes_on() -> None:
    driver, network, pool, health = made(0.2)
    after = []
    done = threading.Event()

    def work() -> None:
        try:
            network.create(NetworkConfig("x"))
            network.remove("x")
            after.append("went on")
        finally:
            done.set()

    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"did not return within 0\.2 s") as caught:
        pool.together(work, (), 0.2)
    assert time.monotonic() - began < 5
    assert caught.value.plugin == "network.slow"
    assert health.lost_threads == 1
    driver.gate.set()
    assert done.wait(5)
    deadline = time.monotonic() + 5
    while health.lost_threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert health.lost_threads == 0
    assert after == []
    pool.close()


def test_threads_of_the_work_hop_as_ever() -> None:
    import contextvars

    driver, network, pool, _health = made()

    def work() -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(network.create, NetworkConfig("x")))
        thread.start()
        thread.join()
        driver.threads.append(thread.ident or 0)

    pool.together(work, (), 5.0)
    assert driver.threads[0] != driver.threads[1]
    pool.close()
