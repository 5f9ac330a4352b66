"""The config that counts where the user's file says nothing."""

from __future__ import annotations

from wherry.api import hookimpl
from wherry.kit import namespaces

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
snapshotter = ["overlayfs", "fuse-overlayfs", "vfs"]
isolation = ["namespaces", "userns"]
network = ["bridge", "none"]
"""


#: In an ordinary user's engine: a bridge of the host's is not for it, and each container has a way out of its own.
ROOTLESS = (
    CONFIG.rpartition("network = ")[0]
    + """\
network = ["pasta", "slirp4netns", "none"]
"""
)


@hookimpl
def wherry_default_config() -> str:
    return ROOTLESS if namespaces.confined() else CONFIG
