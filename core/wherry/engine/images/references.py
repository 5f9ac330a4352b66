"""What the engine adds to references: a transport's id as prefix, and names for images that have none."""

from __future__ import annotations

from collections.abc import Collection

from wherry.api import Invalid
from wherry.spec.reference import DEFAULT_DOMAIN, familiar, normalize

#: Begins the name under which an image without one is kept; no reference can be written like that.
NAMELESS = "<none>@"


def split_transport(reference: str, transports: Collection[str]) -> tuple[str, str]:
    """("archive", "/x.tar") of "archive:/x.tar"; ("", reference) where no transport's id is its prefix."""
    prefix, colon, rest = reference.partition(":")
    if colon and prefix in transports:
        if not rest:
            raise Invalid(f'image "{reference}"', f'nothing follows "{prefix}:"')
        return prefix, rest
    return "", reference


def repository(name: str) -> str:
    """A full name without its tag and digest."""
    rest = name.partition("@")[0]
    colon = rest.rfind(":")
    return rest[:colon] if colon > rest.rfind("/") else rest


__all__ = ["DEFAULT_DOMAIN", "NAMELESS", "familiar", "normalize", "repository", "split_transport"]
