"""Manifests, indexes and descriptors (OCI image-spec, manifest.md, image-index.md, descriptor.md), and Docker's schema 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from wherry.errors import Invalid, NotFound
from wherry.interfaces.common import Descriptor, Digest
from wherry.spec.document import Fields, check_digest, parse

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
MANIFEST = f"{OCI}.manifest.v1+json"
INDEX = f"{OCI}.index.v1+json"
CONFIG = f"{OCI}.config.v1+json"
LAYER = f"{OCI}.layer.v1.tar"
MANIFESTS = frozenset((MANIFEST, f"{DOCKER}.distribution.manifest.v2+json"))
INDEXES = frozenset((INDEX, f"{DOCKER}.distribution.manifest.list.v2+json"))
CONFIGS = frozenset((CONFIG, f"{DOCKER}.container.image.v1+json"))
_LAYER_BASES = (
    LAYER,
    f"{OCI}.layer.nondistributable.v1.tar",
    f"{DOCKER}.image.rootfs.diff.tar",
    f"{DOCKER}.image.rootfs.foreign.diff.tar",
)
LAYERS = frozenset(base + end for base in _LAYER_BASES for end in ("", "+gzip", "+zstd", ".gzip", ".zstd"))
#: More than any tool makes, and than overlayfs stacks; each costs whoever unpacks it a process.
LAYERS_MAX = 1024
#: Layers that a registry may lack, since their licences forbid to pass them on; their descriptors have URLs instead.
FOREIGN = frozenset(
    base + end
    for base in (f"{OCI}.layer.nondistributable.v1.tar", f"{DOCKER}.image.rootfs.foreign.diff.tar")
    for end in ("", "+gzip", "+zstd", ".gzip", ".zstd")
)
#: What to ask a registry for, as the value of an Accept header; indexes first (distribution-spec, "Pulling manifests").
ACCEPT = ", ".join([*sorted(INDEXES, reverse=True), *sorted(MANIFESTS, reverse=True)])
#: Content-Types that say nothing.
_GENERIC = frozenset(("", "application/json", "application/octet-stream", "text/plain"))


@frozen
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@frozen
class Index:
    """Several images, or several platforms of one."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


def parse_descriptor(document: Mapping[str, Any], what: str) -> Descriptor:
    fields = Fields(document, what)
    platform = Fields(fields.object("platform"), f"{what}: platform")
    parts = [platform.text("os", ""), platform.text("architecture", ""), platform.text("variant", "")]
    return Descriptor(
        fields.text("mediaType"),
        Digest(check_digest(document.get("digest"), what)),
        fields.number("size"),
        fields.labels("annotations"),
        "/".join(part for part in parts if part) if parts[0] else "",
    )


def parse_target(data: bytes, target: Descriptor) -> Manifest | Index:
    """What the document at target is. Invalid where its own words, its fields or the descriptor that led here disagree
    (CVE-2021-41190: one document read as a manifest by some and as an index by others)."""
    what = f'manifest "{target.digest}"'
    document = parse(data, what)
    fields = Fields(document, what)
    if fields.number("schemaVersion") != 2:
        raise Invalid(what, "has a schemaVersion other than 2", "push the image again with a present-day tool")
    declared = fields.text("mediaType", target.media_type)
    if declared != target.media_type:
        raise Invalid(what, f'says it is "{declared}", the descriptor says "{target.media_type}"')
    if declared in MANIFESTS:
        if document.keys() & {"manifests", "fsLayers"}:
            raise Invalid(what, "is ambiguous: a manifest with the fields of an index")
        return _manifest(fields)
    if declared in INDEXES:
        if document.keys() & {"layers", "config", "fsLayers"}:
            raise Invalid(what, "is ambiguous: an index with the fields of a manifest")
        items = fields.objects("manifests", required=True)
        return Index(
            tuple(parse_descriptor(item, f"{what}: manifests[{number}]") for number, item in enumerate(items)),
            fields.labels("annotations"),
        )
    raise Invalid(what, f'is of type "{declared}", neither a manifest nor an index')


def media_type_of(data: bytes, declared: str, what: str) -> str:
    """The media type of a document that came as Content-Type declared. Invalid where that, and the document, leave it open.

    What both say is compared by ``parse_target``."""
    base = declared.partition(";")[0].strip().lower()
    if base in MANIFESTS | INDEXES:
        return base
    document = parse(data, what)
    own = Fields(document, what).text("mediaType", "")
    if not own and base in _GENERIC:
        own = INDEX if "manifests" in document else MANIFEST
    if own in MANIFESTS | INDEXES:
        return own
    raise Invalid(what, f'is of type "{(own or base)[:200]}", neither a manifest nor an index')


def _manifest(fields: Fields) -> Manifest:
    what = fields.what
    config = parse_descriptor(fields.object("config", required=True), f"{what}: config")
    if config.media_type not in CONFIGS:
        raise Invalid(what, f'its config is of type "{config.media_type}": not an image')
    items = fields.objects("layers", required=True)
    if len(items) > LAYERS_MAX:
        raise Invalid(what, f"has {len(items)} layers, more than {LAYERS_MAX}")
    layers = tuple(parse_descriptor(item, f"{what}: layers[{number}]") for number, item in enumerate(items))
    for layer in layers:
        if layer.media_type not in LAYERS:
            raise Invalid(what, f'a layer is of type "{layer.media_type}", which can\'t be unpacked')
    return Manifest(config, layers, fields.labels("annotations"))


def choose(manifests: Sequence[Descriptor], platform: str, what: str) -> Descriptor:
    """The entry for a platform ("os/arch[/variant]"); NotFound lists what there is.

    The same variant is best, then an entry without one, then any other of that architecture. Entries without a platform count
    only when no entry has one. Attestations ("unknown/unknown") are never meant.
    """
    wanted = split(platform)
    best: tuple[int, Descriptor] | None = None
    for item in manifests:
        if item.media_type not in MANIFESTS | INDEXES:
            continue
        system, architecture, variant = split(item.platform)
        if (system, architecture) != wanted[:2]:
            continue
        rank = 0 if variant == wanted[2] else 1 if not variant else 2
        if best is None or rank < best[0]:
            best = (rank, item)
    if best is not None:
        return best[1]
    plain = [item for item in manifests if not item.platform and item.media_type in MANIFESTS | INDEXES]
    if plain and len(plain) == len(manifests):
        return plain[0]
    offered = ", ".join(sorted({item.platform for item in manifests if item.platform})) or "none"
    raise NotFound(what, f"has nothing for the platform {platform}", f"it has: {offered}")


_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7"}


def split(platform: str) -> tuple[str, str, str]:
    """(os, architecture, variant) in the words of GOOS and GOARCH; "arm64" and "arm64/v8" are the same. An architecture by itself
    is that of linux."""
    system, slash, rest = platform.lower().partition("/")
    if platform and not slash:
        system, rest = "linux", system
    architecture, _, variant = rest.partition("/")
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if variant == _DEFAULT_VARIANT.get(architecture) or (architecture == "amd64" and variant == "v1"):
        variant = ""
    return system, architecture, variant


def host_platform() -> str:
    """This machine's, e.g. "linux/amd64"."""
    import os

    machine = os.uname().machine
    if machine.startswith("armv"):
        return f"linux/arm/{machine[3:5]}"
    if machine in ("i486", "i586", "i686"):
        machine = "386"
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


__all__ = [
    "ACCEPT",
    "CONFIG",
    "CONFIGS",
    "DOCKER",
    "FOREIGN",
    "INDEX",
    "INDEXES",
    "LAYER",
    "LAYERS",
    "MANIFEST",
    "MANIFESTS",
    "Index",
    "Manifest",
    "choose",
    "host_platform",
    "media_type_of",
    "parse_descriptor",
    "parse_target",
    "split",
]
