"""What a sandbox gets by slirp4netns(1): an address, and ports by its socket."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import attrs

from wherry.api import AttachRequest, Context, FailedPrecondition, InUse, Invalid, NetworkConfig, Port
from wherry.kit.networks import addresses as ip
from wherry.kit.networks.tap import Tap, slirp
from wherry.kit.networks.usermode import FIRST, UserModeEndpoint, UserModeNetwork, routes_six

if TYPE_CHECKING:
    from wherry_plugins.network.slirp4netns import SlirpConfig

_PREFIX = 24
#: slirp4netns(1): the sandbox is .100 of its subnet, the gateway .2, the nameserver .3
_OWN, _GATEWAY, _NAMESERVER = 100, 2, 3
_SIX = ip.subnet("fd00::/64")  # that of every sandbox, which are alone there; the gateway is ::2
_TIMEOUT = 10.0


class SlirpNetwork(UserModeNetwork):
    """The network "slirp4netns"."""

    name = "slirp4netns"

    def __init__(self, config: SlirpConfig, context: Context) -> None:
        super().__init__(context, patience=config.patience)
        self._config = config
        self._subnet = ip.subnet(config.subnet)
        if self._subnet.version != 4 or self._subnet.prefixlen > _PREFIX:
            raise Invalid(f'subnet "{config.subnet}"', f"is no IPv4 subnet of /{_PREFIX} or larger")

    def described(self) -> NetworkConfig:
        return NetworkConfig(self.name, subnets=(str(self._subnet), *([str(_SIX)] if self._six() else [])))

    def _six(self) -> bool:
        return self._config.ipv6 and routes_six()

    def judge(self, request: AttachRequest) -> None:
        if request.addresses:
            raise Invalid(
                f'address "{request.addresses[0]}"',
                "slirp4netns gives addresses of its own choice",
                "leave it out, or choose another network with --network",
            )
        if request.mac:
            ip.check_mac(request.mac)
        for port in request.ports:
            if ":" in port.host_ip:
                raise Invalid(
                    f'port "[{port.host_ip}]:{port.host_port}/{port.protocol}"',
                    "slirp4netns publishes on IPv4 addresses only",
                    "leave the address out, or use the network pasta",
                )
            if port.protocol == "udp" and port.host_ip and ip.address(port.host_ip).is_loopback:
                # The answer would go by way of the host's loopback, which sandboxes are kept from.
                raise Invalid(
                    f'port "{port.host_ip}:{port.host_port}/udp"',
                    "slirp4netns answers no UDP on the host's loopback",
                    "publish on another address, or use the network pasta",
                )

    def addresses(self, request: AttachRequest, taken: Collection[str]) -> tuple[str, ...]:
        for net in self._subnet.subnets(new_prefix=_PREFIX):
            address = net.network_address + _OWN
            if (cidr := f"{address}/{_PREFIX}") not in taken:
                return (cidr, *([f"{_SIX.network_address + int(address)}/{_SIX.prefixlen}"] if self._six() else []))
        raise InUse('network "slirp4netns"', f"every /{_PREFIX} of {self._subnet} is taken")

    def run(self, place: UserModeEndpoint) -> tuple[Tap, tuple[str, ...]]:
        request = place.reservation.request
        cidr, *six = place.reservation.addresses
        address = ip.address(cidr.partition("/")[0])
        net = ip.around(str(address), _PREFIX)
        tap = Tap(
            request.interface,
            (cidr, *six),
            tuple(str(each.network_address + _GATEWAY) for each in (net, _SIX))[: 1 + len(six)],
            mac=request.mac or ip.mac_of(address),
            mtu=self._config.mtu,
            configure=request.interface == FIRST,
        )
        api = f"{place.how.files}.s"
        program = shutil.which(self._config.program or "slirp4netns") or "slirp4netns"
        slirp(place.how, program, tap, api=api, options=self._config.options)
        if six and tap.configure:
            self.add(place, attrs.evolve(tap, addresses=tap.addresses[1:], gateways=tap.gateways[1:]))
        self.let_go(place, "udp")  # libslirp sets SO_REUSEADDR on TCP only
        for port in place.reservation.ports:
            _publish(api, port)
        return tap, (str(net.network_address + _NAMESERVER),)


def _publish(path: str, port: Port) -> None:
    """add_hostfwd of slirp4netns(1), "API socket": one request a connection, ended by us, then one answer."""
    request = {
        "execute": "add_hostfwd",
        "arguments": {
            "proto": port.protocol,
            "host_addr": port.host_ip or "0.0.0.0",  # noqa: S104 - what the user asked for
            "host_port": port.host_port,
            "guest_port": port.container_port,
        },
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT)
        sock.connect(path)
        sock.sendall(json.dumps(request).encode())
        sock.shutdown(socket.SHUT_WR)
        said = b""
        while piece := sock.recv(4096):
            said += piece
    answer: dict[str, Any] = json.loads(said or b"{}")
    if "error" in answer or "return" not in answer:
        reason = answer.get("error", {}).get("desc", "it said nothing")
        raise FailedPrecondition(
            f"port {port.host_port}/{port.protocol}", f"slirp4netns could not publish it: {reason}"
        )
