"""/etc/hosts, /etc/hostname and /etc/resolv.conf of a container: files of the bundle that are bind-mounted over its own.

They are written in place, never renamed over: a bind mount shows the inode it was made of. Formats: hosts(5),
resolv.conf(5); contents as Docker gives them (docker run, "Managing /etc/hosts", "DNS").
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from attrs import frozen

from wherry.api import Invalid, RunRequest

NAMES = ("hosts", "hostname", "resolv.conf")
_LOCAL = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


@frozen
class HostFiles:
    """What to write. host: the network namespace is the host's, so its own files are taken over."""

    hostname: str
    hosts: str
    resolv_conf: str

    def files(self) -> dict[str, bytes]:
        """Name -> content."""
        texts = (self.hosts, self.hostname + "\n", self.resolv_conf)
        return {name: text.encode("utf-8", "surrogateescape") for name, text in zip(NAMES, texts, strict=True)}


def make(
    request: RunRequest,
    *,
    hostname: str,
    host: bool,
    addresses: Iterable[str] = (),
    names: Iterable[str] = (),
    nameservers: Iterable[str] = (),
) -> HostFiles:
    """addresses are CIDR as a network attached them; names: more names for them. Invalid for a wrong --add-host or --dns."""
    base = _read("/etc/hosts") if host else _LOCAL
    lines = [f"{address.split('/')[0]}\t{' '.join((hostname, *names))}\n" for address in addresses]
    for entry in request.extra_hosts:
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if not name or not separator or not _is_address(address) or any(c.isspace() for c in name):
            raise Invalid(f'extra host "{entry}"', "not NAME:ADDRESS")
        lines.append(f"{address.strip('[]')}\t{name}\n")
    if base and not base.endswith("\n"):
        base += "\n"
    return HostFiles(hostname, base + "".join(lines), _resolv_conf(request, host, tuple(nameservers)))


def _resolv_conf(request: RunRequest, host: bool, nameservers: tuple[str, ...]) -> str:
    for server in request.dns:
        if not _is_address(server):
            raise Invalid(f'dns server "{server}"', "not an address")
    text = _read("/etc/resolv.conf")
    if host and not (request.dns or request.dns_search or request.dns_options):
        return text
    servers, search, options = [], "", ""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            # A resolver that listens on the host's loopback is not there in another network namespace.
            if host or not (words[1].startswith("127.") or words[1] == "::1"):
                servers.append(words[1])
        elif len(words) > 1 and words[0] in ("search", "domain"):
            search = " ".join(words[1:])
        elif len(words) > 1 and words[0] == "options":
            options = " ".join(words[1:])
    if request.dns or nameservers:
        servers = list(request.dns or nameservers)
    if request.dns_search:
        search = "" if request.dns_search == (".",) else " ".join(request.dns_search)
    if request.dns_options:
        options = " ".join(request.dns_options)
    lines = [f"nameserver {server}\n" for server in servers]
    if search:
        lines.append(f"search {search}\n")
    if options:
        lines.append(f"options {options}\n")
    return "".join(lines)


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text.strip("[]"))
        except OSError:
            continue
        return True
    return False


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 1 << 20).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    finally:
        os.close(fd)
