"""References of images as users write them, and as the store has them (the grammar is that of Docker's distribution/reference)."""

from __future__ import annotations

import re

from attrs import frozen

from wherry.errors import Invalid

_DOMAIN_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_NAME_MAX = 255
DEFAULT_DOMAIN = "docker.io"


@frozen
class Reference:
    """The parts of a full name: domain is "name[:port]", path the repository in it; tag or digest may be "", not both."""

    domain: str
    path: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """As a user would have it in full: "docker.io/library/busybox:latest"."""
        return (
            f"{self.domain}/{self.path}"
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )


def parse_reference(reference: str) -> Reference:
    """The parts of a reference in its short or full form. Invalid for what is none."""
    what = f'image "{reference[:300]}"'
    rest, at, digest = reference.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise Invalid(what, "invalid reference format: no digest sha256:<64 hex digits> after the @")
    name, tag = rest, ""
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        name, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise Invalid(what, "invalid reference format: the tag is not letters, digits, _, . and -, at most 128")
    domain, slash, path = name.partition("/")
    if not slash or not (domain == "localhost" or set(domain) & set(".:") or domain != domain.lower()):
        domain, path = DEFAULT_DOMAIN, name
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if not _DOMAIN.fullmatch(domain):
        raise Invalid(what, "invalid reference format: no host name before the first /")
    if not _PATH.fullmatch(path):
        if _PATH.fullmatch(path.lower()):
            raise Invalid(what, "invalid reference format: the repository name has to be lower case")
        raise Invalid(what, "invalid reference format")
    if len(domain) + 1 + len(path) > _NAME_MAX:
        raise Invalid(what, f"invalid reference format: the name is longer than {_NAME_MAX} characters")
    return Reference(domain, path, tag if tag or at else "latest", digest)


def normalize(reference: str) -> str:
    """The full name: "busybox" is "docker.io/library/busybox:latest". Invalid for what is no reference."""
    return parse_reference(reference).name


def familiar(name: str) -> str:
    """The short form of a full name, as users see it: "busybox:latest". It always leads back to the full one."""
    if not name.startswith(f"{DEFAULT_DOMAIN}/"):
        return name
    rest = name[len(DEFAULT_DOMAIN) + 1 :]
    if rest.startswith("library/") and "/" not in rest[8:]:
        return rest[8:]
    first, slash, _ = rest.partition("/")
    is_host = first == "localhost" or set(first) & set(".:") or first != first.lower()
    return rest if slash and not is_host else name


__all__ = ["DEFAULT_DOMAIN", "Reference", "familiar", "normalize", "parse_reference"]
