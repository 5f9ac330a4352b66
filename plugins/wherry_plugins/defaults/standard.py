"""The config that counts where the user's file says nothing."""

from __future__ import annotations

from wherry.api import hookimpl

CONFIG = """\
version = 1
default = "standard"

[engine]
frontends = ["cli"]
log = "json-file"
transport = "registry"
volume = "local"

[variant.standard]
store = "local"
snapshotter = ["overlayfs", "vfs"]
isolation = ["namespaces", "userns"]
network = ["bridge", "none"]
"""


@hookimpl
def wherry_default_config() -> str:
    return CONFIG
