"""Changes to an image's config, written as lines of a Dockerfile: what ``docker import --change`` takes.

Dockerfile reference, "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR".
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from wherry.errors import Invalid

_PORT = re.compile(r"\d{1,5}(?:-\d{1,5})?(?:/(?:tcp|udp|sctp))?", re.ASCII)


def changed(config: Mapping[str, Any], lines: tuple[str, ...]) -> dict[str, Any]:
    """The "config" object of an image config after the lines. Invalid names the line that can't be understood."""
    result: dict[str, Any] = {**config}
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        change = _CHANGES.get(word.upper())
        what = f'change "{line[:200]}"'
        if change is None:
            known = ", ".join(sorted(_CHANGES))
            raise Invalid(what, f'"{word[:50]}" is no instruction that changes a config', f"there are: {known}")
        if not rest:
            raise Invalid(what, "says nothing after its instruction")
        try:
            change(result, rest)
        except ValueError as error:
            raise Invalid(what, str(error)) from None
    return result


def _command(text: str) -> list[str]:
    """The exec form, a JSON array of strings, or else the shell form."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return ["/bin/sh", "-c", text]


def _cmd(config: dict[str, Any], text: str) -> None:
    config["Cmd"] = _command(text)


def _entrypoint(config: dict[str, Any], text: str) -> None:
    config["Entrypoint"] = _command(text)


def _pairs(text: str) -> list[tuple[str, str]]:
    """KEY=VALUE ..., quoted as in a shell, or the old form KEY VALUE."""
    if "=" not in text.split(maxsplit=1)[0]:
        key, _, value = text.partition(" ")
        if not value.strip():
            raise ValueError(f'"{key}" has no value')
        return [(key, value.strip())]
    pairs = []
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f'"{word}" is not KEY=VALUE')
        pairs.append((key, value))
    return pairs


def _env(config: dict[str, Any], text: str) -> None:
    entries = list(config.get("Env") or ())
    for key, value in _pairs(text):
        entries = [entry for entry in entries if not entry.startswith(f"{key}=")]
        entries.append(f"{key}={value}")
    config["Env"] = entries


def _label(config: dict[str, Any], text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text))}


def _expose(config: dict[str, Any], text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in text.split():
        if not _PORT.fullmatch(word):
            raise ValueError(f'"{word}" is not PORT[-PORT][/PROTOCOL]')
        ports[word if "/" in word else f"{word}/tcp"] = {}
    config["ExposedPorts"] = ports


def _volume(config: dict[str, Any], text: str) -> None:
    names = _command(text) if text.startswith("[") else shlex.split(text)
    config["Volumes"] = {**(config.get("Volumes") or {}), **{name: {} for name in names}}


def _workdir(config: dict[str, Any], text: str) -> None:
    before = config.get("WorkingDir") or "/"
    config["WorkingDir"] = text if text.startswith("/") else f"{before.rstrip('/')}/{text}"


def _onbuild(config: dict[str, Any], text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or ()), text]


def _user(config: dict[str, Any], text: str) -> None:
    config["User"] = text


def _stopsignal(config: dict[str, Any], text: str) -> None:
    config["StopSignal"] = text


_CHANGES: dict[str, Callable[[dict[str, Any], str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}

__all__ = ["changed"]
