"""/etc/hosts, /etc/hostname and /etc/resolv.conf of a container: files of the bundle that are bind-mounted over its own.

They are written in place, never renamed over: a bind mount shows the inode it was made of. Formats: hosts(5),
resolv.conf(5); contents as Docker gives them (docker run, "Managing /etc/hosts", "DNS").
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from attrs import frozen

from wherry.api import Invalid, RunRequest
from wherry.engine.networks.endpoints import SandboxEndpoint

#: For the host, where no network of the container leads to it: an address that nobody has (RFC 5737), rather than one at which
#: somebody else answers, such as the container itself. Before anything is attached it stands for what is written then.
_NOWHERE = "203.0.113.1"
_BEGIN, _END = "# others in the networks of this container", "# end of the others"
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


def names_block(peers: Sequence[SandboxEndpoint]) -> str:
    """Lines that name others, between two marks; "" for none."""
    lines = "".join(
        f"{address.split('/')[0]}\t{' '.join(dict.fromkeys(peer.names))}\n"
        for peer in peers
        for address in peer.addresses
    )
    return f"{_BEGIN}\n{lines}{_END}\n" if lines else ""


def with_names(text: str, block: str) -> str:
    """The text of a hosts file with that block in place of the one that it has."""
    before, begun, rest = text.partition(f"{_BEGIN}\n")
    _lines, ended, after = rest.partition(f"{_END}\n")
    if begun and ended:
        return before + block + after
    return text + ("" if not block or not text or text.endswith("\n") else "\n") + block


def make(
    request: RunRequest,
    *,
    hostname: str,
    host: bool = False,
    places: Sequence[SandboxEndpoint] = (),
    peers: Sequence[SandboxEndpoint] = (),
) -> HostFiles:
    """places: the networks that the container is attached to; peers: the places of others there that it shall know by name. Invalid for
    a wrong --add-host or --dns."""
    base = _read("/etc/hosts") if host else _LOCAL
    lines = [
        f"{address.split('/')[0]}\t{' '.join(dict.fromkeys((hostname, *place.names)))}\n"
        for place in places
        for address in place.addresses
    ]
    for entry in request.extra_hosts:
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if address == "host-gateway":  # docker's word for the host, seen from the container
            address = "127.0.0.1" if host else next((place.host for place in places if place.host), _NOWHERE)
        if not name or not separator or not _is_address(address) or any(c.isspace() for c in name):
            raise Invalid(f'extra host "{entry}"', "not NAME:ADDRESS")
        lines.append(f"{address.strip('[]')}\t{name}\n")
    if base and not base.endswith("\n"):
        base += "\n"
    return HostFiles(hostname, base + "".join(lines) + names_block(peers), _resolv_conf(request, host, places))


def _resolv_conf(request: RunRequest, host: bool, places: Sequence[SandboxEndpoint]) -> str:
    for server in request.dns:
        if not _is_address(server):
            raise Invalid(f'dns server "{server}"', "not an address")
    if host and not (request.dns or request.dns_search or request.dns_options):
        return _read("/etc/resolv.conf")
    servers, search, options = _host_resolver(host)
    given = [server for place in places for server in place.nameservers]
    if resolver := [server for server in given if server.startswith("127.")]:
        # The network driver's own, in the container's namespace: it passes on to the others, which it was told of.
        servers, options = resolver[:1], "ndots:0"
    elif request.dns or given:
        servers = list(request.dns or dict.fromkeys(given))
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


def _host_resolver(host: bool) -> tuple[list[str], str, str]:
    """(servers, search, options) of the host; without those that listen on its loopback, which is not there in another namespace:
    where that is systemd-resolved, with those that it asks."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        servers, search, options = [], "", ""
        for line in _read(path).splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                if host or not (words[1].startswith("127.") or words[1] == "::1"):
                    servers.append(words[1])
            elif len(words) > 1 and words[0] in ("search", "domain"):
                search = " ".join(words[1:])
            elif len(words) > 1 and words[0] == "options":
                options = " ".join(words[1:])
        if servers or path != "/etc/resolv.conf":
            break
    return servers, search, options


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
