"""Image layouts (OCI image-spec, image-layout.md): what is beside their blobs, and how images are named in them."""

from __future__ import annotations

import hashlib

from wherry.errors import Invalid
from wherry.interfaces.common import Descriptor, Digest
from wherry.spec.distribution import INDEX, Index, parse_target
from wherry.spec.document import Fields, parse

#: Annotations of index.json's entries. The first is a full name, as containerd and docker write it; of the second some tools
#: make a full name, others a tag alone.
IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
#: The file ``oci-layout`` of what is written here.
LAYOUT = {"imageLayoutVersion": "1.0.0"}


def parse_layout(layout: bytes, index: bytes, what: str) -> Index:
    """The files ``oci-layout`` and ``index.json``. Invalid for another version and for what is no index; what names the layout."""
    where = f"{what}: oci-layout"
    version = Fields(parse(layout, where), where).text("imageLayoutVersion")
    if not version.startswith("1."):
        raise Invalid(what, f'is an image layout of version "{version[:20]}", not 1')
    target = Descriptor(INDEX, Digest(f"sha256:{hashlib.sha256(index).hexdigest()}"), len(index))
    document = parse_target(index, target)
    if not isinstance(document, Index):
        raise Invalid(what, "its index.json is no index")
    return document


__all__ = ["IMAGE_NAME", "LAYOUT", "REF_NAME", "parse_layout"]
