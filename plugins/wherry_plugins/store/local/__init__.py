"""store.local: blobs and references in a directory of OCI image-layout form, which skopeo, umoci and others read too.

``<root>/store/local/`` holds oci-layout, index.json, blobs/sha256/<hex>, ingest/<hex> and store.db. The database is
authoritative; index.json is written after it. A blob is written once, hashed in the same pass, and becomes visible by its
row: fsync blob, rename, fsync directory, then the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Context, Registration, Store, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.store.local.store import LocalStore


@frozen
class LocalConfig:
    """[plugin.store.local]. fsync: false gives up what a power cut takes, for tests and throw-away roots."""

    fsync: bool = True


def _open(config: LocalConfig, context: Context) -> LocalStore:
    from wherry_plugins.store.local.store import LocalStore

    return LocalStore(context.root, fsync=config.fsync)


@hookimpl
def wherry_store() -> Registration[LocalConfig, Store]:
    return Registration(id="local", config=LocalConfig, init=_open)
