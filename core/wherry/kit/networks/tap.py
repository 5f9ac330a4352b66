"""pasta(1) and slirp4netns(1): each moves packets between a tap interface in a network namespace and sockets of the user who runs it.

Both are told of the namespace by a path. It is /proc/self/fd/0, an nsfs descriptor as their stdin: a descriptor is what a program may
always open, whatever its rights over the process that has the namespace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from attrs import frozen

from wherry.api import FailedPrecondition, Port, Stdio
from wherry.kit.programs import Programs, hold, wait_end

_NETNS = "/proc/self/fd/0"
_LOOK_SECONDS = 0.002


@frozen
class Tap:
    """The interface. addresses are CIDR, at most one of each family; gateways and nameserver as far as the program is asked for them;
    mac "": the kernel's choice. mtu in bytes. configure: the program sets it up, with a default route; else the caller does.
    """

    interface: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...] = ()
    nameserver: str = ""
    mac: str = ""
    mtu: int = 65520
    configure: bool = True


@frozen
class TapProgram:
    """How it is started: as which one of a driver's programs, and in which namespace (netns, an nsfs descriptor).

    files: the beginning of the paths of its files. patience: the seconds that it has to be ready.
    """

    programs: Programs
    name: str
    netns: int
    files: str
    patience: float


def pasta(how: TapProgram, program: str, tap: Tap, *, ports: Sequence[Port] = (), options: Sequence[str] = ()) -> None:
    """Returns when the interface is there and the ports are open. FailedPrecondition has what it said."""
    pid = f"{how.files}.pid"
    argv = [
        program, "--foreground", "--quiet",
        # Else root's pasta becomes "nobody", who may not enter the namespace. For others this is who they are.
        "--runas", "0:0",
        *(["--config-net"] if tap.configure else ["--no-ra"]),
        "--no-netns-quit", "--netns", _NETNS, "--ns-ifname", tap.interface, "--mtu", str(tap.mtu),
        "--no-map-gw", "--pid", pid,
    ]  # fmt: skip
    for cidr in tap.addresses:
        address, _, prefix = cidr.partition("/")
        argv += ["--address", address, *(["--netmask", prefix] if ":" not in address else [])]
    for gateway in tap.gateways:
        argv += ["--gateway", gateway]
    if tap.nameserver:
        argv += ["--dns-forward", tap.nameserver]
    if tap.mac:
        argv += ["--ns-mac-addr", tap.mac]
    for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        specs = [_spec(port) for port in ports if port.protocol == protocol]
        argv += [word for spec in specs or ["none"] for word in (option, spec)]
    argv += ["--tcp-ns", "none", "--udp-ns", "none", *options]

    def ready() -> bool:
        try:
            with open(pid, encoding="ascii") as file:
                return file.read().strip().isdecimal()
        except FileNotFoundError:
            return False

    if os.path.lexists(pid):
        os.unlink(pid)
    _start(how, argv, ready)


def _spec(port: Port) -> str:
    return f"{port.host_ip}{'/' if port.host_ip else ''}{port.host_port}:{port.container_port}"


def slirp(how: TapProgram, program: str, tap: Tap, *, api: str = "", options: Sequence[str] = ()) -> None:
    """Returns when the interface is there: its IPv4 address is the one of its subnet that ends in 100. api: the path of its socket.
    Addresses of IPv6 are the caller's to add: the program only moves its packets. FailedPrecondition has what it said."""
    (cidr,) = (each for each in tap.addresses if ":" not in each)
    address, _, prefix = cidr.partition("/")
    subnet = f"{address.rpartition('.')[0]}.0/{prefix}"
    argv = [program, f"--mtu={tap.mtu}", f"--cidr={subnet}", *(["--enable-ipv6"] if len(tap.addresses) > 1 else [])]
    if tap.configure:
        argv += ["--configure", *([f"--macaddress={tap.mac}"] if tap.mac else [])]
    argv += ["--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--netns-type=path", "--ready-fd=3"]
    argv += [*([f"--api-socket={api}"] if api else []), *options, _NETNS, tap.interface]
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def ready() -> bool:
        try:
            return os.read(reader, 1) == b"1"
        except BlockingIOError:
            return False

    try:
        _start(how, argv, ready, fds=[writer])
    finally:
        os.close(reader)
        os.close(writer)


def _start(how: TapProgram, argv: Sequence[str], ready: Callable[[], bool], *, fds: Sequence[int] = ()) -> None:
    log = os.open(f"{how.files}.log", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    handle = -1
    try:
        stdio = Stdio(stdin=how.netns, stdout=log, stderr=log)
        task = how.programs.start(how.name, argv, fds=fds, stdio=stdio)
        handle = hold(task.pid, task.start_time)
        until = time.monotonic() + how.patience
        while not ready():
            if handle < 0 or wait_end(handle, _LOOK_SECONDS):
                raise FailedPrecondition(f'program "{argv[0]}"', f"ended at once: {_said(log)}")
            if time.monotonic() > until:
                raise FailedPrecondition(
                    f'program "{argv[0]}"', f"was not ready within {how.patience:g} seconds: {_said(log)}"
                )
    finally:
        os.close(log)
        if handle >= 0:
            os.close(handle)


def _said(log: int) -> str:
    lines = os.pread(log, 1 << 16, 0).decode(errors="replace").strip().splitlines()
    return "; ".join(lines[-3:]) or "it said nothing"


__all__ = ["Tap", "TapProgram", "pasta", "slirp"]
