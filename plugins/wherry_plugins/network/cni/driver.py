"""A Network whose networks are CNI's: those of the configuration directories, and those that were made by ``create``.

What is attached is a record on disk: it holds the list as it was, the request, and the result that DEL and CHECK need. A record
that says "added" means that DEL has to run before it may go.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

import attrs

from wherry.api import (
    AlreadyExists,
    Attachment,
    AttachRequest,
    Context,
    Error,
    FailedPrecondition,
    InUse,
    Invalid,
    NetworkConfig,
    NotFound,
    Reservation,
    Sandbox,
)
from wherry.kit.codec import restore
from wherry.kit.names import check_name, is_name
from wherry.kit.networks import interfaces, sandboxes
from wherry.kit.networks.addresses import Network
from wherry.kit.networks.definition import fill
from wherry.kit.networks.netlink import DELLINK, Rtnl, link
from wherry.kit.networks.ports import PortClaims
from wherry.kit.networks.records import AttachmentFiles, Key, plain
from wherry.kit.programs import Programs
from wherry_plugins.network.cni import conflist as lists
from wherry_plugins.network.cni.chain import AttachmentCall, Chain
from wherry_plugins.network.cni.conflist import Conflist

if TYPE_CHECKING:
    from wherry_plugins.network.cni import CniConfig

_LOCKS = 64
DEFAULT = "cni"
_POOLS = {"10.89.0.0/16": 24}


class CniNetwork:
    """network/cni. The lock covers networks and records, and is never held while a plugin runs; one of the others covers the calls
    for one attachment, which CNI wants one after the other."""

    def __init__(self, config: CniConfig, context: Context) -> None:
        self._config = config
        self._shim = context.shim
        self._root = context.root
        self._programs = Programs(context.shim, context.id)
        self._chain = Chain(self._programs, config.bin_dirs, config.timeout)
        self._made = AttachmentFiles(context.root / "networks", durable=True)
        self._records = AttachmentFiles(context.root / "attached", durable=True)
        self._links = context.run / "netns"
        self._links.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._busy = tuple(threading.Lock() for _ in range(_LOCKS))
        self._ports = PortClaims()
        for key, data in self._records.all():
            with contextlib.suppress(
                Error, OSError
            ):  # somebody took it while there was no engine: the rules stand all the same
                self._ports.claim(key, restore(Reservation, data["reservation"]).ports)

    def close(self) -> None:
        """Lets go of the ports; whoever opens this state next claims them."""
        self._ports.close()

    # networks

    def create(self, config: NetworkConfig) -> NetworkConfig:
        lists.judge(config)
        with self._lock:
            self._need_free(config.name)
            made, conflist = lists.given(config) or lists.generate(self._filled(config), self._root / "ipam")
        self._chain.validate(conflist)
        with self._lock:
            self._need_free(config.name)
            self._made.write((config.name, ""), {"config": plain(made), "conflist": lists.stored(conflist)})
        return made

    def _need_free(self, name: str) -> None:
        if name == DEFAULT or self._known(name) is not None:
            raise AlreadyExists(f'network "{name}"', "there is one of that name")

    def _filled(self, config: NetworkConfig) -> NetworkConfig:
        others = [(other.name, ip_network(text, strict=False)) for other in self._configs() for text in other.subnets]
        return fill(config, pools=_POOLS, others=others, taken=_taken, seed=f"{self._root}\0{config.name}")

    def remove(self, name: str) -> None:
        with self._lock:
            data = self._made.read((name, "")) if is_name(name) else None
            if data is None:
                if (known := self._known(name)) is not None:
                    raise Invalid(f'network "{name}"', f'belongs to "{known.source}"', "remove that file")
                return
            if used := self._used(name):
                raise InUse(f'network "{name}"', f'sandbox "{used[0][1]}" is attached to it')
            self._made.remove((name, ""))
        conflist = lists.from_stored(data["conflist"])
        for plugin in conflist.plugins:
            if plugin["type"] == "bridge" and "conflist" not in data["config"]["options"]:
                _delete_link(str(plugin["bridge"]))

    def list(self) -> Iterator[NetworkConfig]:
        with self._lock:
            found = list(self._configs())
        yield from found

    def _configs(self) -> Iterator[NetworkConfig]:
        seen = set()
        for _key, data in self._made.all():
            made = restore(NetworkConfig, data["config"])
            seen.add(made.name)
            yield made
        for conflist in lists.load(self._config.conf_dirs)[0]:
            if conflist.name not in seen:
                yield conflist.described()

    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]:
        with self._lock:
            conflist = self._find(name)
            data = self._made.read((conflist.name, ""))
            config = restore(NetworkConfig, data["config"]) if data else conflist.described()
            attached = [data["attachment"] for _key, data in self._used(conflist.name) if data.get("attachment")]
        return config, tuple(restore(Attachment, each) for each in attached)

    def _used(self, name: str) -> Sequence[tuple[Key, dict[str, Any]]]:
        return [(key, data) for key, data in self._records.all() if data["conflist"]["name"] == name]

    def _known(self, name: str) -> Conflist | None:
        if is_name(name) and (data := self._made.read((name, ""))) is not None:
            return lists.from_stored(data["conflist"])
        return next((each for each in lists.load(self._config.conf_dirs)[0] if each.name == name), None)

    def _find(self, name: str) -> Conflist:
        """NotFound tells what there is, and which files are no lists. ``cni`` is the default one."""
        found = self._known(name)
        others, wrong = lists.load(self._config.conf_dirs)
        if found is None and name == DEFAULT:
            found = self._known(self._config.default) if self._config.default else next(iter(others), None)
        if found is None:
            hint = "; ".join(wrong) or f"put its conflist into {' or '.join(self._config.conf_dirs)}"
            raise NotFound(f'network "{name}"', "no such CNI network", hint)
        return found

    # reserve

    def reserve(self, request: AttachRequest) -> Reservation:
        check_name(request.sandbox_id, "sandbox id")
        key = (request.network, request.sandbox_id)
        with self._lock:
            conflist = self._find(request.network)
        self._chain.status(conflist)
        with self._lock:
            conflist = self._find(request.network)  # it may have gone, or be another one
            _judge(request, conflist)
            if self._records.read(key) is not None:
                raise InUse(f'sandbox "{request.sandbox_id}"', f'has a place in network "{request.network}" already')
            ports = self._ports.claim(key, request.ports)
            try:
                reservation = Reservation(request, ports=ports)
                self._records.write(
                    key, {"reservation": plain(reservation), "conflist": lists.stored(conflist), "added": False}
                )
            except BaseException:
                self._ports.release(key)
                raise
        return reservation

    # attach

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        key = (reservation.request.network, sandbox.id)
        sandboxes.refuse_hosts(sandbox)
        with self._turn(key):
            data = self._records.read(key)
            if data is None:
                raise NotFound(f'sandbox "{sandbox.id}"', f'has no place in network "{key[0]}"', "reserve one first")
            if data.get("attachment"):
                return restore(Attachment, data["attachment"])
            reservation = restore(Reservation, data["reservation"])
            conflist = lists.from_stored(data["conflist"])
            data["added"] = True
            self._records.write(key, data)  # from here on DEL has to run, whoever dies
            with self._namespace(key) as netns:
                attached = _attached(reservation, conflist, netns)
                try:
                    result = self._chain.add(conflist, attached)
                    made = _attachment(reservation, result)
                    _granted(reservation.request, made)
                except BaseException:
                    with contextlib.suppress(
                        Error, OSError
                    ):  # the first error counts; detach runs DEL again where this one fails
                        self._chain.delete(conflist, attached, None)
                        data["added"] = False
                        self._records.write(key, data)
                    raise
            data |= {"result": result, "attachment": plain(made)}
            self._records.write(key, data)
            return made

    def detach(self, sandbox_id: str, network: str) -> None:
        key = (network, sandbox_id)
        check_name(sandbox_id, "sandbox id")
        if not is_name(network):
            return
        with self._turn(key):
            data = self._records.read(key)
            if data is None:
                return
            if data["added"]:
                conflist = lists.from_stored(data["conflist"])
                with self._namespace(key, need=False) as netns:
                    attached = _attached(restore(Reservation, data["reservation"]), conflist, netns)
                    self._delete(conflist, attached, data.get("result"))
            with self._lock:
                self._records.remove(key)
            self._ports.release(key)

    def _delete(self, conflist: Conflist, attached: AttachmentCall, result: Mapping[str, Any] | None) -> None:
        """By the list as it was; where that fails, by one of its name that was mended since."""
        try:
            self._chain.delete(conflist, attached, result)
        except Error:
            with self._lock:
                current = self._known(conflist.name)
            if current is None or current == conflist:
                raise
            self._chain.delete(current, attached, result)

    def check(self, sandbox_id: str, network: str) -> None:
        key = (network, sandbox_id)
        check_name(sandbox_id, "sandbox id")
        with self._turn(key):
            data = self._records.read(key) if is_name(network) else None
            if data is None or not data.get("attachment"):
                raise NotFound(f'sandbox "{sandbox_id}"', f'is not attached to network "{network}"')
            conflist = lists.from_stored(data["conflist"])
            try:
                with self._namespace(key) as netns:
                    attached = _attached(restore(Reservation, data["reservation"]), conflist, netns)
                    self._chain.check(conflist, attached, data["result"])
            except NotFound as error:
                raise FailedPrecondition(error.what, error.cause, error.hint) from None

    def gc(self, live: Collection[str]) -> int:
        """Also ends programs of an engine that died, and has plugins of CNI 1.1 collect what no attachment has. Goes on after an
        error, which is raised in the end."""
        keep = frozenset(live)
        self._programs.sweep()
        dropped = 0
        failures: list[Exception] = []
        for key, _data in self._records.all():
            if key[1] not in keep:
                try:
                    self.detach(key[1], key[0])
                    dropped += 1
                except (Error, OSError) as error:
                    failures.append(error)
        with contextlib.ExitStack() as alone:
            for lock in self._busy:  # no ADD and no DEL beside a GC (section 3, "Lifecycle & Ordering")
                alone.enter_context(lock)
            failures += self._collect()
        if failures:
            raise failures[0]
        return dropped

    def _collect(self) -> Sequence[Exception]:
        """GC in each network that has it."""
        with self._lock:
            known = [self._known(config.name) for config in self._configs()]
        failures = []
        for conflist in known:
            if conflist is None or not conflist.speaks("1.1.0") or conflist.disable_gc:
                continue
            requests = [restore(Reservation, data["reservation"]).request for _key, data in self._used(conflist.name)]
            try:
                self._chain.collect(conflist, [(each.sandbox_id, each.interface) for each in requests])
            except (Error, OSError) as error:
                failures.append(error)
        return failures

    # namespaces

    def _turn(self, key: Key) -> threading.Lock:
        return self._busy[hash(key) % _LOCKS]

    @contextlib.contextmanager
    def _namespace(self, key: Key, *, need: bool = True) -> Iterator[str]:
        """A path to the sandbox's network namespace, for one call; "" where there is none and need is False.

        It is a link to a descriptor of this process. Its name is the same each time, since plugins compare what they are given at
        CHECK with what they wrote into the result of ADD.
        """
        link = self._links / f"{key[0]}@{key[1]}"
        with contextlib.ExitStack() as held:
            try:
                fd = held.enter_context(sandboxes.namespace(self._shim, key[1]))
            except NotFound:
                if need:
                    raise
                yield ""
                return
            held.callback(link.unlink, missing_ok=True)
            link.unlink(missing_ok=True)
            os.symlink(f"/proc/{os.getpid()}/fd/{fd}", link)
            yield str(link)


def _taken() -> Sequence[Network]:
    with Rtnl() as rtnl:
        return interfaces.taken(rtnl)


def _judge(request: AttachRequest, conflist: Conflist) -> None:
    """Invalid for a wish that no plugin of the list can grant."""
    if request.ports and not conflist.offers("portMappings"):
        port = request.ports[0]
        raise Invalid(
            f"port {port.container_port}/{port.protocol}",
            f'no plugin of network "{conflist.name}" has the capability "portMappings"',
            'add {"type": "portmap", "capabilities": {"portMappings": true}} to its conflist, or leave out --publish',
        )
    for text in request.addresses:
        try:
            ip_address(text)
        except ValueError as error:
            raise Invalid(f'address "{text}"', str(error)) from None


def _attached(reservation: Reservation, conflist: Conflist, netns: str) -> AttachmentCall:
    """Capabilities and args as in the CNI conventions. Where no plugin declares "ips" or "mac", plugins may still read the args,
    and ``_granted`` sees whether one did."""
    request = reservation.request
    offers: dict[str, Any] = {}
    args: dict[str, Any] = {}
    if reservation.ports:
        offers["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                "hostIP": port.host_ip,
            }
            for port in reservation.ports
        ]
    if request.addresses:
        (offers if conflist.offers("ips") else args)["ips"] = [_prefixed(text, conflist) for text in request.addresses]
    if request.mac:
        (offers if conflist.offers("mac") else args)["mac"] = request.mac
    if request.names:
        offers["aliases"] = list(request.names)
    return AttachmentCall(request.sandbox_id, request.interface, netns, offers, args)


def _prefixed(text: str, conflist: Conflist) -> str:
    """An address with the prefix of its subnet, where the list says it: what the plugin ``static`` needs."""
    address = ip_address(text)
    for subnet, _gateway in conflist.ranges():
        with contextlib.suppress(ValueError):
            net = ip_network(subnet, strict=False)
            if net.version == address.version and address in net:
                return f"{text}/{net.prefixlen}"
    return text


def _attachment(reservation: Reservation, result: Mapping[str, Any]) -> Attachment:
    """What a result says of the interface in the container."""
    interfaces: list[Mapping[str, Any]] = result.get("interfaces") or []
    inside = [index for index, each in enumerate(interfaces) if each.get("sandbox")]
    named = [index for index in inside if interfaces[index].get("name") == reservation.request.interface] or inside
    ips = [
        each
        for each in result.get("ips") or ()
        if each.get("interface", named[0] if named else None) in named or not named
    ]
    addresses = tuple(str(ip_interface(each["address"])) for each in ips)
    gateways = tuple(dict.fromkeys(each["gateway"] for each in ips if each.get("gateway")))
    return Attachment(
        attrs.evolve(reservation, addresses=addresses),
        mac=str(interfaces[named[0]].get("mac", "")).lower() if named else "",
        addresses=addresses,
        gateways=gateways,
        host=gateways[0]
        if gateways and len(inside) < len(interfaces)
        else "",  # with links on the host, that is the gateway
        nameservers=tuple((result.get("dns") or {}).get("nameservers") or ()),
    )


def _granted(request: AttachRequest, made: Attachment) -> None:
    """Invalid for a wish that was passed over."""
    given = {ip_interface(text).ip for text in made.addresses}
    for text in request.addresses:
        if ip_address(text) not in given:
            raise Invalid(
                f'address "{text}"',
                f'no plugin of network "{request.network}" gave it',
                'one needs the capability "ips"',
            )
    if request.mac and request.mac.lower() != made.mac:
        raise Invalid(
            f'address "{request.mac}"',
            f'no plugin of network "{request.network}" gave it',
            'one needs the capability "mac"',
        )


def _delete_link(name: str) -> None:
    """The bridge of a network that was made by ``create``; its plugin makes it at the first ADD and nobody takes it away."""
    with Rtnl() as rtnl:
        if index := interfaces.index_of(rtnl, name):
            rtnl.ask((DELLINK, 0, link(index=index), f"link {name}"))
