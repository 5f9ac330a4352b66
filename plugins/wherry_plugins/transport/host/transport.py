"""Resolves ``host:PATH,PATH,...`` and streams what it is made of."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections import OrderedDict
from typing import BinaryIO, cast

from attrs import frozen

from wherry.api import Descriptor, Digest, Invalid, NamedImage, NotFound
from wherry.spec.distribution import CONFIG, LAYER, MANIFEST, host_platform, split
from wherry_plugins.transport.host.closure import Closure
from wherry_plugins.transport.host.layer import LayerPlan, PieceStream

_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_KEPT = 8
_PROGRAMS_MAX = 256


@frozen
class _Built:
    manifest: Descriptor
    documents: dict[str, bytes]
    layer: Descriptor
    plan: LayerPlan


class HostTransport:
    """Implements ``wherry.api.Transport``; the last few images that were resolved are remembered for their fetch."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._lock = threading.Lock()
        self._built: OrderedDict[str, _Built] = OrderedDict()

    def resolve(self, reference: str, platform: str) -> tuple[NamedImage, ...]:
        own = host_platform()
        if platform and split(platform) != split(own):
            raise NotFound(f'image "host:{reference}"', f"is of the platform {own}, not {platform}")
        built = self._build(reference)
        with self._lock:
            self._built[reference] = built
            while len(self._built) > _KEPT:
                self._built.popitem(last=False)
        return (NamedImage("", built.manifest),)

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        with self._lock:
            built = self._built.get(reference)
        if built is None:
            built = self._build(reference)
            with self._lock:
                self._built[reference] = built
        if descriptor.digest == built.layer.digest:
            return cast(BinaryIO, io.BufferedReader(PieceStream(built.plan.pieces(), offset), 1 << 20))
        document = built.documents.get(descriptor.digest)
        if document is None:
            raise NotFound(f'blob "{descriptor.digest}"', f'is not part of "host:{reference}" as the files are now')
        return io.BytesIO(document[offset:])

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        raise Invalid(f'image "host:{reference}"', "can't be pushed: it stands for files of this host")

    def _build(self, reference: str) -> _Built:
        programs = list(dict.fromkeys(part.strip() for part in reference.split(",") if part.strip()))
        if not programs or len(programs) > _PROGRAMS_MAX:
            raise Invalid(
                f'image "host:{reference}"', f"names {len(programs)} programs", "write it as host:/bin/sh,/bin/ls"
            )
        closure = Closure()
        for program in programs:
            closure.add_program(program)
        plan = LayerPlan(self._max_size)
        for path in closure.files:
            plan.add(path)
        if closure.needs_cache:
            plan.add("/etc/ld.so.cache")  # some library lies where the loader looks only by its cache
        plan.add_base()
        digest, size = plan.digest()
        layer = Descriptor(LAYER, Digest(digest), size)
        directories = dict.fromkeys([*(program.rpartition("/")[0] or "/" for program in programs)])
        extra = [directory for directory in directories if directory not in _PATH]
        system, _, rest = host_platform().partition("/")
        architecture, _, variant = rest.partition("/")
        config = {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(plan.newest)),
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
            "os": system,
            "config": {"Env": [f"PATH={':'.join([*extra, *_PATH])}"], "Cmd": [programs[0]], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created_by": f"host:{','.join(programs)}"}],
        }
        config_text, config_descriptor = _document(CONFIG, config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _plain(config_descriptor),
            "layers": [_plain(layer)],
        }
        text, descriptor = _document(MANIFEST, manifest)
        documents = {config_descriptor.digest: config_text, descriptor.digest: text}
        return _Built(descriptor, cast("dict[str, bytes]", documents), layer, plan)


def _document(media_type: str, value: object) -> tuple[bytes, Descriptor]:
    text = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    return text, Descriptor(media_type, Digest(f"sha256:{hashlib.sha256(text).hexdigest()}"), len(text))


def _plain(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
