"""credentials.docker-config: what ``docker login``, ``podman login`` or ``skopeo login`` wrote.

The first file that has the registry counts: $REGISTRY_AUTH_FILE (containers-auth.json(5)), $DOCKER_CONFIG/config.json or
~/.docker/config.json, then the two places of podman. All are read anew each time, from the engine's environment; a credential
helper that a file names is not run, and said so.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wherry.api import Unavailable, hookimpl
from wherry.kit import namespaces
from wherry.spec.document import Fields, parse

_FILE_MAX = 1 << 20
_IDENTITY = "<token>"
#: The registry of Docker itself, as its config has called it since its first version.
_HUB = ("https://index.docker.io/v1/", "index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


@hookimpl
def wherry_credentials(host: str) -> tuple[str, str] | None:
    for path in _files(os.environ):
        document = _read(path)
        if document is not None and (found := _find(document, host, path)) is not None:
            return found
    return None


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    home = environ.get("HOME", "") or _home()
    if named := environ.get("REGISTRY_AUTH_FILE", ""):
        yield Path(named)
    directory = environ.get("DOCKER_CONFIG", "") or (f"{home}/.docker" if home else "")
    if directory:
        yield Path(directory, "config.json")
    runtime = environ.get("XDG_RUNTIME_DIR", "") or f"/run/containers/{namespaces.outer_uid()}"
    yield Path(runtime, "containers/auth.json" if "XDG_RUNTIME_DIR" in environ else "auth.json")
    if home:
        yield Path(environ.get("XDG_CONFIG_HOME", "") or f"{home}/.config", "containers/auth.json")


def _home() -> str:
    import pwd

    try:
        return pwd.getpwuid(namespaces.outer_uid()).pw_dir
    except KeyError:
        return ""


def _read(path: Path) -> Mapping[str, Any] | None:
    """None for a file that is not there. Error: one that can't be used, which the kernel logs."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = file.read(_FILE_MAX + 1)
    return parse(data, f'file "{path}"') if data.strip() else None


def _find(document: Mapping[str, Any], host: str, path: Path) -> tuple[str, str] | None:
    what = f'file "{path}"'
    fields = Fields(document, what)
    names = (
        _HUB
        if host == "docker.io"
        else (host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/", f"http://{host}")
    )
    entries = fields.object("auths")
    for name in names:
        entry = entries.get(name) or entries.get(f"{name}/")
        if isinstance(entry, dict) and (found := _entry(Fields(entry, f"{what}: {name}"))) is not None:
            return found
    helper = fields.labels("credHelpers").get(host, "")
    if not helper and any(name in entries for name in names):
        helper = fields.text("credsStore", "")
    if helper:
        raise Unavailable(
            f'credentials for "{host}"',
            f'are kept by the helper "{helper[:60]}", which is not run',
            f"log in to {path} itself",
        )
    return None


def _entry(entry: Fields) -> tuple[str, str] | None:
    user, secret = entry.text("username", ""), entry.text("password", "")
    if auth := entry.text("auth", ""):
        try:
            text = base64.b64decode(auth, validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            raise Unavailable(entry.what, 'its "auth" is not base64 of "user:password"') from None
        user, _, secret = text.partition(":")
    if token := entry.text("identitytoken", ""):
        return _IDENTITY, token
    return (user, secret) if user else None
