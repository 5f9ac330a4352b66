"""What an archive says about its images: OCI image-layout (image-spec, image-layout.md), docker save's manifest.json, or nothing,
being the tree of one image."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from attrs import frozen

from wherry.api import Descriptor, Digest, Invalid, NamedImage, NotFound
from wherry.kit.archives import compression_of
from wherry.spec.distribution import CONFIG, LAYER, MANIFEST
from wherry.spec.document import Fields, check_digest, parse_value
from wherry.spec.image import parse_config
from wherry.spec.layout import IMAGE_NAME, REF_NAME, parse_layout
from wherry_plugins.transport.archive.file import ArchiveFile, Member

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})", re.ASCII)


@frozen
class Contents:
    """images: what there is. documents: those that the archive does not hold itself. layers: members by digest, docker save's."""

    images: tuple[NamedImage, ...]
    documents: dict[str, bytes]
    layers: dict[str, Member]


def read_contents(archive: ArchiveFile) -> Contents:
    """Invalid for a file that is neither form."""
    if archive.find("index.json") is not None and archive.find("oci-layout") is not None:
        return _oci(archive)
    if archive.find("manifest.json") is not None:
        return _docker(archive)
    raise Invalid(archive.what, "is neither an OCI archive nor one of docker save: no index.json, no manifest.json")


def read_tree(archive: ArchiveFile, platform: str, describe: Callable[[BinaryIO], Descriptor]) -> Contents:
    """One image of one layer, which is the whole file: a tree as tar, debootstrap or ``docker export`` write it. Its config says the
    platform and no more. The same file gives the same image. describe: that of ``wherry.api.Workers``."""
    with archive.open() as stream:
        try:
            layer = describe(stream)
        except Invalid as error:
            raise Invalid(archive.what, error.cause, error.hint) from error
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    config = {
        "architecture": architecture,
        "os": system,
        **({"variant": variant} if variant else {}),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.annotations["diff-id"]]},
    }
    documents: dict[str, bytes] = {}
    target = _manifest(_add(documents, config), CONFIG, [layer], documents)
    return Contents((NamedImage("", target),), documents, {layer.digest: archive.all})


def _add(documents: dict[str, bytes], document: Any) -> bytes:
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    documents[f"sha256:{hashlib.sha256(data).hexdigest()}"] = data
    return data


def _manifest(config: bytes, media_type: str, layers: Sequence[Descriptor], documents: dict[str, bytes]) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    text = _add(
        documents,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": media_type, "digest": digest, "size": len(config)},
            "layers": [{"mediaType": d.media_type, "digest": d.digest, "size": d.size} for d in layers],
        },
    )
    return Descriptor(MANIFEST, Digest(f"sha256:{hashlib.sha256(text).hexdigest()}"), len(text))


def _oci(archive: ArchiveFile) -> Contents:
    index = parse_layout(archive.document("oci-layout"), archive.document("index.json"), archive.what)
    images = []
    for item in index.manifests:
        name = item.annotations.get(IMAGE_NAME, "")
        if not name:
            name = item.annotations.get(REF_NAME, "")
            # umoci and others write the tag alone; a single word may also be a repository, as skopeo writes it.
            if name == "latest":
                name = ""
        images.append(NamedImage(name, Descriptor(item.media_type, item.digest, item.size, platform=item.platform)))
    return Contents(tuple(images), {}, {})


def _docker(archive: ArchiveFile) -> Contents:
    what = f"{archive.what}: manifest.json"
    items = parse_value(archive.document("manifest.json"), what)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Invalid(what, "is not a list of objects")
    images: list[NamedImage] = []
    documents: dict[str, bytes] = {}
    layers: dict[str, Member] = {}
    for item in items:
        fields = Fields(item, what)
        config = archive.document(fields.text("Config"))
        config_digest = Digest(f"sha256:{hashlib.sha256(config).hexdigest()}")
        descriptor = Descriptor(CONFIG, config_digest, len(config))
        diff_ids = parse_config(config, descriptor).diff_ids
        paths = fields.texts("Layers", required=True)
        if len(paths) != len(diff_ids):
            raise Invalid(what, f"an image has {len(paths)} layers and {len(diff_ids)} diff-ids")
        described = [_layer(archive, path, diff_id, layers) for path, diff_id in zip(paths, diff_ids, strict=True)]
        documents[config_digest] = config
        target = _manifest(config, CONFIG, described, documents)
        names = fields.texts("RepoTags") or ("",)
        images += [NamedImage(name, target) for name in names]
    return Contents(tuple(images), documents, layers)


def _layer(archive: ArchiveFile, path: str, diff_id: str, layers: dict[str, Member]) -> Descriptor:
    """A layer's digest: the name of a blob says it, an uncompressed tar's is its diff-id, only another has to be hashed. The first
    two are claims; whoever stores the bytes checks them."""
    member = archive.find(path)
    if member is None:
        raise NotFound(archive.what, f'has no member "{path[:200]}"')
    compression = compression_of(archive.head(member, 4))
    blob = _BLOB.fullmatch(path)
    if blob is not None:
        digest = f"sha256:{blob[1]}"
    elif not compression:
        digest = check_digest(diff_id, archive.what)
    else:
        with archive.window(member, 0) as stream:
            digest = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    layers[digest] = member
    return Descriptor(LAYER + (f"+{compression}" if compression else ""), Digest(digest), member.size)
