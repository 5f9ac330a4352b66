"""Which server stands for a registry's name, and how it is talked to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from wherry.api import Invalid
from wherry_plugins.transport.registry import HostConfig, RegistryConfig
from wherry_plugins.transport.registry.address_policy import is_loopback
from wherry_plugins.transport.registry.url import Url, parse_url

#: Names of registries whose server or token server has another one, by their operators' convention.
_SERVERS = {"docker.io": "https://registry-1.docker.io"}
_REALMS = {"docker.io": ("auth.docker.io",), "registry.gitlab.com": ("gitlab.com",)}


@frozen
class RegistryEndpoint:
    """host as references have it; base: where its API is, a path in front included; realms: trusted token servers."""

    host: str
    base: Url
    realms: frozenset[str]

    def url(self, path: str) -> Url:
        return self.base.at(f"{self.base.target.rstrip('/')}/v2/{path}")


def endpoint_of(host: str, config: RegistryConfig) -> RegistryEndpoint:
    """Invalid for a server in the config that is no URL."""
    options = config.hosts.get(host, HostConfig())
    where = f'[plugin.transport.registry.hosts."{host}"]'
    server = options.server or _SERVERS.get(host, "")
    if server:
        base = parse_url(server, f"{where} server")
        if "?" in base.target:
            raise Invalid(f"{where} server", "has a query")
    else:
        base = parse_url(f"{'http' if plain(host, config) else 'https'}://{host.lower()}/", f'registry "{host}"')
    if base.scheme == "http" and not (plain(host, config) or plain(base.netloc, config)):
        raise Invalid(f"{where} server", "is of http", "set plain_http = true beside it if that is what you want")
    return RegistryEndpoint(host, base, frozenset((*_REALMS.get(host, ()), *options.realms)))


def plain(host: str, config: RegistryConfig) -> bool:
    """Whether a host "name[:port]" is talked to by http: where the config says so, else this machine itself."""
    options = config.hosts.get(host, HostConfig())
    if options.plain_http is not None:
        return options.plain_http
    if options.ca or options.cert or options.insecure or any(True for _file in _certificates(host, config)):
        return False
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    return is_loopback(name.strip("[]"))


def tls(host: str, config: RegistryConfig) -> ssl.SSLContext:
    """The context for one host: the system's authorities and those that are its own. Invalid for files that are none."""
    options = config.hosts.get(host, HostConfig())
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    authorities = [Path(options.ca)] if options.ca else []
    pairs = [(Path(options.cert), Path(options.key or options.cert))] if options.cert else []
    for file in _certificates(host, config):
        if file.suffix == ".crt":
            authorities.append(file)
        elif file.suffix == ".cert":
            pairs.append((file, file.with_suffix(".key")))
    for file in authorities:
        with _usable(file):
            context.load_verify_locations(cafile=file)
    for cert, key in pairs:
        with _usable(cert):
            context.load_cert_chain(cert, key, password="")
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _usable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise Invalid(f'certificate "{file}"', f"can't be used: {getattr(error, 'strerror', '') or error}") from None


def _certificates(host: str, config: RegistryConfig) -> Iterator[Path]:
    """The files of a registry's own directory below one of ``certs``; the first that exists counts."""
    if "/" in host or host.startswith("."):
        return
    for top in config.certs:
        directory = Path(top, host)
        try:
            yield from sorted(path for path in directory.iterdir() if path.suffix in (".crt", ".cert"))
        except OSError:
            continue
        return
