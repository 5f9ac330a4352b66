"""Row 5: an image from a registry on this machine, pulled and unpacked, until it could be run; and what its stages take alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from isal import igzip_lib, isal_zlib
from world import ENVIRON, AbsentError, Spawner, World, need

from wherry.layers.compression import zstd_module

CONFIG = """version = 1
default = "bench"
[variant.bench]
extends = "standard"
snapshotter = "{snapshotter}"
"""


class Image:
    """How large, of how many files, in how many layers, compressed how ("gzip" or "zstd")."""

    def __init__(self, megabytes: int, files: int, layers: int, compression: str) -> None:
        self.megabytes, self.files, self.layers, self.compression = megabytes, files, layers, compression
        self.tag = f"{megabytes}mb-{files}-{layers}-{compression}"
        plural = "s" if layers > 1 else ""
        self.title = f"pull {megabytes} MB, {files:,} files, {layers} {compression} layer{plural}"

    def tars(self) -> Iterator[bytes]:
        """Half noise and half text, as programs are; the same each time."""
        chance = random.Random(5)
        text = (b"the quick brown fox jumps over the lazy dog; " * 1000)[:32768]
        each, size = self.files // self.layers, self.megabytes * 1_000_000 // self.files
        for number in range(self.layers):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                for index in range(each):
                    if index % 50 == 0:
                        folder = tarfile.TarInfo(f"layer{number}-{index // 50}")
                        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                        archive.addfile(folder)
                    info = tarfile.TarInfo(f"layer{number}-{index // 50}/file{index}")
                    info.size = size
                    noise = chance.randbytes(size // 2)
                    archive.addfile(info, io.BytesIO(noise + (text * (size // len(text) + 1))[: size - size // 2]))
            yield buffer.getvalue()

    def write(self, layout: Path) -> None:
        """As an OCI image layout."""
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)

        def put(data: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            return {"digest": f"sha256:{digest}", "size": len(data)}

        described, diff_ids = [], []
        for data in self.tars():
            diff_ids.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
            packed = (
                isal_zlib.compress(data, 2, wbits=31) if self.compression == "gzip" else zstd_module().compress(data)
            )
            described.append({"mediaType": f"application/vnd.oci.image.layer.v1.tar+{self.compression}", **put(packed)})
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        config = {
            "os": "linux",
            "architecture": machine,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": described,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **put(json.dumps(config).encode())},
        }  # fmt: skip
        entry = {"mediaType": manifest["mediaType"], **put(json.dumps(manifest).encode())}
        entry["annotations"] = {"org.opencontainers.image.ref.name": self.tag}
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


class Registry:
    """Debian's docker-registry, and the images in it."""

    def __init__(self, world: World) -> None:
        program, self.skopeo = need("docker-registry"), need("skopeo")
        self.base = world.base / "registry"
        self.base.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        config = self.base / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.base / 'data'}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )
        self.process = subprocess.Popen(
            [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRON
        )
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.close()
        raise AbsentError("docker-registry does not answer within 30 s")

    def push(self, image: Image) -> str:
        """The reference of an image, put there."""
        layout = self.base / image.tag
        image.write(layout)
        reference = f"{self.host}/bench:{image.tag}"
        copy = [
            self.skopeo,
            "--insecure-policy",
            "--tmpdir",
            str(self.base),
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]
        subprocess.run([*copy, f"oci:{layout}:{image.tag}", f"docker://{reference}"], check=True, timeout=600)
        return reference

    def stages(self, image: Image) -> dict[str, float]:
        """Seconds that each stage takes alone, in one thread: to inflate by ISA-L (or zstd), to hash, to write and sync."""
        index = json.loads((self.base / image.tag / "index.json").read_text())
        blobs = self.base / image.tag / "blobs"
        manifest = json.loads((blobs / index["manifests"][0]["digest"].replace(":", "/")).read_text())
        layers = [(blobs / layer["digest"].replace(":", "/")).read_bytes() for layer in manifest["layers"]]
        took: dict[str, float] = {}
        began = time.perf_counter()
        gzip = image.compression == "gzip"
        plain = [
            igzip_lib.decompress(data, flag=igzip_lib.DECOMP_GZIP) if gzip else zstd_module().decompress(data)
            for data in layers
        ]
        took["inflate alone"] = time.perf_counter() - began
        began = time.perf_counter()
        for data in (*layers, *plain):
            hashlib.sha256(data).digest()
        took["hash alone"] = time.perf_counter() - began
        target = self.base / "written"
        os.sync()
        began = time.perf_counter()
        for data in plain:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for info in archive:
                    if info.isdir():
                        (target / info.name).mkdir(parents=True)
                    else:
                        (target / info.name).write_bytes(data[info.offset_data : info.offset_data + info.size])
        os.sync()
        took["write alone"] = time.perf_counter() - began
        shutil.rmtree(target)
        return took

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Wherry:
    """The command line on an engine of its own, whose default snapshotter is the one given."""

    def __init__(self, world: World, snapshotter: str) -> None:
        self.name = f"wherry {snapshotter}"
        self.spawner = world.spawner
        self.program = str(Path(sys.executable).parent / "wherry")
        place = world.base / f"pull-{snapshotter}"
        place.mkdir()
        (place / "config.toml").write_text(CONFIG.format(snapshotter=snapshotter))
        places = {"ROOT": place / "root", "RUN": world.run / place.name, "CONFIG": place / "config.toml"}
        self.environ = {
            **ENVIRON,
            "HOME": str(world.base),
            **{f"WHERRY_{key}": str(path) for key, path in places.items()},
        }
        self._run("version")

    def _run(self, *words: str) -> float:
        return self.spawner.one([self.program, *words], self.environ)

    def pull(self, reference: str) -> float:
        return self._run("pull", "--quiet", reference)

    def drop(self, reference: str) -> None:
        self._run("rmi", reference)
        self._run("gc")

    def close(self) -> None:
        subprocess.run([self.program, "engine", "stop"], env=self.environ, check=False, capture_output=True, timeout=60)


class Containerd:
    """Debian's package with a daemon of its own, by ctr(8), which unpacks with overlayfs as docker and Kubernetes have it do."""

    name = "containerd"

    def __init__(self, world: World) -> None:
        daemon, self.program = need("containerd"), need("ctr")
        self.spawner: Spawner = world.spawner
        state, root = world.run / "containerd", world.base / "containerd"
        for path in (state, root):
            path.mkdir()
        (root / "config.toml").write_text(
            f'version = 2\nroot = "{root}"\nstate = "{state}"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{state}/sock"\n'
        )
        self.process = subprocess.Popen(
            [daemon, "--config", str(root / "config.toml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRON,
        )
        self.command = [self.program, "--address", f"{state}/sock"]
        for _ in range(200):
            if subprocess.run([*self.command, "version"], capture_output=True, check=False, timeout=30).returncode == 0:
                return
            time.sleep(0.1)
        self.close()
        raise AbsentError("containerd does not answer within 20 s")

    def pull(self, reference: str) -> float:
        return self.spawner.one([*self.command, "images", "pull", "--plain-http", reference])

    def drop(self, reference: str) -> None:
        self.spawner.one([*self.command, "images", "rm", "--sync", reference])

    def close(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Other:
    """docker or podman, as the other rows have them."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.words = ("pull", "--quiet", *(("--tls-verify=false",) if engine.name == "podman" else ()))

    def pull(self, reference: str) -> float:
        return float(self.engine.run(*self.words, reference))

    def drop(self, reference: str) -> None:
        self.engine.run("rmi", "--force", reference)


def subjects(peers: Mapping[str, Any], reference: str) -> dict[str, Callable[[], float]]:
    """Who pulls; each forgets the image again, and the disk is quiet before the next one begins."""

    def once(puller: Any) -> Callable[[], float]:
        def pull() -> float:
            os.sync()
            took = float(puller.pull(reference))
            puller.drop(reference)
            return took

        return pull

    found: dict[str, Callable[[], float]] = {}
    for name in ("wherry overlayfs", "wherry vfs", "containerd", "docker", "podman"):
        if name in peers:
            found[name] = once(Other(peers[name]) if name in ("docker", "podman") else peers[name])
    return found
