"""Runs the plugins of a list: CNI specification 1.1, sections 2 to 4."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_interface
from typing import Any

from attrs import field, frozen

from wherry.api import Error, FailedPrecondition, Invalid, NotFound, Unavailable
from wherry.kit.programs import FinishedProgram, Programs
from wherry_plugins.network.cni.conflist import Conflist

_SAID = 400
#: A complaint of portmap at CHECK: the family in whose rules it looked, and to where the rule that it looked for leads.
_PORTMAP = re.compile(r"could not check ipv([46]) dnat: (?:.*--to-destination (\S+))?")
#: CNI specification 1.1, section 2, "Errors" and "STATUS"; plugins use numbers from 100 as they like.
_CLASSES: Mapping[int, type[Error]] = {
    1: Invalid,
    2: Invalid,
    4: Invalid,
    6: Invalid,
    7: Invalid,
    11: Unavailable,
    50: Unavailable,
    51: Unavailable,
}


@frozen
class AttachmentCall:
    """The attachment that a call is about. netns is "" where it is gone; offers: what capabilities are given, by their names; args as
    in "args" of the configuration."""

    container: str
    interface: str
    netns: str = ""
    offers: Mapping[str, Any] = field(factory=dict)
    args: Mapping[str, Any] = field(factory=dict)


class Chain:
    """bin_dirs: where plugins are. timeout: of each call, in seconds."""

    def __init__(self, programs: Programs, bin_dirs: Sequence[str], timeout: float) -> None:
        self._programs = programs
        self._bin_dirs = bin_dirs
        self._timeout = timeout
        self._first = threading.Lock()
        self._begun: set[str] = set()  # networks that an ADD has gone well for

    # for one attachment

    def add(self, conflist: Conflist, attached: AttachmentCall) -> dict[str, Any]:
        """The last plugin's result. An Error says which plugin failed; the caller sees to it that ``delete`` follows.

        The first one of a network goes alone: plugins make the chains and tables that they all use then, and some of them (firewall)
        fail where another one is just about to.
        """
        if conflist.name in self._begun:
            return self._add(conflist, attached)
        with self._first:
            result = self._add(conflist, attached)
        self._begun.add(conflist.name)
        return result

    def _add(self, conflist: Conflist, attached: AttachmentCall) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        for plugin in conflist.plugins:
            done = self._call("ADD", conflist, plugin, attached, result)
            result = self._result(conflist, plugin, done)
        return result or {}

    def delete(self, conflist: Conflist, attached: AttachmentCall, result: Mapping[str, Any] | None) -> None:
        """In the reverse order; result is that of ``add``, None where there was none."""
        for plugin in reversed(conflist.plugins):
            self._call("DEL", conflist, plugin, attached, result if conflist.speaks("0.4.0") else None)

    def check(self, conflist: Conflist, attached: AttachmentCall, result: Mapping[str, Any]) -> None:
        """FailedPrecondition says what a plugin found to differ."""
        if conflist.disable_check or not conflist.speaks("0.4.0"):
            return
        for plugin in conflist.plugins:
            try:
                self._call("CHECK", conflist, plugin, attached, result)
            except Unavailable:
                raise
            except Error as error:
                if plugin["type"] != "portmap" or not _of_the_other_family(error.cause, result):
                    raise FailedPrecondition(error.what, error.cause, error.hint) from None

    # for a network

    def status(self, conflist: Conflist) -> None:
        """Unavailable when a plugin can't serve an ADD now. Nobody is asked before version 1.1."""
        if not conflist.speaks("1.1.0"):
            return
        for plugin in conflist.plugins:
            self._call("STATUS", conflist, plugin, None, None)

    def collect(self, conflist: Conflist, valid: Iterable[tuple[str, str]]) -> None:
        """GC: valid are the (container, interface) pairs that stay. Every plugin is called, and the first error raised."""
        if conflist.disable_gc or not conflist.speaks("1.1.0"):
            return
        kept = [{"containerID": container, "ifname": interface} for container, interface in valid]
        failure: Error | None = None
        for plugin in conflist.plugins:
            # The second name is that of the specification before it was mended; libcni sends both.
            more = {"cni.dev/valid-attachments": kept, "cni.dev/attachments": kept}
            try:
                self._call("GC", conflist, plugin, None, None, more)
            except Error as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def validate(self, conflist: Conflist) -> None:
        """Invalid, NotFound where a plugin is missing or does not speak the list's version."""
        for plugin in conflist.plugins:
            done = self._call("VERSION", conflist, plugin, None, None)
            try:
                spoken = json.loads(done.stdout)["supportedVersions"]
            except (ValueError, LookupError, TypeError):
                raise Invalid(_what(plugin, "VERSION", conflist), f"said {_short(done.stdout)}") from None
            if conflist.version not in spoken:
                raise Invalid(
                    _what(plugin, "VERSION", conflist),
                    f"does not speak CNI {conflist.version}, but {', '.join(map(str, spoken))}",
                )

    # one call

    def _find(self, type: str) -> str:
        for directory in self._bin_dirs:
            path = f"{directory}/{type}"
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return path
        raise NotFound(f'CNI plugin "{type}"', f"is in none of {', '.join(self._bin_dirs)}")

    def _call(
        self,
        command: str,
        conflist: Conflist,
        plugin: Mapping[str, Any],
        attached: AttachmentCall | None,
        result: Mapping[str, Any] | None,
        more: Mapping[str, Any] = {},
    ) -> FinishedProgram:
        """One plugin, once. Raises the Error that its own error means; DeadlineExceeded."""
        env = {"CNI_COMMAND": command, "CNI_PATH": ":".join(self._bin_dirs)}
        if attached is not None:
            env |= {
                "CNI_CONTAINERID": attached.container,
                "CNI_IFNAME": attached.interface,
                "CNI_NETNS": attached.netns,
            }
        config = _derive(conflist, plugin, attached, result, more)
        done = self._programs.run(
            [self._find(plugin["type"])], env=env, stdin=json.dumps(config).encode(), seconds=self._timeout
        )
        if done.code != 0:
            raise _error(done, _what(plugin, command, conflist))
        return done

    @staticmethod
    def _result(conflist: Conflist, plugin: Mapping[str, Any], done: FinishedProgram) -> dict[str, Any]:
        try:
            result = json.loads(done.stdout)
        except ValueError:
            result = None
        if not isinstance(result, dict):
            raise Error(_what(plugin, "ADD", conflist), f"its result is no JSON object: {_short(done.stdout)}")
        return result


def _derive(
    conflist: Conflist,
    plugin: Mapping[str, Any],
    attached: AttachmentCall | None,
    result: Mapping[str, Any] | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """What a plugin reads (section 3, "Deriving request configuration from network configuration")."""
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config |= {"cniVersion": conflist.version, "name": conflist.name, **more}
    if attached is not None:
        wanted = {name for name, on in plugin.get("capabilities", {}).items() if on is True}
        given = {name: value for name, value in attached.offers.items() if name in wanted}
        if given:
            config["runtimeConfig"] = {**config.get("runtimeConfig", {}), **given}
        if attached.args:
            args = config.get("args") or {}
            config["args"] = {**args, "cni": {**(args.get("cni") or {}), **attached.args}}
    if result is not None:
        config["prevResult"] = result
    return config


def _what(plugin: Mapping[str, Any], command: str, conflist: Conflist) -> str:
    return f'CNI plugin "{plugin["type"]}" ({command}, network "{conflist.name}")'


def _error(done: FinishedProgram, what: str) -> Error:
    """What a plugin that failed meant: its code, msg and details, else how it ended and what it said."""
    try:
        said = json.loads(done.stdout)
        code, message = int(said["code"]), str(said["msg"])
        details = str(said.get("details") or "")
    except (ValueError, LookupError, TypeError):
        ended = "was killed" if done.code is None else f"ended with status {done.code}"
        return Error(what, f"{ended}: {_short(done.stderr or done.stdout)}")
    cause = f"{message} (code {code})" + (f": {details}" if details else "")
    return _CLASSES.get(code, Error)(what, cause, "try again" if code == 11 else "")


def _of_the_other_family(cause: str, result: Mapping[str, Any]) -> bool:
    """Whether portmap misses rules of one address family in those of the other, where they can't be: Debian's 1.1.1
    looks for each in both, first in those of IPv4 (https://github.com/containernetworking/plugins/issues/819)."""
    found = _PORTMAP.match(cause)
    if found is None:
        return False
    version = int(found[1])
    there = {ip_interface(each["address"]).version for each in result.get("ips") or ()}
    return version not in there or bool(found[2] and (version == 4) is ("[" in found[2]))


def _short(output: bytes) -> str:
    text = output.decode(errors="replace").strip()
    return (text[:_SAID] + "..." if len(text) > _SAID else text) or "nothing"
