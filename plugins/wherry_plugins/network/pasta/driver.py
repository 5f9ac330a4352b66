"""What a sandbox gets by pasta(1): addresses, ports, names."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from typing import TYPE_CHECKING

from wherry.api import AttachRequest, Context, InUse, Invalid, NetworkConfig
from wherry.kit.networks import addresses as ip
from wherry.kit.networks.tap import Tap, pasta
from wherry.kit.networks.usermode import FIRST, UserModeEndpoint, UserModeNetwork, routes_six

if TYPE_CHECKING:
    from wherry_plugins.network.pasta import PastaConfig


class PastaNetwork(UserModeNetwork):
    """The network "pasta"."""

    name = "pasta"

    def __init__(self, config: PastaConfig, context: Context) -> None:
        super().__init__(context, patience=config.patience)
        self._config = config
        self._subnet = ip.subnet(config.subnet)
        low, high = ip.hosts(self._subnet)
        if self._subnet.version != 4 or high - low < 3:
            raise Invalid(f'subnet "{config.subnet}"', "is no IPv4 subnet with room for three addresses and more")
        make = type(self._subnet.network_address)
        self._gateway, self._nameserver = str(make(low)), str(make(low + 1))
        self._six = ip.unique_local("wherry pasta")
        self._last = low + 1

    def described(self) -> NetworkConfig:
        return NetworkConfig(
            self.name,
            subnets=(str(self._subnet), str(self._six)),
            gateways=(self._gateway, str(ip.first_host(self._six))),
        )

    def judge(self, request: AttachRequest) -> None:
        for text in request.addresses:
            wish = ip.address(text)
            net = self._subnet if wish.version == 4 else self._six
            low, high = ip.hosts(net)
            if not low + 1 < int(wish) <= high:
                raise Invalid(
                    f'address "{text}"', "is none that pasta gives", f"choose one of {self._subnet} or {self._six}"
                )
        if request.mac:
            ip.check_mac(request.mac)
        for port in request.ports:
            if ":" in port.host_ip and not routes_six():
                raise Invalid(
                    f'port "[{port.host_ip}]:{port.host_port}/{port.protocol}"',
                    "pasta has no IPv6 here: the host has no IPv6 route out",
                )

    def addresses(self, request: AttachRequest, taken: Collection[str]) -> tuple[str, ...]:
        wished = {ip.address(text).version: ip.address(text) for text in request.addresses}
        used = {int(ip.address(text.partition("/")[0])) for text in taken}
        made = []
        for net, gateway in ((self._subnet, self._gateway), (self._six, str(ip.first_host(self._six)))):
            if net.version == 6 and not routes_six():
                continue
            wish = wished.get(net.version)
            if wish is not None and int(wish) in used:
                raise InUse(f'address "{wish}"', 'is taken in network "pasta"')
            after = self._last if net.version == 4 else -1
            number = (
                int(wish)
                if wish is not None
                else ip.next_free(net, net, after, used | {int(ip.address(gateway)), int(ip.address(gateway)) + 1})
            )
            if number is None:
                raise InUse('network "pasta"', f"every address of {net} is taken")
            if net.version == 4:
                self._last = number
            made.append(f"{type(net.network_address)(number)}/{net.prefixlen}")
        return tuple(made)

    def run(self, place: UserModeEndpoint) -> tuple[Tap, tuple[str, ...]]:
        request, addresses = place.reservation.request, place.reservation.addresses
        tap = Tap(
            request.interface,
            addresses,
            (self._gateway, str(ip.first_host(self._six)))[: len(addresses)],
            nameserver=self._nameserver,
            mac=request.mac or ip.mac_of(ip.address(addresses[0].partition("/")[0])),
            mtu=self._config.mtu,
            configure=request.interface == FIRST,
        )
        program = shutil.which(self._config.program or "pasta") or "pasta"
        pasta(place.how, program, tap, ports=place.reservation.ports, options=self._config.options)
        return tap, (self._nameserver,)
