"""An engine with ten thousand containers and a thousand images: what lists, a restart and gc cost then."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ours import WherryApi, WherryCli
from world import IMAGE, World

import wherry
from wherry.api import RunRequest

CREATED = RunRequest(image=IMAGE, command=("true",), network="none")


def archive_of(world: World, count: int) -> Path:
    """``docker save`` of images that differ by a label alone, each with a name, over the one layer of the world's image."""
    target = world.base / "many.tar"
    with tarfile.open(world.archive) as source, tarfile.open(target, "w") as tar:

        def put(path: str, content: bytes) -> None:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        (entry,) = json.load(source.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(source.extractfile(entry["Config"]))  # type: ignore[arg-type]
        (layer,) = entry["Layers"]
        put(layer, source.extractfile(layer).read())  # type: ignore[union-attr]
        entries = []
        for number in range(count):
            config["config"]["Labels"] = {"number": str(number)}
            data = json.dumps(config).encode()
            name = f"{hashlib.sha256(data).hexdigest()}.json"
            put(name, data)
            entries.append({"Config": name, "RepoTags": [f"localhost/many-{number}:latest"], "Layers": [layer]})
        put("manifest.json", json.dumps(entries).encode())
    return target


class Crowd:
    """An engine of its own, and its command line."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._api = WherryApi(world, "wherry-many", local=False)
        self._cli = WherryCli(world, self._api)

    def fill(self, containers: int, images: int) -> None:
        """Up to so many containers, created and never started, and images."""
        self._api.engine.load(f"archive:{archive_of(self._world, images)}")
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(lambda _number: self._api.engine.create(CREATED), range(containers)):
                pass

    def listed(self, *words: str) -> float:
        return self._world.spawner.one([*self._cli.command, *words], self._cli.environ)

    def restart(self) -> float:
        """Seconds until a new engine has answered a command."""
        began = time.perf_counter()
        self.listed("engine", "restart")
        self.listed("ps")
        elapsed = time.perf_counter() - began
        with contextlib.suppress(OSError):
            self._api.engine.close()
        self._api.engine = wherry.connect(root=self._api.root, run=self._api.run_directory)
        return elapsed

    def creates(self, count: int) -> list[float]:
        """Seconds of each create, one after the other; each container is removed again."""
        found = []
        for _ in range(count):
            began = time.perf_counter()
            container = self._api.engine.create(CREATED)
            found.append(time.perf_counter() - began)
            self._api.engine.remove(container.id)
        return found

    @contextlib.contextmanager
    def collecting(self) -> Iterator[list[float]]:
        """gc all the time meanwhile, by another client; the seconds that each took."""
        took: list[float] = []
        over = threading.Event()

        def collect() -> None:
            with wherry.connect(root=self._api.root, run=self._api.run_directory) as engine:  # type: ignore[attr-defined]
                while not over.is_set():
                    began = time.perf_counter()
                    engine.gc()
                    took.append(time.perf_counter() - began)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            yield took
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        """Its containers go with its directories: to remove each would take as long as to make it."""
        info = self._api.engine.info()
        self._api.engine.close()
        for process in (info.engine, info.shim):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, 9)
        while any(Path(f"/proc/{process.pid}").exists() for process in (info.engine, info.shim)):
            time.sleep(0.01)
