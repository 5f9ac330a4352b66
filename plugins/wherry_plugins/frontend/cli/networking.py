"""What --network says, and networks as documents under docker's names (Docker Engine API, NetworkInspect)."""

from __future__ import annotations

from typing import Any

from wherry.api import EndpointConfig, Invalid, NetworkInfo, Port
from wherry_plugins.frontend.cli import human


def addresses(port: Port) -> list[str]:
    """Where a published port is to be had: "0.0.0.0:8080" and "[::]:8080" for every address."""
    if not port.host_ip:
        return [f"0.0.0.0:{port.host_port}", f"[::]:{port.host_port}"]
    return [f"[{port.host_ip}]:{port.host_port}" if ":" in port.host_ip else f"{port.host_ip}:{port.host_port}"]


def join(text: str) -> EndpointConfig:
    """NAME, or name=NAME,alias=...,ip=...,ip6=...,mac-address=... (docker run, "--network"). Invalid for another key."""
    if "=" not in text:
        return EndpointConfig(text)
    name, mac = "", ""
    aliases: list[str] = []
    addresses: list[str] = []
    for item in text.split(","):
        key, _, value = item.partition("=")
        if not value:
            raise Invalid(f'option "--network {text}"', f'"{item}" is not KEY=VALUE')
        if key == "name":
            name = value
        elif key == "alias":
            aliases.append(value)
        elif key in ("ip", "ip6"):
            addresses.append(value)
        elif key == "mac-address":
            mac = value
        else:
            raise Invalid(
                f'option "--network {text}"', f'unknown key "{key}"', "it takes name, alias, ip, ip6 and mac-address"
            )
    if not name:
        raise Invalid(f'option "--network {text}"', "it names no network", "write name=NAME,...")
    return EndpointConfig(name, tuple(aliases), tuple(addresses), mac)


def wishes(networks: tuple[str, ...], aliases: tuple[str, ...], addresses: tuple[str, ...], mac: str) -> dict[str, Any]:
    """The fields of RunRequest that tell of networks: the options without a network's name are for the first one."""
    joins = [join(text) for text in networks] or [EndpointConfig("")]
    first = joins[0]
    if mac and first.mac and mac != first.mac:
        raise Invalid('option "--mac-address"', "the first network has another one")
    return {
        "network": first.network,
        "aliases": (*first.aliases, *aliases),
        "addresses": (*first.addresses, *addresses),
        "mac": mac or first.mac,
        "networks": tuple(joins[1:]),
    }


def network_document(info: NetworkInfo) -> dict[str, Any]:
    """As docker's. Containers are there when the engine was asked for this one network."""
    config = info.config
    subnets = []
    for number, subnet in enumerate(config.subnets):
        entry = {"Subnet": subnet}
        if number < len(config.gateways):
            entry["Gateway"] = config.gateways[number]
        for one in config.ip_ranges:
            if (":" in one) == (":" in subnet):
                entry["IPRange"] = one
        subnets.append(entry)
    containers = {}
    for attachment in info.attachments:
        id = attachment.reservation.request.sandbox_id
        four = [address for address in attachment.addresses if ":" not in address]
        six = [address for address in attachment.addresses if ":" in address]
        containers[id] = {
            "Name": info.containers.get(id, ""),
            "MacAddress": attachment.mac,
            "IPv4Address": four[0] if four else "",
            "IPv6Address": six[0] if six else "",
        }
    return {
        "Name": config.name,
        "Id": info.id,
        "Created": human.iso(config.created),
        "Scope": "local",
        "Driver": info.driver,
        "EnableIPv4": any(":" not in subnet for subnet in config.subnets),
        "EnableIPv6": config.ipv6,
        "IPAM": {"Driver": "default", "Options": {}, "Config": subnets},
        "Internal": config.internal,
        "Attachable": False,
        "Ingress": False,
        "Containers": containers,
        "Options": dict(config.options),
        "Labels": dict(config.labels),
    }
