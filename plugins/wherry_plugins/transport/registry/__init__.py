"""transport.registry: images from registries (OCI distribution-spec; Docker Registry HTTP API V2), ``registry:NAME[:TAG|@DIGEST]``.

Manifests are checked against their digest here, blobs by whoever stores them. What may go where is decided in ``reach`` and
``auth``: credentials are for the registry itself and for the token servers that the config or Docker's own convention names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen

from wherry.api import Context, Registration, Transport, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.transport.registry.transport import RegistryTransport


@frozen
class HostConfig:
    """[plugin.transport.registry.hosts."NAME[:PORT]"], one registry as references name it, or another host that it leads to.

    server: the URL to ask instead, e.g. a mirror's. plain_http: talk http; without a word only a loopback address is. ca: a file
    of PEM certificates to trust beside the system's. cert, key: files of a client certificate. insecure: trust any certificate.
    realms: token servers "NAME[:PORT]" that may be given this registry's credentials, and that may be anywhere.
    """

    server: str = ""
    plain_http: bool | None = None
    ca: str = ""
    cert: str = ""
    key: str = ""
    insecure: bool = False
    realms: tuple[str, ...] = ()


@frozen
class RegistryConfig:
    """[plugin.transport.registry]. timeout: seconds without a byte after which a connection counts as broken. patience: seconds
    without progress, over all attempts. retries: attempts after the first. retry_after: seconds that a registry may ask us to
    wait. min_speed: bytes a second below which a connection counts as broken too. certs: directories with <NAME[:PORT]>/*.crt
    (authorities) and *.cert with *.key (client certificates)."""

    timeout: float = 10.0
    patience: float = 20.0
    retries: int = 5
    retry_after: float = 60.0
    min_speed: int = 512
    certs: tuple[str, ...] = ("/etc/containers/certs.d", "/etc/docker/certs.d")
    hosts: Mapping[str, HostConfig] = field(factory=dict)


def _open(config: RegistryConfig, context: Context) -> RegistryTransport:
    from wherry_plugins.transport.registry.transport import RegistryTransport

    return RegistryTransport(config, context.credentials, context.checkpoint)


@hookimpl
def wherry_transport() -> Registration[RegistryConfig, Transport]:
    return Registration(id="registry", config=RegistryConfig, init=_open)
