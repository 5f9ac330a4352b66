"""Many containers that come and go at once: everybody has an address of its own, and all is as before afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.engines import engine_of_a_module
from support.running import until
from wherry.api import Engine, NetworkConfig, Port, RunRequest

pytestmark = pytest.mark.shared
COUNT = 200 if os.environ.get("WHERRY_TESTS_ALL") else 40
IMAGE = "host:/bin/busybox"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        yield made


def links() -> list[str]:
    return sorted(name for _index, name in socket.if_nameindex())


def elements() -> int:
    """How much our rules hold."""
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True, timeout=30)
    return listed.stdout.count("10.92.")


def test_many_at_once(engine: Engine) -> None:
    engine.create_network(NetworkConfig("many", subnets=("10.92.0.0/22",)))
    keeper = engine.run(RunRequest(IMAGE, ("/bin/busybox", "sleep", "1000"), network="many"))
    before, rules = links(), elements()

    def start(number: int) -> str:
        request = RunRequest(
            IMAGE, ("/bin/busybox", "sleep", "1000"), name=f"c{number}", network="many", ports=(Port(80),)
        )
        return engine.run(request).id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(start, range(COUNT)))
        running = [engine.container(id) for id in ids]
        addresses = {container.addresses[0] for container in running}
        ports = {container.ports[0].host_port for container in running}
        assert len(addresses) == len(ports) == COUNT
        attached = {one.addresses[0] for one in engine.network("many").attachments}
        assert attached == {*addresses, *keeper.addresses}
        assert len(links()) == len(before) + COUNT
        assert elements() == rules + COUNT
        list(pool.map(lambda id: engine.remove(id, force=True), ids))
    assert len(engine.network("many").attachments) == 1
    assert elements() == rules
    until(lambda: links() == before, 60)
    assert engine.doctor() == ()
    engine.remove(keeper.id, force=True)
    engine.remove_network("many")
    assert not [name for name in links() if name.startswith("wh")]
