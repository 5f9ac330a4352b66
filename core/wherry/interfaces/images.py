"""What images take and share: records of the Engine Protocol."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

ArchiveFormat = Literal["docker-archive", "oci-archive"]
"""docker-archive: an image layout that has docker's manifest.json as well, as docker save writes it since version 25.
oci-archive: an image layout alone."""


@frozen
class LayerUse:
    """One layer of an image. size: bytes of its blob; unpacked: bytes that its snapshots take, all snapshotters together, -1
    where it is not unpacked; shared: other images that have the same layer, by their first name or id; created_by: the command
    that made it, as far as the image tells."""

    digest: str
    diff_id: str
    chain_id: str
    media_type: str
    size: int
    unpacked: int = -1
    shared: tuple[str, ...] = ()
    created_by: str = ""


@frozen
class LayerFile:
    """One entry of a layer. path is relative to the root; size is in bytes, of files; target is that of a link; whiteout: path was
    there below and is not any more; opaque: all that path had below is gone."""

    path: str
    kind: Literal["file", "directory", "link", "symlink", "device", "fifo", "whiteout", "opaque"]
    size: int = 0
    target: str = ""


@frozen
class ImageUse:
    """What an image takes: size is that of its blobs and unpacked layers in bytes, shared the part that other images have, too;
    containers counts those made from it."""

    id: str
    names: tuple[str, ...]
    created: int
    size: int
    shared: int
    containers: int


@frozen
class ContainerUse:
    """size: bytes of the container's own snapshot; times and status as in Container."""

    id: str
    name: str
    image: str
    command: tuple[str, ...]
    created: int
    status: str
    size: int


@frozen
class VolumeUse:
    """size: bytes of what is in the volume, -1 where it is nowhere on this host; containers counts those that have it."""

    name: str
    driver: str
    size: int
    containers: int


@frozen
class DiskUsage:
    """layers: bytes of all blobs and unpacked layers, each counted once; reclaimable: those that no container's image has."""

    images: tuple[ImageUse, ...]
    containers: tuple[ContainerUse, ...]
    layers: int
    reclaimable: int
    volumes: tuple[VolumeUse, ...] = ()


__all__ = ["ArchiveFormat", "ContainerUse", "DiskUsage", "ImageUse", "LayerFile", "LayerUse", "VolumeUse"]
