"""Row 5: an image from a registry on this machine, pulled and unpacked, until it could be run; and what its stages take alone."""

from __future__ import annotations

import functools
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from isal import igzip_lib, isal_zlib
from world import ENVIRON, AbsentError, Spawner, World, need

from wherry.layers.compression import zstd_module

PIECE = 1 << 20
VFS_MOST = 6000  # megabytes times layers
CONFIG = """version = 1
default = "bench"
[variant.bench]
extends = "standard"
snapshotter = "{snapshotter}"
"""


class Image:
    """How large, of how many files, in how many layers, compressed how ("gzip" or "zstd"); made in editions that share no layer."""

    def __init__(self, megabytes: int, files: int, layers: int, compression: str) -> None:
        self.megabytes, self.files, self.layers, self.compression = megabytes, files, layers, compression
        plural = "s" if layers > 1 else ""
        self.title = f"pull {megabytes} MB, {files:,} files, {layers} {compression} layer{plural}"

    def tag(self, edition: int) -> str:
        return f"{self.megabytes}mb-{self.files}-{self.layers}-{self.compression}-{edition}"

    def tars(self, edition: int) -> Iterator[bytes]:
        """Half noise and half text, as programs are; the same each time."""
        noise = _noise()
        text = (b"the quick brown fox jumps over the lazy dog; " * 1000)[:32768]
        each, size = self.files // self.layers, self.megabytes * 1_000_000 // self.files
        readable = (text * (size // len(text) + 1))[: size - size // 2]
        for number in range(self.layers):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                for index in range(each):
                    if index % 50 == 0:
                        folder = tarfile.TarInfo(f"layer{number}-{index // 50}")
                        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                        archive.addfile(folder)
                    info = tarfile.TarInfo(f"layer{number}-{index // 50}/file{index}")
                    mark = (
                        f"{self.compression} {self.layers} {edition} {number} {index} ".encode()
                    )  # no two images share a layer
                    at = (number * each + index) * (size // 2) % (len(noise) - size)
                    content = (mark + noise[at : at + size // 2 - len(mark)] + readable)[:size]
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            yield buffer.getvalue()

    def write(self, layout: Path, edition: int) -> None:
        """As an OCI image layout."""
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)

        def put(data: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            return {"digest": f"sha256:{digest}", "size": len(data)}

        described, diff_ids = [], []
        for data in self.tars(edition):
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
        entry["annotations"] = {"org.opencontainers.image.ref.name": self.tag(edition)}
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


@functools.cache
def _noise() -> bytes:
    """More of it than any window of a compressor holds."""
    return random.Random(5).randbytes(200_000_000)


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

    def push(self, image: Image, edition: int) -> str:
        """The reference of an image, put there."""
        layout = self.base / image.tag(edition)
        image.write(layout, edition)
        reference = f"{self.host}/bench:{image.tag(edition)}"
        copy = [
            self.skopeo,
            "--insecure-policy",
            "--tmpdir",
            str(self.base),
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]
        source, target = f"oci:{layout}:{image.tag(edition)}", f"docker://{reference}"
        subprocess.run([*copy, source, target], check=True, timeout=600)
        return reference

    def stages(self, image: Image, edition: int) -> dict[str, float]:
        """Seconds that each stage takes alone, in one thread, in pieces that stay in the processor's cache: to inflate by ISA-L (or
        zstd), to hash what comes in and goes out, to write the files and put them on the disk."""
        layout = self.base / image.tag(edition)
        index = json.loads((layout / "index.json").read_text())
        blobs = layout / "blobs"
        manifest = json.loads((blobs / index["manifests"][0]["digest"].replace(":", "/")).read_text())
        layers = [(blobs / layer["digest"].replace(":", "/")).read_bytes() for layer in manifest["layers"]]
        took = dict.fromkeys(("inflate alone", "hash alone", "write alone"), 0.0)
        target = self.base / f"written-{image.tag(edition)}"
        target.mkdir()
        os.sync()
        for packed in layers:
            began = time.perf_counter()
            for _piece in _inflated(packed, image.compression):
                pass
            took["inflate alone"] += time.perf_counter() - began
            data = b"".join(_inflated(packed, image.compression))
            began = time.perf_counter()
            for whole in (memoryview(packed), memoryview(data)):
                digest = hashlib.sha256()
                for at in range(0, len(whole), PIECE):
                    digest.update(whole[at : at + PIECE])
            took["hash alone"] += time.perf_counter() - began
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                members = list(archive)
            began = time.perf_counter()
            _written(target, members, memoryview(data))
            took["write alone"] += time.perf_counter() - began
        began = time.perf_counter()
        os.sync()
        took["write alone"] += time.perf_counter() - began
        return took

    def forget(self, image: Image, edition: int) -> None:
        """Deletes what an image was pushed from: a few large files."""
        shutil.rmtree(self.base / image.tag(edition))

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


def _inflated(packed: bytes, compression: str) -> Iterator[bytes]:
    if compression == "gzip":
        decoder: Any = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    else:
        decoder = zstd_module().ZstdDecompressor()
    given = 0
    while not decoder.eof:
        piece = b""
        if decoder.needs_input:
            piece, given = packed[given : given + PIECE], given + PIECE
        yield decoder.decompress(piece, PIECE)


def _written(target: Path, members: Sequence[tarfile.TarInfo], data: memoryview) -> None:
    for info in members:
        path = f"{target}/{info.name}"
        if info.isdir():
            os.mkdir(path)
            continue
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.write(fd, data[info.offset_data : info.offset_data + info.size])
        os.close(fd)


#: Whoever pulls, in the order of the table.
PULLERS = ("wherry overlayfs", "wherry vfs", "containerd", "docker", "podman")


def copies_too_much(name: str, image: Image) -> bool:
    """vfs has a copy of all below for each layer: half the image times its layers."""
    return name == "wherry vfs" and image.megabytes * image.layers > VFS_MOST


def once(puller: Any, reference: str) -> float:
    """Seconds of one pull, begun when the disk has nothing to do. The image stays: on ext4, what deletes an inode slows down
    whoever makes one for the next five minutes (``recently_deleted`` in fs/ext4/ialloc.c), so that all would be charged for it."""
    os.sync()
    return float(puller.pull(reference))
