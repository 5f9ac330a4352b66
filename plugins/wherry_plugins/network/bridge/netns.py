"""The hub: the network namespace in which the bridges are.

For who owns the engine's network namespace, root above all, it is that one, the host's. Anybody else has a sandbox of its own for
it, made by the shim.
"""

from __future__ import annotations

import os
import threading

from wherry.api import Context, NetworkConfig, Sandbox
from wherry.kit import namespaces
from wherry.kit.namespaces import owns_network
from wherry.kit.networks import interfaces, sandboxes
from wherry.kit.networks.netlink import Rtnl
from wherry.kit.networks.uplink import Uplink


class BridgeNetns:
    """sandbox_id is "" where the hub is the host's network namespace."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._made = False
        self.sandbox_id = "" if owns_network() else f"{context.id}.hub"
        self._uplink = Uplink(context, self.sandbox_id) if self.sandbox_id else None

    def rtnl(self) -> Rtnl:
        """A conversation in the hub."""
        if not self.sandbox_id:
            return Rtnl()
        self.make()
        return sandboxes.inside(self._context.shim, self.sandbox_id)

    def make(self) -> None:
        """Has the shim make the hub's sandbox, where it takes one."""
        with self._lock:
            if self.sandbox_id and not self._made:
                self._context.shim.create_sandbox(Sandbox(self.sandbox_id, ipc=False, uts=False))
                self._made = True

    def connect(self) -> None:
        """The hub's way out is there, where there is one that is not the host's own."""
        self.make()
        if self._uplink is not None:
            self._uplink.make()

    def nameserver(self) -> str:
        """Where the host's name server answers in the hub; "" where it is asked itself."""
        return self._uplink.nameserver if self._uplink is not None else ""

    def host(self, config: NetworkConfig) -> str:
        """By what address containers of a network reach the host: the bridge's own, where that is the host's."""
        if not self.sandbox_id:
            return config.gateways[0]
        return "" if config.internal or self._uplink is None else interfaces.hosts_own()

    def close(self) -> None:
        """The hub stays; who looks after its way out is another one from now on."""
        if self._uplink is not None:
            self._uplink.rest()

    def remove(self) -> None:
        """The hub goes, and with it what is in it."""
        with self._lock:
            if self.sandbox_id:
                self._made = False
                if self._uplink is not None:
                    self._uplink.end()
                self._context.shim.remove_sandbox(self.sandbox_id)

    def identity(self) -> tuple[int, int]:
        """What tells the hub's network namespace from others (namespaces(7))."""
        if not self.sandbox_id:
            return namespaces.own("net")
        self.make()
        fd = self._context.shim.namespace(self.sandbox_id, "net")
        try:
            return namespaces.identity(fd)
        finally:
            os.close(fd)

    def is_ours(self, fd: int) -> bool:
        """Whether an nsfs descriptor is that of the hub, or of the engine: no container's."""
        return namespaces.identity(fd) in {self.identity(), namespaces.own("net")}
