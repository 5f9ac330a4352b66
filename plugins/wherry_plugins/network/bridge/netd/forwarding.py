"""Switches of the kernel, in the network namespace that netd is in (Documentation/networking/ip-sysctl.rst): whether it routes between
links at all, whether frames within a bridge pass the packet filter, and whether the host believes routers there.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FRAMES = ("/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables")
_SWITCHES = {4: "/proc/sys/net/ipv4/ip_forward", 6: "/proc/sys/net/ipv6/conf/all/forwarding"}


def _needed(subnets: Iterable[str]) -> list[str]:
    return [_SWITCHES[version] for version in sorted({6 if ":" in subnet else 4 for subnet in subnets})]


def missing(subnets: Iterable[str]) -> list[str]:
    """One line for each switch that these subnets need and that is off."""
    found = []
    for path in _needed(subnets):
        try:
            with open(path) as file:
                if file.read().strip() == "0":
                    found.append(f"{path} is 0")
        except FileNotFoundError:
            found.append(f"{path} is missing")
    return found


def enable(subnets: Iterable[str]) -> None:
    """Switches on what they need. It stays on: somebody else may have come to need it. What fails is told on stderr."""
    for path in _needed(subnets):
        try:
            with open(path) as file:
                if file.read().strip() != "0":
                    continue
            with open(path, "w") as file:
                file.write("1")
            sys.stderr.write(f"{path}: set to 1, so that containers reach what is outside\n")
        except OSError as error:
            sys.stderr.write(f"{path}: {error.strerror}\n")


def believe_no_router(interface: str) -> None:
    """Has the host ignore IPv6 router advertisements from a bridge: a container may send them, and would become its way out."""
    path = f"/proc/sys/net/ipv6/conf/{interface}/accept_ra"
    try:
        with open(path, "w") as file:
            file.write("0")
    except FileNotFoundError:  # without IPv6
        pass
    except OSError as error:
        sys.stderr.write(f"{path}: {error.strerror}\n")


def leave_frames_alone() -> None:
    """Has br_netfilter, where it is loaded, pass frames within a bridge by the packet filter: faster, and nothing here needs it."""
    for path in _FRAMES:
        try:
            with open(path, "w") as file:
                file.write("0")
        except FileNotFoundError:
            pass
        except OSError as error:
            sys.stderr.write(f"{path}: {error.strerror}\n")
