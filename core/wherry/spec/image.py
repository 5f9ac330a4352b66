"""The image config (OCI image-spec, config.md): what a container of the image starts with, and the diff-ids of its layers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from attrs import field, frozen

from wherry.errors import Invalid
from wherry.interfaces.common import Descriptor, Digest
from wherry.spec.document import Fields, check_digest, parse

#: Labels that the runtime itself gives a meaning to: an image can't set them (CVE-2026-53488).
RESERVED = "wherry."


@frozen
class ImageConfig:
    """One config. document is the whole of it as JSON had it, less what is refused; created is ns since the epoch, 0 unknown."""

    platform: str
    created: int
    diff_ids: tuple[Digest, ...]
    labels: Mapping[str, str]
    document: Mapping[str, Any] = field(repr=False)

    def chain_ids(self) -> tuple[str, ...]:
        """One a layer, the lowest first (config.md, "Layer ChainID"); the last one names the whole root file system."""
        return chain_ids(self.diff_ids)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    return _chain_ids(tuple(diff_ids))


@lru_cache(64)  # each start asks, and an image may have a hundred layers
def _chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    result: list[str] = []
    for diff_id in diff_ids:
        if not result:
            result.append(diff_id)
        else:
            result.append("sha256:" + hashlib.sha256(f"{result[-1]} {diff_id}".encode()).hexdigest())
    return tuple(result)


def parse_config(data: bytes, target: Descriptor) -> ImageConfig:
    """Invalid where a field has another type than the spec says, or an environment entry has no "="."""
    what = f'image config "{target.digest}"'
    document = parse(data, what)
    fields = Fields(document, what)
    platform = "/".join(
        part for part in (fields.text("os"), fields.text("architecture"), fields.text("variant", "")) if part
    )
    rootfs = Fields(fields.object("rootfs", required=True), f"{what}: rootfs")
    if rootfs.text("type") != "layers":
        raise Invalid(what, 'its rootfs is not of type "layers"')
    diff_ids = tuple(
        Digest(check_digest(item, f"{what}: diff_ids")) for item in rootfs.texts("diff_ids", required=True)
    )
    inner = Fields(fields.object("config"), f"{what}: config")
    for entry in inner.texts("Env"):
        if entry.find("=") < 1 or "\0" in entry:
            # A name alone would be filled from the host's environment by a careless reader (CVE-2026-57231).
            raise Invalid(what, f"the environment entry {entry[:100]!r} is not NAME=VALUE")
    for key in ("Entrypoint", "Cmd"):
        if any("\0" in item for item in inner.texts(key)):
            raise Invalid(what, f'its "{key}" has a NUL character')
    for key in ("User", "WorkingDir", "StopSignal"):
        if "\0" in inner.text(key, ""):
            raise Invalid(what, f'its "{key}" has a NUL character')
    for key in ("ExposedPorts", "Volumes"):
        inner.object(key)
    labels = {key: value for key, value in inner.labels("Labels").items() if not key.startswith(RESERVED)}
    if inner.document:
        document = {**document, "config": {**inner.document, "Labels": labels}}
    return ImageConfig(platform, _time(fields.text("created", "")), diff_ids, labels, document)


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _time(text: str) -> int:
    """RFC 3339 as ns since the epoch; 0 for what is none, since nothing but a column of ``images`` hangs on it."""
    match = _TIME.fullmatch(text.upper())
    if not match:
        return 0
    try:
        moment = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
        seconds = int((moment - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds())  # noqa: UP017 - 3.11 has both
    except (ValueError, OverflowError):
        return 0
    return max(0, seconds * 1_000_000_000 + int((match[2] or "0")[:9].ljust(9, "0")))


__all__ = ["RESERVED", "ImageConfig", "chain_ids", "parse_config"]
