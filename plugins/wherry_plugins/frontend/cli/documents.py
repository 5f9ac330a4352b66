"""Images and volumes as documents under docker's names (Docker Engine API, ImageInspect, VolumeInspect); the engine makes those of
containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.api import Engine, ImageInfo
from wherry.spec.reference import familiar
from wherry_plugins.frontend.cli.human import iso, local

NONE = "<none>"


def split_name(name: str) -> tuple[str, str, str]:
    """(repository, tag, digest) of a full reference, the default registry left out as docker does."""
    name, _, digest = familiar(name).partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, NONE
    return repository, tag, digest


def _comment(history: Any) -> str:
    """Of the last step; an image may say anything there."""
    last = history[-1] if isinstance(history, (list, tuple)) and history else None
    return str(last.get("comment") or "") if isinstance(last, Mapping) else ""


def image_document(image: ImageInfo) -> dict[str, Any]:
    """As docker's, from the image's config; Size is that of the blobs."""
    config = dict(image.config)
    variant = config.get("variant", "")
    return {
        "Id": image.id,
        "RepoTags": [familiar(name) for name in image.names if "@" not in name],
        "RepoDigests": list(dict.fromkeys(f"{split_name(name)[0]}@{image.target.digest}" for name in image.names)),
        "Parent": "",
        "Comment": _comment(config.get("history")),
        "Author": config.get("author", ""),
        "Created": iso(image.created),
        "Size": image.size,
        "Os": config.get("os", image.platform.partition("/")[0]),
        "Architecture": config.get("architecture", image.platform.partition("/")[2]),
        **({"Variant": variant} if variant else {}),
        "Config": config.get("config", {}),
        "RootFS": {"Type": "layers", "Layers": list((config.get("rootfs") or {}).get("diff_ids") or image.layers)},
        "Labels": dict(image.labels),
        "Descriptor": {"mediaType": image.target.media_type, "digest": image.target.digest, "size": image.target.size},
    }


def volume_document(engine: Engine, name: str) -> dict[str, Any]:
    """As docker's, and which containers have it. NotFound."""
    volume = engine.volume(name)
    return {
        "Name": volume.name,
        "Driver": volume.driver,
        "Mountpoint": volume.mountpoint,
        "CreatedAt": local(volume.created),
        "Labels": dict(volume.labels),
        "Options": dict(volume.options),
        "Scope": "local",
        "UsedBy": list(engine.volume_users(name)),
    }
