"""URLs, parsed strictly: what a registry sends as one is a stranger's text."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from attrs import frozen

from wherry.api import Invalid

_PLAIN = re.compile(r"[\x21-\x7e]{1,8192}")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


@frozen
class Url:
    """scheme "http" or "https"; host in lower case, an IPv6 address without brackets; target is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What has to be equal for two URLs to be of one server."""
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """ "name[:port]", the port where it isn't the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def site(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    def __str__(self) -> str:
        """Without its query, which may hold a signature that is as good as a password."""
        return f"{self.site}{self.target.partition('?')[0]}"

    def at(self, target: str) -> Url:
        """Another resource of the same server."""
        return Url(self.scheme, self.host, self.port, target)

    def joined(self, location: str, what: str) -> Url:
        """What a Location header means here. Invalid."""
        _check(location, what)
        try:
            joined = urljoin(f"{self.site}{self.target}", location)
        except ValueError:
            raise Invalid(what, f'"{location[:200]}" is no URL') from None
        return parse_url(joined, what)


def parse_url(text: str, what: str) -> Url:
    """Invalid for another scheme, a user or password inside, or anything that two readers could read differently."""
    _check(text, what)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Invalid(what, f'"{text[:200]}" is no URL') from None
    if parts.scheme not in _PORTS:
        raise Invalid(what, f'"{text[:200]}" is no URL of http or https')
    if parts.username is not None or parts.password is not None:
        raise Invalid(what, "the URL has a user name in it")
    if ":" in host and "%" not in host:
        _address(host, what)
    elif not _HOST.fullmatch(host):
        raise Invalid(what, f'"{host[:200]}" is no host name')
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, target)


def _check(text: str, what: str) -> None:
    if not _PLAIN.fullmatch(text) or "\\" in text:
        raise Invalid(what, f"{text[:200]!r} is no URL")


def _address(host: str, what: str) -> None:
    import ipaddress

    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise Invalid(what, f'"{host[:200]}" is no address') from None
